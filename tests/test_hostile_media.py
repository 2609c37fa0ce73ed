"""Sticks that were made to do harm: what hangs, what fills memory, what lies, what writes on screens."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest

from bundler.errors import DoesNotFit, TrustError, UnsafeInput
from bundler.grouping import group_of
from bundler.manifest import BESIDE, HEAD_NAME, Manifest, sums_text
from bundler.media import keys, par2, shape
from bundler.media.copies import candidates
from bundler.media.head import read_head
from bundler.media.packets import CHECKSUMS, DESCRIPTION, RECOVERY, scan, usable
from bundler.media.parity import expected
from bundler.media.repair import repair_bundle
from bundler.printable import printable, printable_json, printable_name
from bundler.segments import hash_range, open_plain
from bundler.value import pretty_json
from bundler.verify import read_manifest, verify_bundle
from tests.demo import bundler
from tests.media import copied, overwrite, packet, sealed

LIB = "runtime/lib.so"


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    keys.new_key(folder, "")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, maker):
    secret = keys.open_secret_key(maker, lambda: "")

    def beside(data):
        return keys.sign_bundle(maker, secret, Manifest.model_validate_json(data), data)

    return sealed(tmp_path_factory.mktemp("hostile"), beside=beside)


@pytest.fixture
def stick(bundle, tmp_path):
    return copied(bundle, tmp_path / "stick")


# -- what is no file -------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def socket_file(path):
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's whole path is short
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


def link_to_a_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, socket_file, link_to_a_device])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "odd")
    with pytest.raises(UnsafeInput, match=r"pipe|socket|link"), open_plain(tmp_path / "odd"):
        raise AssertionError("it was opened")
    with pytest.raises(UnsafeInput):
        hash_range(tmp_path / "odd", 0, 10)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BESIDE)
def test_a_pipe_in_the_place_of_what_is_read_first_hangs_nothing(stick, maker, name):
    (stick / name).unlink(missing_ok=True)
    os.mkfifo(stick / name)
    with pytest.raises(UnsafeInput, match=name):
        verify_bundle(stick)
    with pytest.raises(UnsafeInput, match=name):
        repair_bundle(stick)


@pytest.mark.timeout(60)
def test_a_pipe_is_an_error_in_words_by_the_command_line(stick, maker):
    (stick / "manifest.json.minisig").unlink()
    os.mkfifo(stick / "manifest.json.minisig")
    for words in (("verify", "--keys", maker), ("repair",)):
        done = bundler(words[0], stick, *words[1:])
        assert done.returncode == 8, done.stderr
        assert "a pipe, not a regular file" in done.stderr


@pytest.mark.timeout(60)
def test_a_pipe_among_the_files_is_a_finding_and_stops_a_repair(stick):
    (stick / LIB).unlink()
    os.mkfifo(stick / LIB)
    (finding,) = verify_bundle(stick).findings
    assert (finding.path, finding.kind) == (LIB, "unsafe")
    with pytest.raises(UnsafeInput, match=LIB):
        repair_bundle(stick)


# -- a medium that answers differently the second time ----------------------------------------------


def test_the_signature_is_held_against_the_bytes_that_were_verified(
    stick, maker, monkeypatch, capsys
):
    """Its first answer is a thief's manifest that fits the thief's content, its second the maker's."""
    from bundler import cli, verify

    good = (stick / "manifest.json").read_bytes()
    said = json.loads(good)
    (stick / "start").write_bytes(b"#!/bin/sh\nevil\n")
    for file in said["files"]:
        if file["path"] == "start":
            file["size_bytes"] = 15
            file["sha256"] = hashlib.sha256(b"#!/bin/sh\nevil\n").hexdigest()
    said["parity"] = None
    bad = json.dumps(said).encode()
    for name in ("manifest.json", "parity/manifest.json"):
        (stick / name).write_bytes(bad)
    (stick / HEAD_NAME).unlink()
    files = Manifest.model_validate_json(bad).files
    (stick / "SHA256SUMS").write_text(sums_text(files, hashlib.sha256(bad).hexdigest()))
    first = verify.verify_bundle

    def then_another(*given, **more):
        found = first(*given, **more)
        (stick / "manifest.json").write_bytes(good)
        return found

    monkeypatch.setattr(verify, "verify_bundle", then_another)
    monkeypatch.setattr(sys, "argv", ["bundler", "verify", str(stick), "--keys", str(maker)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == TrustError.exit_code
    assert "does not belong to these bytes" in capsys.readouterr().err


# -- parity packets of strangers ---------------------------------------------------------------------


def the_set(stick):
    """Return the set that protects LIB: what is recorded, its group, its id."""
    manifest = read_manifest(stick)
    files = {file.path: file for file in manifest.files}
    one = next(s for s in manifest.parity.sets if LIB in s.files)
    group = group_of(one, files.__getitem__, manifest.segment_bytes)
    return one, group, bytes.fromhex(one.set_id)


def genuine(stick, kind):
    """Return the packet of a kind that speaks of LIB."""
    one, _, set_id = the_set(stick)
    found = list(scan(stick / one.file, one.block_bytes).of(DESCRIPTION, set_id))
    file_id = next(p.body[:16] for p in found if LIB.encode() in p.body)
    of_kind = scan(stick / one.file, one.block_bytes).of(kind, set_id)
    return next(p for p in of_kind if p.body[:16] == file_id)


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("name", [b"../../PWNED", b"/etc/passwd", b"runtime/second.so", b"\xff"])
@pytest.mark.fault("C8")
def test_a_strangers_name_with_a_genuine_id_never_reaches_the_program(
    stick, monkeypatch, name, where
):
    one, group, set_id = the_set(stick)
    body = genuine(stick, DESCRIPTION).body[:56] + name + bytes(-len(name) % 4)
    add(stick / one.file, packet(DESCRIPTION, body, set_id), where)
    kept = usable(scan(stick / one.file, one.block_bytes), set_id, one.block_bytes, expected(group))
    assert kept is not None
    names = {p.body[56:].rstrip(b"\0") for p in kept.describing if p.kind == DESCRIPTION}
    assert names == {piece.name.encode() for piece in group.pieces}
    check_repaired(stick, monkeypatch, body)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_strangers_checksums_do_not_stand_for_those_that_are_there_twice(
    stick, monkeypatch, where
):
    one, _, set_id = the_set(stick)
    body = bytearray(genuine(stick, CHECKSUMS).body)
    body[20:] = bytes(len(body) - 20)
    add(stick / one.file, packet(CHECKSUMS, bytes(body), set_id), where)
    check_repaired(stick, monkeypatch, bytes(body))


def add(path, data, where):
    old = path.read_bytes()
    path.write_bytes(data + old if where == "before" else old + data)


def check_repaired(stick, monkeypatch, forged):
    """Damage LIB, repair it, and look at the set that was handed to par2."""
    handed, inner = [], par2.repair

    def seen(view, par2_file, *rest):
        handed.append(par2_file.read_bytes())
        return inner(view, par2_file, *rest)

    monkeypatch.setattr(par2, "repair", seen)
    overwrite(stick / LIB, 100, 50)
    done = repair_bundle(stick)
    assert done.unrepaired == ()
    assert LIB in done.repaired
    assert verify_bundle(stick).findings == ()
    assert handed
    assert not any(forged in data for data in handed)


def test_a_maze_of_packets_is_refused_before_it_fills_memory(stick, tmp_path):
    """One small packet, a great many times: 64 MiB of them took 317 MiB and 18 s."""
    path = stick / HEAD_NAME
    one = packet(RECOVERY, b"abcd")
    with path.open("ab") as stream:
        stream.write(one * 10_000)
    with pytest.raises(UnsafeInput, match="maze of packets"):
        read_head(stick)
    with path.open("ab") as stream:
        stream.write(one * 100_000)
    with pytest.raises(UnsafeInput, match="bytes to protect"):
        read_head(stick)
    other = tmp_path / "0001.par2"
    other.write_bytes(one * 100_000)
    with pytest.raises(UnsafeInput, match="maze of packets"):
        scan(other, 4)
    assert bundler("verify", stick).returncode == UnsafeInput.exit_code


# -- manifests that are made to fill memory ------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
from bundler.media.copies import candidates
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = candidates(Path(sys.argv[1]))
print(found[0].manifest is not None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
HOSTILE = {
    "empty objects": ("components", "{}", 3),
    "wrong platforms": ("platforms", '"a"', 24),
    "wrong files": ("files", '{"path":1}', 36),
    "names nobody knows": ("step_keys", '"k%d":1', 64),
    "deep lists": ("components", "[[[[[[]]]]]]", 13),
}


@pytest.mark.parametrize(("key", "item", "every_bytes"), HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_takes_no_more_memory_than_a_few_times_its_size(stick, key, item, every_bytes):
    """Both copies, as large as they may be: 16 MiB took 645 MiB before anything was refused."""
    said = json.loads((stick / "manifest.json").read_text()) | {key: "@@"}
    count = (shape.MAX_MANIFEST_BYTES - (1 << 20)) // max(every_bytes, len(item) + 1)
    items = ",".join(
        (item % n if "%" in item else item).ljust(every_bytes - 1) for n in range(count)
    )
    around = "{%s}" if key == "step_keys" else "[%s]"
    text = json.dumps(said).replace('"@@"', around % items)[: shape.MAX_MANIFEST_BYTES]
    (stick / "manifest.json").write_text(text)
    (stick / "parity/manifest.json").write_text(text[:-1] + " }")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, stick], capture_output=True, text=True, check=True
    )
    readable, kib = done.stdout.split()
    assert readable == "False"
    assert int(kib) < 8 * (shape.MAX_MANIFEST_BYTES >> 10)


def test_the_largest_manifests_that_we_write_are_within_the_bounds():
    """Many small files, or few large ones of many segments; and how large a bundle that is."""
    for files in (small_files(100_000), large_files(7 << 40)):
        manifest = empty().model_copy(update={"files": files})
        data = pretty_json(manifest.model_dump(mode="json", exclude_none=True)).encode()
        assert len(data) > shape.MAX_MANIFEST_BYTES // 2
        assert shape.misshapen(data) == ""


def small_files(count):
    return [
        {"path": f"app/pages/{n:06d}.html", "size_bytes": n, "sha256": f"{n:064x}",
         "executable": False} for n in range(count)
    ]  # fmt: skip


def large_files(size_bytes):
    count = size_bytes // (16 << 20)
    segments = [f"{n:064x}" for n in range(count)]
    return [{"path": "m", "size_bytes": size_bytes, "sha256": "0" * 64, "segments": segments}]


class Loose:
    def __init__(self, said):
        self.said = said

    def model_copy(self, update):
        return Loose(self.said | update)

    def model_dump(self, **_):
        return self.said


def empty():
    return Loose({"schema_version": 1, "name": "home", "models": [], "parity": None})


def test_no_bundle_is_sealed_whose_manifest_nobody_would_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shape, "MAX_MANIFEST_BYTES", 4096)
    with pytest.raises(DoesNotFit, match="would not be read by anybody"):
        sealed(tmp_path)
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").iterdir())


def test_a_copy_is_read_when_the_manifest_is_none_and_only_then(stick, monkeypatch):
    read = []
    inner = Manifest.model_validate_json

    def counted(data, **more):
        read.append(len(data))
        return inner(data, **more)

    monkeypatch.setattr(Manifest, "model_validate_json", counted)
    assert len(candidates(stick)) == 1
    assert len(read) == 1
    overwrite(stick / "manifest.json", 0, 5)
    assert [c.name for c in candidates(stick)] == ["parity/manifest.json"]


# -- names that write on screens -------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_from_a_stick_are_shown_and_not_obeyed(stick):
    odd = [
        b"a\x1b[2J\x1b[31mfake",
        b"line\nerror: none",
        b"caf\xe9",
        b"\xc2\x9b2J",
        "a\u202eb".encode(),
    ]
    for name in odd:
        with open(os.fsencode(stick) + b"/" + name, "wb"):
            pass
    for words in (("verify", "--unsigned"), ("repair",)):
        done = subprocess.run(
            [sys.executable, "-m", "bundler", words[0], stick, *words[1:]],
            capture_output=True, check=False, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        said = (done.stdout + done.stderr).decode()  # it is text, whatever the names are
        assert done.returncode == (6 if words[0] == "verify" else 0), said
        assert "Traceback" not in said
        assert not set("\x1b\x9b\u202e") & set(said)
        for shown in ("a\\x1b[2J\\x1b[31mfake", "line\\nerror: none", "caf\\xe9", "\\x9b2J"):
            assert shown in said, said
        assert "\nerror: none" not in said
        told = bundler(*words[:1], stick, *words[1:], "--json")
        assert "caf\udce9" in [
            f["path"] for f in json.loads(told.stdout.splitlines()[0])["findings"]
        ]


def test_what_is_printable_stays_as_it_is():
    text = "Größe 3,5 GB — “ok” ✓ 漢字 \N{NO-BREAK SPACE}x"
    assert printable(text) == printable_name(text) == printable_json(text) == text
    said = {"path": "a\x1b\x7f\udce9\u202e"}
    assert json.loads(printable_json(json.dumps(said, ensure_ascii=False))) == said
