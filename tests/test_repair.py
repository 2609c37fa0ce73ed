"""Repair: what parity can bring back comes back byte for byte, and nothing else is touched."""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundler.errors import BusyError, DamagedError, UnsafeInput
from bundler.grouping import group_of
from bundler.manifest import HEAD_NAME
from bundler.media import repair, view
from bundler.media.packets import DESCRIPTION
from bundler.media.repair import repair_bundle
from bundler.store import Store
from bundler.verify import read_manifest, verify_bundle
from tests import sticks
from tests.demo import bundler
from tests.media import (
    SEGMENT_BYTES,
    copied,
    digests,
    noise,
    overwrite,
    packet,
    sealed,
    some_files,
)

CHAT = "models/chat/chat.gguf"


def beside(data):
    """Return what looks like a signature and statements, as far as repair looks at them."""
    digest = hashlib.sha256(data).hexdigest()
    comment = f"trusted comment: bundler test version:1 created:1 sha256:{digest}"
    text = f"untrusted comment: x\nRUQ0\n{comment}\nRUQ1\n"
    return {"manifest.json.minisig": text.encode(), "manifest.json.keys": b"[]\n"}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("repair"), beside=beside)


@pytest.fixture(scope="module")
def right(bundle):
    return digests(bundle)


@pytest.fixture
def stick(bundle, tmp_path):
    return copied(bundle, tmp_path / "stick")


def differing(stick, right):
    now = digests(stick)
    return {path for path in now.keys() | right.keys() if now.get(path) != right.get(path)}


def remove(name):
    return lambda stick: (stick / name).unlink()


def rename(old, new):
    return lambda stick: (stick / old).rename(stick / new)


def rot(name, offset=10, size=1):
    return lambda stick: overwrite(stick / name, offset, size)


def cut(name, size):
    return lambda stick: os.truncate(stick / name, size)


def append(name, data=b"garbage" * 99):
    def act(stick):
        with (stick / name).open("ab") as stream:
            stream.write(data)

    return act


def several(*acts):
    return lambda stick: [act(stick) for act in acts]


def empty_folder(name):
    def act(stick):
        shutil.rmtree(stick / name)

    return act


def insert_a_byte(stick):
    path = stick / CHAT
    data = path.read_bytes()
    path.write_bytes(data[:70_000] + b"!" + data[70_000:-1])


def without_mode(stick):
    (stick / "start").chmod(0o644)
    (stick / "runtime/lib.so").chmod(0o755)


DAMAGES = {
    "one bit in a large file": rot(CHAT, 999_999),
    "a hole in a large file": rot(CHAT, 3 * SEGMENT_BYTES - 500, 2 * SEGMENT_BYTES),
    "many places in a large file": several(*(rot(CHAT, i * 60_000) for i in range(40))),
    "the last byte of a large file": rot(CHAT, 40 * SEGMENT_BYTES + 776),
    "a large file cut short": cut(CHAT, 39 * SEGMENT_BYTES + 5),
    "a large file with garbage behind it": append(CHAT),
    "both": several(rot(CHAT, 5, 5), append(CHAT)),
    "two large files": several(rot(CHAT), rot("corpora/b.zim", 300_000, 9000)),
    "a byte that slipped in": insert_a_byte,
    "a small file changed": rot("start", 3),
    "a small file cut to nothing": cut("app/page11.html", 0),
    "a small file with garbage": append("app/page11.html"),
    "small files lost": several(remove("start"), remove("app/page02.html")),
    "a middle file lost": remove("runtime/second.so"),
    "an empty file lost": remove("runtime/empty.py"),
    "one of two twins lost": remove("licenses/b.txt"),
    "both twins lost": empty_folder("licenses"),
    "a large file renamed": rename(CHAT, "chat.gguf"),
    "a twin renamed": rename("licenses/a.txt", "licenses/c.txt"),
    "renamed in case only": rename("corpora/b.zim", "corpora/B.ZIM"),
    "the manifest lost": remove("manifest.json"),
    "the manifest changed": rot("manifest.json", 2000),
    "the manifest cut": cut("manifest.json", 100),
    "the copy lost": remove("parity/manifest.json"),
    "both manifests changed": several(rot("manifest.json", 99, 50), rot("parity/manifest.json", 6000, 50)),
    "a manifest lost and its copy changed": several(remove("manifest.json"), rot("parity/manifest.json", 50)),
    "the sums changed": rot("SHA256SUMS", 77),
    "the sums lost": remove("SHA256SUMS"),
    "sums and manifest changed": several(rot("SHA256SUMS", 77), rot("manifest.json", 2000)),
    "the signature lost": remove("manifest.json.minisig"),
    "the signature changed": rot("manifest.json.minisig", 3),
    "the statements lost": remove("manifest.json.keys"),
    "the head lost": remove(HEAD_NAME),
    "the head changed": rot(HEAD_NAME, 3000, 100),
    "signature and head changed": several(rot("manifest.json.minisig", 3), rot(HEAD_NAME, 9000)),
    "parity lost": remove("parity/0003.par2"),
    "parity changed, in what describes it": rot("parity/0003.par2", 100, 4),
    "parity and what it protects": several(rot("parity/0003.par2", 200_000, 9000), rot(CHAT, 9, 9000)),
    "all of the above, small": several(
        rot(CHAT, 9), remove("start"), remove("manifest.json"), rot("parity/0001.par2", 2000),
        rot(HEAD_NAME, 50), remove("manifest.json.keys"), cut("app/page20.html", 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.fault("C8")
def test_it_comes_back_byte_for_byte(stick, right, damage, tmp_path):
    damage(stick)
    assert is_damaged(stick)
    untouched = digests(stick)
    told = repair_bundle(stick, dry_run=True)
    assert digests(stick) == untouched
    assert told.unrepaired == ()
    done = repair_bundle(stick)
    assert done.unrepaired == ()
    assert done.repaired == told.repaired
    assert differing(stick, right) == set()
    assert verify_bundle(stick).findings == ()


def is_damaged(stick):
    try:
        return bool(verify_bundle(stick).findings)
    except DamagedError:
        return True


def test_modes_come_back(tmp_path):
    files = some_files()
    bundle = sealed(tmp_path, files)
    stick = copied(bundle, tmp_path / "stick")
    manifest = read_manifest(stick)
    programs = [file.path for file in manifest.files if file.executable]
    assert programs == ["start"]
    (stick / "start").unlink()
    assert repair_bundle(stick).repaired == ("start",)
    assert os.access(stick / "start", os.X_OK)


def test_a_lost_program_of_several_segments_comes_back_as_a_program(tmp_path):
    files = {CHAT: noise("chat", 40 * SEGMENT_BYTES)}
    stick = copied(sealed(tmp_path, files, programs={"py": noise("py", 2 * SEGMENT_BYTES + 5)}),
                   tmp_path / "stick")  # fmt: skip
    (stick / "py").unlink()
    done = repair_bundle(stick)
    assert (done.repaired, done.unrepaired) == (("py",), ())
    assert os.access(stick / "py", os.X_OK)
    assert verify_bundle(stick).findings == ()


def test_a_program_that_lost_its_mode_and_its_content_gets_both_back(tmp_path):
    programs = {"py": noise("py", 2 * SEGMENT_BYTES + 5), "start": b"#!/bin/sh\n"}
    files = {CHAT: noise("chat", 40 * SEGMENT_BYTES)}
    stick = copied(sealed(tmp_path, files, programs=programs), tmp_path / "stick")
    overwrite(stick / "py", 70_000, 9)
    (stick / "py").chmod(0o644)
    assert {f.kind for f in verify_bundle(stick).findings} == {"changed", "mode"}
    told = repair_bundle(stick, dry_run=True)
    done = repair_bundle(stick)
    assert told.repaired == done.repaired == ("py",)
    assert verify_bundle(stick).findings == ()


@pytest.mark.parametrize("path", ["runtime/second.so", "app/page11.html", CHAT])
def test_what_was_appended_is_cut_away_without_parity(tmp_path, path):
    bundle = sealed(tmp_path, percent=0)
    stick = copied(bundle, tmp_path / "stick")
    append(path)(stick)
    assert repair_bundle(stick, dry_run=True).repaired == (path,)
    done = repair_bundle(stick)
    assert (done.repaired, done.unrepaired) == ((path,), ())
    assert digests(stick) == digests(bundle)


def test_what_verify_still_finds_is_not_called_repaired(stick, monkeypatch):
    """A medium that takes what is written and gives back something else, once the repair is over."""
    overwrite(stick / CHAT, 10, 10)
    (stick / "start").unlink()
    inner = repair.repair_set

    def failing(*given, **more):
        outcome = inner(*given, **more)
        overwrite(stick / CHAT, 10, 10, seed="again")
        return outcome

    monkeypatch.setattr(repair, "repair_set", failing)
    done = repair_bundle(stick)
    assert done.repaired == ("start",)
    (problem,) = done.unrepaired
    assert problem.message.startswith(f"{CHAT}: is still not right: changed")


def test_the_scratch_of_a_repair_that_is_under_way_stays(stick, tmp_path):
    with view.scratch(stick, view.Need(0), tmp_path) as folder:
        (folder / "x").write_text("x")
        view.sweep(tmp_path)
        assert (folder / "x").exists()
    left = tmp_path / f"{view.PREFIX}of-one-that-was-killed"
    left.mkdir()
    view.sweep(tmp_path)
    assert not folder.exists()
    assert not left.exists()


# -- below and above the budget --------------------------------------------------------------------------


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.fault("C8")
def test_any_damage_below_the_budget_is_repaired(bundle, right, tmp_path_factory, data):
    stick = copied(bundle, tmp_path_factory.mktemp("below") / "stick")
    (large,) = (s for s in read_manifest(stick).parity.sets if s.recovery_blocks > 20)
    blocks_left = large.recovery_blocks
    for _ in range(data.draw(st.integers(1, 12))):
        path = data.draw(st.sampled_from([CHAT, "corpora/b.zim", "runtime/lib.so"]))
        size = (stick / path).stat().st_size
        length = data.draw(st.integers(1, 60_000))
        offset = data.draw(st.integers(0, size - 1))
        touched = (
            (min(size, offset + length) - 1) // large.block_bytes - offset // large.block_bytes + 1
        )
        blocks_left -= touched
        if blocks_left < 0:
            break
        overwrite(stick / path, offset, length, seed=str(offset))
    assert repair_bundle(stick).unrepaired == ()
    assert differing(stick, right) == set()


@pytest.mark.fault("C9")
def test_damage_above_the_budget_changes_nothing_and_is_said_with_figures(stick):
    overwrite(stick / CHAT, 0, 8 * SEGMENT_BYTES)
    (stick / "start").unlink()
    damaged = digests(stick)
    done = repair_bundle(stick)
    (problem,) = done.unrepaired
    assert CHAT in problem.message
    assert "it needs 128 blocks of 4.00 KiB, 80 are there" in problem.message
    assert differing(stick, damaged) == {"start"}
    assert "start" in done.repaired
    assert not list(stick.rglob(".bundler-repair*"))


def test_lost_recovery_blocks_are_counted(stick):
    overwrite(stick / CHAT, 0, 4 * SEGMENT_BYTES)
    overwrite(stick / "parity/0003.par2", 100_000, 100_000)
    (problem, _) = repair_bundle(stick).unrepaired
    assert "it needs 64 blocks" in problem.message
    assert "of its own are damaged" in problem.message


def test_without_parity_it_says_so_and_names_still_come_back(tmp_path):
    stick = copied(sealed(tmp_path, percent=0), tmp_path / "stick")
    overwrite(stick / CHAT, 0, 1)
    (stick / "corpora/b.zim").rename(stick / "b.zim")
    (stick / "manifest.json").unlink()
    done = repair_bundle(stick)
    assert done.repaired == ("corpora/b.zim", "manifest.json")
    assert [p.message for p in done.unrepaired] == [f"{CHAT}: the bundle has no parity for it"]


def test_files_nobody_promised_are_left_alone(stick):
    (stick / "diary.txt").write_text("dear")
    done = repair_bundle(stick)
    assert done.extra == ("diary.txt",)
    assert done.unrepaired == ()
    assert (stick / "diary.txt").read_text() == "dear"


def test_when_nothing_speaks_for_a_manifest_nothing_is_changed(stick):
    for name in ("manifest.json", "parity/manifest.json", "SHA256SUMS", HEAD_NAME):
        os.truncate(stick / name, 50)
    damaged = digests(stick)
    with pytest.raises(DamagedError, match="cannot bring it back"):
        repair_bundle(stick)
    assert digests(stick) == damaged


@pytest.mark.fault("C9")
def test_a_lost_large_file_is_said_and_leaves_no_half_of_it(tmp_path):
    """Of 63 segments one lies in a second set, which could bring that one back alone."""
    files = {CHAT: noise("chat", 63 * 4096), "b.bin": noise("b", 61 * 4096)}
    stick = copied(sealed(tmp_path, files, percent=20, segment_bytes=4096), tmp_path / "stick")
    assert len(read_manifest(stick).parity.sets) == 2
    (stick / CHAT).unlink()
    damaged = digests(stick)
    (problem,) = repair_bundle(stick).unrepaired
    assert "more is damaged" in problem.message
    assert digests(stick) == damaged


def test_a_signature_is_not_taken_for_right_when_nothing_is_left_to_tell(stick):
    overwrite(stick / "manifest.json.minisig", 0, 150)
    (stick / HEAD_NAME).unlink()
    problem, head = repair_bundle(stick).unrepaired
    assert problem.message.startswith("manifest.json.minisig: is damaged, and so is")
    assert head.message.startswith(f"{HEAD_NAME}: is still not right: missing")
    assert not (stick / HEAD_NAME).exists()


# -- bits ------------------------------------------------------------------------------------------------


def flip_bits(stick, count, seed):
    chance = random.Random(seed)
    paths = sorted(p for p in stick.rglob("*") if p.is_file() and p.stat().st_size)
    weights = [path.stat().st_size for path in paths]
    for _ in range(count):
        (path,) = (
            chance.choices(paths, weights) if chance.random() < 0.5 else (chance.choice(paths),)
        )
        at = chance.randrange(path.stat().st_size)
        with path.open("r+b") as stream:
            stream.seek(at)
            old = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([old ^ 1 << chance.randrange(8)]))
        yield path, at, old


def no_flip_goes_unnoticed(stick, count):
    unnoticed = []
    for path, at, old in flip_bits(stick, count, "bits"):
        try:
            if not verify_bundle(stick).findings:
                unnoticed.append((path, at))
        except DamagedError:
            pass
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(bytes([old]))
    assert unnoticed == []
    assert verify_bundle(stick).findings == ()


def small_bundle(tmp_path):
    files = {
        "models/a.gguf": noise("a", 20_000),
        "start": b"#!/bin/sh\n",
        "b.zim": noise("b", 9000),
    }
    made = sealed(tmp_path, files, segment_bytes=4096, beside=beside)
    return copied(made, tmp_path / "stick")


@pytest.mark.fault("C6")
def test_no_flipped_bit_goes_unnoticed(tmp_path, cases_tried):
    no_flip_goes_unnoticed(small_bundle(tmp_path), 300)
    cases_tried(300)


@pytest.mark.slow_sweep
@pytest.mark.fault("C6")
def test_none_of_ten_thousand_flipped_bits_goes_unnoticed(tmp_path, cases_tried):
    no_flip_goes_unnoticed(small_bundle(tmp_path), 10_000)
    cases_tried(10_000)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.fault("C8")
def test_a_dozen_flipped_bits_anywhere_are_repaired(stick, right, seed):
    list(flip_bits(stick, 12, seed))
    done = repair_bundle(stick)
    assert done.unrepaired == ()
    assert differing(stick, right) == set()


# -- cut off -----------------------------------------------------------------------------------------------


def repair_traced(stick, scratch, *words):
    """Repair in a process of its own whose first thread strace watches: it alone writes."""
    command = [sys.executable, "-m", "bundler", "repair", stick, "--progress", "quiet"]
    return subprocess.run(
        ["strace", "-qq", "-y", "-o", scratch.with_suffix(".strace"), *words, *command],
        capture_output=True, env={**os.environ, "TMPDIR": str(scratch)}, timeout=300,
    ).returncode  # fmt: skip


def calls_on_the_stick(bundle, folder, call):
    """Return which calls of one kind of a whole repair touch the bundle, counted from 1."""
    folder.mkdir()
    stick, scratch = copied(bundle, folder / "stick"), folder / "tmp"
    scratch.mkdir()
    spoil(stick)
    assert repair_traced(stick, scratch, "-e", f"trace={call}") == 0
    text = scratch.with_suffix(".strace").read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith(f"{call}(")]
    return [number for number, line in enumerate(lines, 1) if str(stick) in line]


def spread(numbers, count):
    """Return so many of them, from the first to the last."""
    if len(numbers) <= count:
        return numbers
    return [numbers[index * (len(numbers) - 1) // (count - 1)] for index in range(count)]


def spoil(stick):
    for place in range(6):
        overwrite(stick / CHAT, place * 400_000, 9_000)
    overwrite(stick / "corpora/b.zim", 100, 30_000)
    (stick / "start").unlink()
    (stick / "manifest.json").unlink()
    (stick / "runtime/lib.so").rename(stick / "lib.so")
    overwrite(stick / "app/page05.html", 1, 40)
    overwrite(stick / "parity/0001.par2", 3000, 40)


needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@needs_strace
@pytest.mark.parametrize("call", ["rename", "fsync", "pwrite64"])
@pytest.mark.fault("C8")
def test_a_killed_repair_leaves_old_or_right_bytes_and_a_second_one_finishes(
    bundle, right, call, tmp_path, cases_tried
):
    """kill -9 at the n-th call of one kind that touches the stick, for n spread over the work."""
    numbers = calls_on_the_stick(bundle, tmp_path / "counted", call)
    assert len(numbers) >= 4
    states = [
        killed_at(bundle, right, tmp_path / str(n), call, [n]) for n in spread(numbers, 4)
    ]  # fmt: skip
    assert states.count("in the middle") >= 2, states
    cases_tried(len(states))


def killed_at(bundle, right, folder, call, numbers):
    """Kill repairs at these calls, hold the stick to what may lie there, and finish; say the state."""
    folder.mkdir()
    stick, scratch = copied(bundle, folder / "stick"), folder / "tmp"
    scratch.mkdir()
    spoil(stick)
    old = {path: (stick / path).read_bytes() for path in digests(stick)}
    spoiled, was_killed = digests(stick), False
    for number in numbers:
        rule = f"inject={call}:signal=KILL:when={number}"
        was_killed |= repair_traced(stick, scratch, "-e", f"trace={call}", "-e", rule) != 0
        check_old_or_right(bundle, right, stick, old)
    now = digests(stick)
    done = repair_bundle(stick, scratch=scratch)
    assert done.unrepaired == ()
    assert differing(stick, right) == set()
    assert list(scratch.glob(".bundler-repair*")) == []
    assert was_killed
    return "not begun" if now == spoiled else "finished" if now == right else "in the middle"


def check_old_or_right(bundle, right, stick, old):
    for path in right:
        if (stick / path).exists():
            now, good = (stick / path).read_bytes(), (bundle / path).read_bytes()
            before = old.get(path, b"")
            assert len(now) in (len(good), len(before))
            pages = range(0, len(now), 4096)
            assert all(
                now[at : at + 4096] in (good[at : at + 4096], before[at : at + 4096])
                for at in pages
            ), path


@needs_strace
@pytest.mark.slow_sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", ["rename", "fsync", "pwrite64"])
@pytest.mark.fault("C8")
def test_repairs_killed_again_and_again_end_in_the_same_bytes(
    bundle, right, call, tmp_path, cases_tried
):
    numbers = calls_on_the_stick(bundle, tmp_path / "counted", call)
    chance = random.Random(call)
    for seed in range(20):
        moments = chance.choices(numbers, k=3)
        killed_at(bundle, right, tmp_path / str(seed), call, moments)
    cases_tried(60)


# -- disks that are full, or cannot be written -------------------------------------------------------------


@contextmanager
def mounted(folder, options):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
@as_root
@pytest.mark.fault("C10")
def test_a_full_stick_is_repaired_in_place(bundle, right, tmp_path):
    with mounted(tmp_path / "mnt", "size=8m") as mnt:
        stick = copied(bundle, mnt / "b")
        overwrite(stick / CHAT, 500_000, 70_000)
        (stick / "start").unlink()
        fill_up(mnt, leave_bytes=64 << 10)
        done = repair_bundle(stick)
        assert done.unrepaired == ()
        assert differing(stick, right) == set()


@pytest.mark.root
@pytest.mark.mounts
@as_root
@pytest.mark.parametrize("kind", ["exfat", "fat"])
def test_a_stick_that_has_no_modes_is_repaired(kind, bundle, right, tmp_path):
    # fusefat says ENOSYS where Linux' own driver and exfat-fuse say EPERM.
    with sticks.stick(tmp_path, kind) as point:
        stick = point / "b"
        for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
            there = stick / file.relative_to(bundle)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, there)
        overwrite(stick / "manifest.json", 99, 50)
        overwrite(stick / "start", 10, 3)
        (stick / "runtime/second.so").unlink()
        done = repair_bundle(stick)
        assert done.unrepaired == ()
        assert len(done.repaired) == 3
        assert differing(stick, right) == set()


TWIN = "models/twin.gguf"
PARITY = "parity/0003.par2"
TIGHT = {
    "a large file": rot(CHAT, 500_000, 70_000),
    "its parity": several(*(rot(PARITY, at, 900) for at in range(0, 300_000, 50_000))),
    "both": several(rot(CHAT, 500_000, 70_000), rot(PARITY, 100_000, 900)),
    "a large file of which there are two": rot(TWIN, 70_000, 100_000),
    "a large file with garbage behind it, that fits": append(CHAT, b"garbage"),
    "the largest of the small files": rot("models/small.gguf", 9, 20_000),
    "a small file": rot("start", 3),
    "the manifests": several(rot("manifest.json", 99, 50), rot("parity/manifest.json", 6000, 50)),
}


@pytest.fixture(scope="module")
def tight_bundle(tmp_path_factory):
    twin = noise("twin", 12 * SEGMENT_BYTES)
    more = {
        "models/small.gguf": noise("small", SEGMENT_BYTES),
        TWIN: twin,
        "models/again.gguf": twin,
    }
    made = sealed(tmp_path_factory.mktemp("tight"), some_files() | more, beside=beside)
    parity = (made / PARITY).stat().st_size
    assert parity > 4 * SEGMENT_BYTES, "it has to be more than the room there is"
    return made


@pytest.mark.root
@as_root
@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.fault("C10")
def test_a_stick_with_room_for_one_segment_is_repaired_whatever_is_damaged(
    tight_bundle, tmp_path, name
):
    with mounted(tmp_path / "mnt", "size=12m") as mnt:
        stick = copied(tight_bundle, mnt / "b")
        TIGHT[name](stick)
        fill_up(mnt, leave_bytes=SEGMENT_BYTES + (16 << 10))
        done = repair_bundle(stick)
        assert done.unrepaired == ()
        assert done.repaired
        assert differing(stick, digests(tight_bundle)) == set()


@pytest.mark.root
@as_root
@pytest.mark.fault("C10")
def test_a_repair_takes_no_more_scratch_than_it_says(stick, right, tmp_path):
    """Whole files are links: a set of many small ones takes next to nothing."""
    overwrite(stick / CHAT, 500_000, 70_000)
    manifest = read_manifest(stick)
    files = {file.path: file for file in manifest.files}
    one = next(s for s in manifest.parity.sets if s.file == PARITY)
    group = group_of(one, files.__getitem__, manifest.segment_bytes)
    damaged = [p for p in group.pieces if p.path == CHAT and p.index in (7, 8)]
    parity_bytes = (stick / one.file).stat().st_size
    needed = view.need(group, damaged, parity_bytes).bytes_at(tmp_path)
    whole = sum(piece.size_bytes for piece in group.pieces)
    linked = sum(piece.size_bytes for piece in group.pieces if piece.index is None)
    assert linked == 35_000
    assert needed == whole - linked + 2 * SEGMENT_BYTES + parity_bytes + (1 << 20)
    without_the_margin = needed - (1 << 20)
    with mounted(tmp_path / "mnt", f"size={without_the_margin + (64 << 10)}") as mnt:
        (problem,) = repair_bundle(stick, scratch=mnt).unrepaired
        assert "too little; --scratch FOLDER names" in problem.message
    with mounted(tmp_path / "exact", f"size={needed + 4096}") as mnt:
        assert repair_bundle(stick, scratch=mnt).unrepaired == ()
    assert differing(stick, right) == set()


def test_small_files_take_room_in_the_scratch_only_where_there_are_no_links(stick, monkeypatch):
    manifest = read_manifest(stick)
    files = {file.path: file for file in manifest.files}
    one = next(s for s in manifest.parity.sets if not s.slices)
    group = group_of(one, files.__getitem__, manifest.segment_bytes)
    wanted = view.need(group, group.pieces[:1], 1000)
    whole = sum(piece.size_bytes for piece in group.pieces)
    assert wanted.bytes_at(stick) == 2 * group.pieces[0].size_bytes + 1000 + (1 << 20)
    monkeypatch.setattr(view, "_linked", lambda source, target: False)
    assert wanted.bytes_at(stick) == whole + group.pieces[0].size_bytes + 1000 + (1 << 20)


@pytest.mark.root
@as_root
@pytest.mark.fault("C10")
def test_a_file_for_which_there_is_no_room_is_said_and_the_rest_repaired(bundle, right, tmp_path):
    with mounted(tmp_path / "mnt", "size=8m") as mnt:
        stick = copied(bundle, mnt / "b")
        overwrite(stick / CHAT, 500_000, 70_000)
        (stick / "runtime/lib.so").unlink()
        fill_up(mnt, leave_bytes=8 << 10)
        done = repair_bundle(stick)
        (problem,) = done.unrepaired
        assert "No space left" in problem.message or "full" in problem.message
        assert "free" in problem.message
        (mnt / "filler").unlink()
        assert repair_bundle(stick).unrepaired == ()
        assert differing(stick, right) == set()


def fill_up(mnt, leave_bytes):
    free = shutil.disk_usage(mnt).free - leave_bytes
    (mnt / "filler").write_bytes(bytes(max(0, free)))


@pytest.mark.root
@as_root
@pytest.mark.fault("C10")
def test_no_room_to_work_in_is_said_with_figures_and_nothing_changes(bundle, stick, tmp_path):
    overwrite(stick / CHAT, 500_000, 70_000)
    damaged = digests(stick)
    with mounted(tmp_path / "mnt", "size=1m") as mnt:
        (problem,) = repair_bundle(stick, scratch=mnt).unrepaired
    assert "of free space for a while" in problem.message
    assert "1.05 MB" in problem.message
    assert digests(stick) == damaged


@pytest.mark.root
@as_root
@pytest.mark.fault("C10")
def test_a_stick_that_cannot_be_written_is_said(bundle, tmp_path):
    with mounted(tmp_path / "mnt", "size=9m") as mnt:
        stick = copied(bundle, mnt / "b")
        overwrite(stick / CHAT, 500_000, 10)
        subprocess.run(["mount", "-o", "remount,ro", mnt], check=True)
        assert repair_bundle(stick, dry_run=True).repaired == (CHAT,)
        with pytest.raises(DamagedError, match="Read-only"):
            repair_bundle(stick)


def test_what_is_shared_with_the_store_is_not_written_through(tmp_path):
    bundle = sealed(tmp_path)
    store = Store(tmp_path / "store")
    file = next(f for f in read_manifest(bundle).files if f.path == CHAT)
    stored = store.object_path(file.sha256)
    assert (bundle / CHAT).samefile(stored)
    stored.chmod(0o644)
    overwrite(stored, 70_000, 10)  # one file, so both are damaged
    with (bundle / "corpora/b.zim").open("rb") as stream:
        zim = stream.read()
    spoiled = stored.read_bytes()
    assert repair_bundle(bundle).unrepaired == ()
    assert stored.read_bytes() == spoiled
    assert not (bundle / CHAT).samefile(stored)
    assert verify_bundle(bundle).findings == ()
    assert (bundle / "corpora/b.zim").read_bytes() == zim


def test_two_repairs_at_once_are_one_too_many(stick):
    from bundler.media.repair import _alone

    with _alone(stick), pytest.raises(BusyError):
        repair_bundle(stick)
    repair_bundle(stick)


# -- hostile sticks ------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """A folder that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "b.zim").write_bytes(b"mine")
    yield folder
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("b.zim", b"mine")]


@pytest.mark.parametrize(
    "path", ["corpora", "corpora/b.zim", "parity", "start", "parity/head.par2"]
)
def test_links_are_refused_by_name_and_nothing_behind_them_is_touched(stick, outside, path):
    target = outside if path in ("corpora", "parity") else outside / "b.zim"
    place = stick / path
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(target)
    with pytest.raises(UnsafeInput, match=path):
        repair_bundle(stick)


def test_a_manifest_that_names_paths_outside_is_no_manifest(stick, outside):
    said = json.loads((stick / "manifest.json").read_text())
    said["files"][0]["path"] = "../outside/b.zim"
    for name in ("manifest.json", "parity/manifest.json"):
        (stick / name).write_text(json.dumps(said))
    os.truncate(stick / HEAD_NAME, 10)
    with pytest.raises(DamagedError, match="manifest"):
        repair_bundle(stick)


def test_parity_of_another_bundle_is_not_used(stick, tmp_path):
    files = some_files() | {CHAT: noise("other", 40 * SEGMENT_BYTES + 777)}
    other = sealed(tmp_path / "other", files)
    shutil.copy(other / "parity/0003.par2", stick / "parity/0003.par2", follow_symlinks=False)
    overwrite(stick / CHAT, 10, 10)
    damaged = digests(stick)
    problems = {p.message.partition(":")[0] for p in repair_bundle(stick).unrepaired}
    assert problems == {CHAT, "parity/0003.par2"}
    assert digests(stick) == damaged


def crafted(name, set_id):
    """Return a description of a file that no set of ours has, as a packet that is intact."""
    content, padded = b"evil" * 5, name + bytes(-len(name) % 4)
    md5 = hashlib.md5(content, usedforsecurity=False).digest()
    size = struct.pack("<Q", len(content))
    file_id = hashlib.md5(md5 + size + name, usedforsecurity=False).digest()
    return packet(DESCRIPTION, file_id + md5 + md5 + size + padded, set_id)


def test_packets_with_names_that_lead_out_never_reach_the_program(stick, right, outside, tmp_path):
    path = stick / "parity/0003.par2"
    one = next(s for s in read_manifest(stick).parity.sets if s.file == "parity/0003.par2")
    set_id = bytes.fromhex(one.set_id)
    data = path.read_bytes()
    evil = b"".join(crafted(name, set_id) for name in (b"../../outside/b.zim", b"/etc/passwd"))
    path.write_bytes(evil + data + evil)
    overwrite(stick / CHAT, 10, 10)
    assert repair_bundle(stick).unrepaired == ()
    assert differing(stick, right) == set()


def test_a_folder_in_the_place_of_a_file_is_said(stick):
    (stick / "start").unlink()
    (stick / "start").mkdir()
    (problem,) = repair_bundle(stick).unrepaired
    assert "start" in problem.message
    assert "directory" in problem.message.lower()


def test_a_file_in_the_place_of_a_folder_is_said(stick):
    shutil.rmtree(stick / "licenses")
    (stick / "licenses").write_text("x")
    messages = [p.message for p in repair_bundle(stick).unrepaired]
    assert len(messages) == 2
    assert all("is not a folder" in message for message in messages)


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did_and_exits_with_zero(stick):
    overwrite(stick / CHAT, 10, 10)
    (stick / "start").unlink()
    told = bundler("repair", stick, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "can be repaired: missing  start" in told.stdout
    assert not (stick / "start").exists()
    done = bundler("repair", stick, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repaired"] == [CHAT, "start"]
    assert bundler("repair", stick).stdout.startswith("test 1: all ")


def test_the_command_exits_with_six_when_something_is_lost(stick):
    overwrite(stick / CHAT, 0, 8 * SEGMENT_BYTES)
    done = bundler("repair", stick)
    assert done.returncode == 6
    assert "it needs 128 blocks" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert bundler("repair", stick / "app").returncode == 2


def test_the_command_exits_with_eight_on_a_link(stick):
    (stick / "start").unlink()
    (stick / "start").symlink_to("/bin/sh")
    done = bundler("repair", stick)
    assert done.returncode == 8
    assert "start" in done.stderr
