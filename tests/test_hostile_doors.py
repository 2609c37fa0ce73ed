"""Hostile sticks through every door a person has: refused by name, within bounds, nothing written outside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from bundler.manifest import COPY_NAME, HEAD_NAME, MANIFEST_NAME, SIGNATURE_NAME, SUMS_NAME
from bundler.media.keys import new_key
from tests.demo import ROOT, bundler, demo_bundle
from tests.media import noise, overwrite
from tests.test_packing import made, members
from tests.update_cases import Case, copied, first_files, tree, version

pytestmark = pytest.mark.skipif(not shutil.which("prlimit"), reason="prlimit is not installed")
MOST_BYTES = 1536 << 20
"""Of address space, for a command and each of its children: par2 is given a third of it."""
PLACES = ("outside", "home", "tmp", "target")
Hostile = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("doors"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the same names with other content, signed with another key."""
    folder = tmp_path_factory.mktemp("stranger")
    new_key(folder / "keys", "", "strangers")
    files = {path: noise(f"other {path}", len(data)) for path, data in first_files().items()}
    return version(folder, files, 1, keys=folder / "keys")


def some(names: Iterable[str], *always: str) -> list[object]:
    """Return the names as parameters: a few each time, all of them in the long sweep."""
    marks = pytest.mark.slow_sweep
    assert set(always) <= set(names)
    return [name if name in always else pytest.param(name, marks=marks) for name in names]


# -- what is done to a stick -----------------------------------------------------------------------------


def manifest_of(stick: Path) -> dict:
    return json.loads((stick / MANIFEST_NAME).read_bytes())


def put_manifest(stick: Path, data: bytes) -> None:
    """Put a manifest in both its places; nothing that is left speaks for the genuine one."""
    for name in (MANIFEST_NAME, COPY_NAME):
        (stick / name).unlink()
        (stick / name).write_bytes(data)
    for name in (HEAD_NAME, SIGNATURE_NAME, SUMS_NAME):
        (stick / name).unlink(missing_ok=True)
    sums = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n"
    (stick / SUMS_NAME).write_text(sums)


def said(change: Callable[[dict], object]) -> Hostile:
    """Return what lets the manifest say something else."""

    def act(stick: Path, outside: Path) -> None:
        manifest = manifest_of(stick)
        change(manifest)
        put_manifest(stick, json.dumps(manifest).encode())

    return act


def text(data: Callable[[], bytes]) -> Hostile:
    return lambda stick, outside: put_manifest(stick, data())


def path_of(name: str) -> Hostile:
    return said(lambda manifest: manifest["files"][0].update(path=name))


def twice(name: str) -> Hostile:
    """Return what lists a file once more under a name that some filesystem takes for the same."""

    def change(manifest: dict) -> None:
        (start,) = (file for file in manifest["files"] if file["path"] == "start")
        manifest["files"].append(start | {"path": name})

    return said(change)


def largest(manifest: dict) -> dict:
    return max(manifest["files"], key=lambda file: file["size_bytes"])


def a_set(manifest: dict) -> dict:
    return next(one for one in manifest["parity"]["sets"] if one["slices"])


def link(path: str, *, folder: bool = False) -> Hostile:
    """Return what puts a link to the outside in the place of a file or a folder."""

    def act(stick: Path, outside: Path) -> None:
        place = stick / path
        shutil.rmtree(place) if folder else place.unlink()
        place.symlink_to(outside if folder else outside / "mine.txt")

    return act


def pipe(path: str) -> Hostile:
    def act(stick: Path, outside: Path) -> None:
        (stick / path).unlink()
        os.mkfifo(stick / path)

    return act


MANIFESTS: dict[str, tuple[Hostile, str]] = {
    "a huge manifest": (text(lambda: b'{"files": [' + b"{}," * (24 << 20) + b"{}]}"), "manifest"),
    "a deep manifest": (text(lambda: b"[" * 2_000_000), "manifest"),
    "a manifest of one long number": (text(lambda: b"1" * 4_000_000), "manifest"),
    "a path upwards": (path_of("../outside/mine.txt"), r"outside/mine\.txt|manifest"),
    "an absolute path": (path_of("/etc/passwd"), "manifest"),
    "a drive": (path_of("C:/Windows/x"), "manifest"),
    "backslashes": (path_of("..\\outside\\mine.txt"), "manifest"),
    "a path with a NUL": (path_of("a\0b"), "manifest"),
    "a path into our own folder": (path_of(".bundler-update/x"), "manifest|bundler-update"),
    "a path over the manifest": (path_of("manifest.json"), "manifest"),
    "a path in other case": (twice("START"), "manifest|START"),
    "a file that is a folder too": (twice("start/evil"), "manifest|start"),
    "a size of 2^62 bytes": (said(lambda m: largest(m).update(size_bytes=1 << 62)), "manifest|gguf|zim"),
    "segments of one byte": (said(lambda m: m.update(segment_bytes=1)), "manifest|gguf|zim"),
    "segments that are missing": (said(lambda m: largest(m)["segments"].pop()), "manifest|gguf|zim"),
    "a set outside": (said(lambda m: a_set(m).update(file="../outside/mine.txt")), "manifest"),
    "a set of slices that are not there": (
        said(lambda m: a_set(m)["slices"][0].update(first=1 << 40, count=1 << 40)), "manifest"),
    "a set of endless blocks": (said(lambda m: a_set(m).update(block_bytes=1 << 60)), "manifest"),
    "a set of a file that is nobody's": (
        said(lambda m: a_set(m).update(files=["nobody"])), "manifest"),
}  # fmt: skip


def parity_of(stranger: Path) -> Hostile:
    """Return what puts another bundle's parity in the place of each set, and damages a file."""

    def act(stick: Path, outside: Path) -> None:
        for path in (stick / "parity").glob("0*.par2"):
            path.write_bytes((stranger / "parity" / path.name).read_bytes())
        overwrite(stick / "models/chat/chat.gguf", 100, 50)

    return act


def these_of(stranger: Path, *names: str) -> Hostile:
    """Return what puts another bundle's files in the place of these."""

    def act(stick: Path, outside: Path) -> None:
        for name in names:
            shutil.copyfile(stranger / name, stick / name)

    return act


def signature_of(stranger: Path) -> Hostile:
    return these_of(stranger, SIGNATURE_NAME)


def signature_and_head_of(stranger: Path) -> Hostile:
    return these_of(stranger, SIGNATURE_NAME, HEAD_NAME)


def all_that_speaks_of(stranger: Path) -> Hostile:
    return these_of(stranger, MANIFEST_NAME, COPY_NAME, SUMS_NAME, SIGNATURE_NAME, HEAD_NAME)


ALWAYS = ("a huge manifest", "a path upwards", "a set outside", "a path in other case")


# -- the doors -------------------------------------------------------------------------------------------


class Machine:
    """A stick in a machine, and what must stay as it is there."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder, self.case = folder, case
        for name in PLACES:
            (folder / name).mkdir(exist_ok=True)
        (folder / "outside/mine.txt").write_text("mine")
        self.outside = folder / "outside"
        self.watched = list(PLACES)

    def go(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command within bounds; hold it to what no command may do."""
        before = self.elsewhere()
        done = subprocess.run(
            ["prlimit", f"--as={MOST_BYTES}", "--", *map(str, words)],
            capture_output=True, text=True, timeout=300, cwd=ROOT,
            env={
                **os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "1000",
                "HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"),
            },
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert "fault of bundler" not in done.stderr, done.stderr
        assert not re.search("MemoryError|not permitted", done.stderr), done.stderr
        assert self.elsewhere() == before
        return done

    def bundler(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.go(sys.executable, "-m", "bundler", *words)

    def elsewhere(self) -> dict[str, object]:
        return {name: tree(self.folder / name) for name in self.watched}


def verify(machine: Machine, stick: Path) -> subprocess.CompletedProcess[str]:
    return machine.bundler("verify", stick, "--unsigned")


def verify_signed(machine: Machine, stick: Path) -> subprocess.CompletedProcess[str]:
    return machine.bundler("verify", stick, "--keys", machine.case.keys)


def repair(machine: Machine, stick: Path) -> subprocess.CompletedProcess[str]:
    return machine.bundler("repair", stick)


def deploy(machine: Machine, stick: Path) -> subprocess.CompletedProcess[str]:
    return machine.bundler("deploy", stick, machine.folder / "target", "--unsigned", "--no-probe")


def update(machine: Machine, stick: Path) -> subprocess.CompletedProcess[str]:
    return machine.bundler(
        "update", "apply", machine.case.made.root, stick, "--keys", machine.case.keys
    )


DOORS = {one.__name__: one for one in (verify, verify_signed, repair, deploy, update)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", some(MANIFESTS, *ALWAYS))
@pytest.mark.fault("C12")
def test_a_hostile_manifest_is_refused_at_every_door(case, tmp_path, name, door):
    act, word = MANIFESTS[name]
    stick = copied(case.first, tmp_path / "stick")
    machine = Machine(tmp_path, case)
    act(stick, machine.outside)
    before = tree(stick)
    done = DOORS[door](machine, stick)
    assert done.returncode in (6, 8), (done.returncode, done.stderr)
    assert re.search(word, done.stderr), done.stderr
    assert tree(stick) == before


LINKS: dict[str, tuple[Hostile, str]] = {
    "a link in the place of a file": (link("start"), "start"),
    "a link in the place of a large file": (link("models/chat/chat.gguf"), r"chat\.gguf"),
    "a link in the place of a folder": (link("corpora", folder=True), "corpora"),
    "a link in the place of the parity": (link("parity", folder=True), "parity"),
    "a link in the place of the manifest": (link(MANIFEST_NAME), "manifest"),
    "a link in the place of the signature": (link(SIGNATURE_NAME), "minisig"),
    "a pipe in the place of a file": (pipe("start"), "start"),
    "a pipe in the place of the manifest": (pipe(MANIFEST_NAME), "manifest"),
}  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "name", some(LINKS, "a link in the place of a folder", "a pipe in the place of the manifest")
)
@pytest.mark.fault("C12")
def test_what_is_no_file_is_refused_at_every_door(case, tmp_path, name, door):
    act, word = LINKS[name]
    stick = copied(case.first, tmp_path / "stick")
    machine = Machine(tmp_path, case)
    act(stick, machine.outside)
    before = listed(stick)
    done = DOORS[door](machine, stick)
    assert done.returncode in (6, 8), (done.returncode, done.stderr)
    assert re.search(word, done.stderr), done.stderr
    assert listed(stick) == before


def listed(root: Path) -> list[tuple[str, int]]:
    """Return what lies there, without opening any of it."""
    return sorted((str(path.relative_to(root)), path.lstat().st_mode) for path in root.rglob("*"))


STRANGE = {
    # What each door answers: parity is needed for repairs alone, and who signed the old version
    # matters to nobody who has a signed update for exactly its bytes.
    "parity": (parity_of, {
        "verify": 6, "verify_signed": 6, "repair": 6, "deploy": 6, "update": 6}, r"par2|gguf"),
    "signature": (signature_of, {
        "verify": 6, "verify_signed": 6, "repair": 0, "deploy": 6, "update": 0}, "minisig"),
    "signature and head": (signature_and_head_of, {
        "verify": 6, "verify_signed": 6, "repair": 6, "deploy": 6, "update": 0}, "minisig|head"),
    "all but the content": (all_that_speaks_of, {
        "verify": 6, "verify_signed": 6, "repair": 6, "deploy": 6, "update": 2}, "gguf|update"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", some(STRANGE, "parity", "signature and head"))
@pytest.mark.fault("C12")
def test_what_belongs_to_another_bundle_is_refused_by_name(case, stranger, tmp_path, name, door):
    act, codes, word = STRANGE[name]
    stick = copied(case.first, tmp_path / "stick")
    machine = Machine(tmp_path, case)
    act(stranger)(stick, machine.outside)
    models = (stick / "models/chat/chat.gguf").read_bytes()
    machine.watched.remove("target")
    done = DOORS[door](machine, stick)
    assert done.returncode == codes[door], (done.returncode, done.stdout, done.stderr)
    if done.returncode == 0:
        assert tree(stick) == tree(case.first if door == "repair" else case.second)
        return
    assert re.search(word, done.stderr), done.stderr
    assert (stick / "models/chat/chat.gguf").read_bytes() == models
    assert not (machine.folder / "target/clinic" / MANIFEST_NAME).exists()


# -- packs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(case: Case, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes, bytes]]:
    """Return the members of a pack of the bundle: name, header, padded content."""
    pack = tmp_path_factory.mktemp("pack") / "b.tar.zst"
    done = bundler("pack", case.first, pack)
    assert done.returncode == 0, done.stderr
    return members(pack.read_bytes())


def member(name: str, data: bytes) -> tuple[str, bytes, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return name, info.tobuf(tarfile.PAX_FORMAT), data + bytes(-len(data) % 512)


@pytest.mark.parametrize("asked", some(["--unsigned", "--keys"], "--unsigned"))
@pytest.mark.parametrize("name", some(MANIFESTS, *ALWAYS))
@pytest.mark.fault("C12")
def test_a_pack_with_a_hostile_manifest_is_refused(case, parts, tmp_path, name, asked):
    act, _ = MANIFESTS[name]
    stick = copied(case.first, tmp_path / "stick")
    machine = Machine(tmp_path, case)
    act(stick, machine.outside)
    data = (stick / MANIFEST_NAME).read_bytes()
    changed = [
        member(one[0], data) if one[0].endswith((f"/{MANIFEST_NAME}", f"/{COPY_NAME}")) else one
        for one in parts
    ]
    assert changed != parts
    pack = tmp_path / "hostile.tar.zst"
    pack.write_bytes(made(changed))
    words = [asked] if asked == "--unsigned" else [asked, case.keys]
    done = machine.bundler("unpack", pack, tmp_path / "out", *words)
    assert done.returncode in (6, 7, 8), (done.returncode, done.stderr)
    assert {path.name for path in tmp_path.iterdir()} == {*PLACES, "stick", "hostile.tar.zst"}


# -- the stick's own programs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Path:
    return demo_bundle()


@pytest.fixture
def own_stick(demo: Path, tmp_path: Path) -> Path:
    """Return a copy of the example; what is changed of it is always a new file in place of the old."""
    root = tmp_path / "stick"
    shutil.copytree(demo, root, copy_function=_linked)
    return root


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


OWN = {name: MANIFESTS[name] for name in (
    "a huge manifest", "a deep manifest", "a path upwards", "an absolute path", "a path in other case",
    "a size of 2^62 bytes", "a set outside", "a set of slices that are not there",
)} | {name: LINKS[name] for name in (
    "a link in the place of a folder", "a link in the place of the parity",
    "a link in the place of the manifest", "a pipe in the place of the manifest",
)}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("word", ["check", "repair"])
@pytest.mark.parametrize(
    "name", some(OWN, "a huge manifest", "a path upwards", "a link in the place of the parity")
)
@pytest.mark.fault("C12")
def test_a_sticks_own_programs_refuse_a_hostile_manifest(case, own_stick, tmp_path, name, word):
    act, said_word = OWN[name]
    machine = Machine(tmp_path, case)
    act(own_stick, machine.outside)
    before = listed(own_stick)
    done = machine.go("/bin/sh", own_stick / "start", word)
    assert done.returncode in (6, 8), (done.returncode, done.stdout, done.stderr)
    assert re.search(said_word, done.stdout + done.stderr), done.stderr
    assert listed(own_stick) == before
