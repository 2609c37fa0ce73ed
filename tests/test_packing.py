"""A bundle as one file: other people's tools read it, and nothing but the bundle comes out of it."""

import io
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import zstandard

from bundler.errors import (
    BundlerError,
    BusyError,
    DamagedError,
    DoesNotFit,
    TrustError,
    UnsafeInput,
)
from bundler.packing.frames import FRAME_BYTES, Frames, framed
from bundler.packing.packer import pack_bundle
from bundler.packing.resuming import folder_to_be
from bundler.packing.unpacker import open_pack, unpack_bundle
from bundler.verify import read_manifest_with_data, verify_bundle
from tests.media import copied, digests, noise, sealed, some_files

DEEP = "app/" + "/".join(f"folder-with-a-long-name-{n}" for n in range(12)) + "/page.html"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    files = some_files() | {
        DEEP: b"deep", "models/text.gguf": b"the same words " * 400_000,
        "models/big.gguf": noise("big", FRAME_BYTES + 12345),
    }  # fmt: skip
    return copied(
        sealed(tmp_path_factory.mktemp("made"), files), tmp_path_factory.mktemp("b") / "b"
    )


def packed(bundle, workers=2):
    manifest, data = read_manifest_with_data(bundle)
    out = io.BytesIO()
    size = pack_bundle(bundle, manifest, data, out, workers=workers, told=lambda done, total: None)
    assert size == len(out.getvalue())
    return out.getvalue()


@pytest.fixture(scope="module")
def pack(bundle):
    return packed(bundle)


def unpacked(data, output):
    frames = Frames(io.BytesIO(data))
    opened = open_pack(frames)
    unpack_bundle(frames, opened, output, lambda *_: None, told=lambda done, total: None)
    return output


def refused(data, tmp_path, kind=UnsafeInput):
    """Unpack what must not be; return the error. Nothing is left, inside or outside."""
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").write_text("mine")
    with pytest.raises(kind) as caught:
        unpacked(data, tmp_path / "in" / "b")
    assert os.listdir(tmp_path / "in") == []
    assert sorted(os.listdir(tmp_path)) == ["in", "outside"]
    assert (tmp_path / "outside").read_text() == "mine"
    return str(caught.value)


def members(pack):
    """Return the tar of a pack as (header, content) of each member."""
    plain = b"".join(plain_frames(pack))
    found, at = [], 0
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        for info in archive:
            content = plain[info.offset_data : info.offset_data + -(-info.size // 512) * 512]
            found.append((info.name, plain[at : info.offset_data], content))
            at = info.offset_data + len(content)
    return found


def plain_frames(pack):
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(pack), read_across_frames=True)
    yield stream.read()


def made(parts):
    return b"".join(framed([*(header + content for _, header, content in parts), bytes(1024)], 1))


def with_entry(pack, place, info, content=b""):
    """Return the pack with a foreign member before the one at `place`."""
    parts = members(pack)
    data = content + bytes(-len(content) % 512)
    parts.insert(place, (info.name, info.tobuf(tarfile.PAX_FORMAT), data))
    return made(parts)


def entry(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_what_was_packed_comes_out_byte_for_byte_with_its_modes(bundle, pack, tmp_path):
    output = unpacked(pack, tmp_path / "b")
    assert digests(output) == digests(bundle)
    assert verify_bundle(output).findings == ()
    assert (output / "start").stat().st_mode & 0o777 == 0o755
    assert (output / "SHA256SUMS").stat().st_mode & 0o777 == 0o644


def test_the_same_bytes_for_any_number_of_workers_and_any_place(bundle, pack, tmp_path):
    other = copied(bundle, tmp_path / "elsewhere")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    assert packed(other, workers=1) == packed(bundle, workers=5) == pack


def test_taking_apart_and_putting_together_gives_the_same_pack(pack):
    assert made(members(pack)) == pack


@pytest.mark.parametrize("words", [["zstd", "-dc"], ["tar", "--zstd", "-xf"]])
def test_stock_tools_read_it(bundle, pack, tmp_path, words):
    if shutil.which("zstd") is None:
        pytest.skip("no zstd here")
    file = tmp_path / "b.tar.zst"
    file.write_bytes(pack)
    if words[0] == "zstd":
        tar = subprocess.run([*words, file], check=True, capture_output=True).stdout
        done = subprocess.run(["tar", "-xf", "-"], cwd=tmp_path, input=tar, capture_output=True)
    else:
        done = subprocess.run([*words, file], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    (top,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert digests(top) == digests(bundle)


def test_the_seek_table_finds_every_frame(pack):
    count = int.from_bytes(pack[-9:-5], "little")
    assert pack[-4:] == (0x8F92EAB1).to_bytes(4, "little")
    table, at = pack[-9 - 8 * count : -9], 0
    for number in range(count):
        size = int.from_bytes(table[8 * number : 8 * number + 4], "little")
        plain = int.from_bytes(table[8 * number + 4 : 8 * number + 8], "little")
        assert len(zstandard.ZstdDecompressor().decompress(pack[at : at + size])) == plain
        at += size
    assert count > 2
    assert at + 8 + 8 * count + 9 == len(pack)


def test_text_shrinks_and_weights_cost_next_to_nothing(bundle, pack):
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    text = (bundle / "models/text.gguf").stat().st_size
    assert len(pack) < size - 0.9 * text
    random_part = b"".join(framed([noise("w", FRAME_BYTES)], 1))
    assert len(random_part) < FRAME_BYTES * 1.001


OUT = "../outside"
CASES = {
    "a path upwards": [entry("test/../../outside", size=4)],
    "an absolute path": [entry("/tmp/bundler-was-here", size=4)],
    "an absolute link": [entry("test/link", tarfile.SYMTYPE, "/etc")],
    "a relative link": [entry("test/link", tarfile.SYMTYPE, "../..")],
    "a link, then a file through it": [
        entry("test/link", tarfile.SYMTYPE, ".."), entry("test/link/outside", size=4)],
    "a hard link": [entry("test/hard", tarfile.LNKTYPE, "../outside")],
    "a hard link to a link": [
        entry("test/link", tarfile.SYMTYPE, OUT), entry("test/hard", tarfile.LNKTYPE, "test/link")],
    "a device": [entry("test/device", tarfile.CHRTYPE)],
    "a pipe": [entry("test/pipe", tarfile.FIFOTYPE)],
    "a folder": [entry("test/app", tarfile.DIRTYPE)],
    "a file too many": [entry("test/more", size=4)],
    "a long GNU name": [entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=4)],
    "a global header": [entry("pax", tarfile.XGLTYPE, size=4)],
    "an enormous size": [entry("test/huge", size=1 << 60)],
    "a deep path": [entry("test/" + "d/" * 2000 + "f", size=4)],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", [0, 1, 5, -1])
@pytest.mark.fault("E9")
def test_nothing_foreign_comes_out(pack, tmp_path, case, place):
    hostile = pack
    for step, info in enumerate(CASES[case]):
        content = b"evil" if info.size == 4 else b""
        hostile = with_entry(hostile, place + step if place >= 0 else place, info, content)
    refused(hostile, tmp_path)


def test_the_foreign_member_is_named(pack, tmp_path):
    hostile = with_entry(pack, 5, CASES["an absolute link"][0])
    assert "a symbolic link 'test/link' to '/etc'" in refused(hostile, tmp_path)


@pytest.mark.parametrize("place", [0, 1, 4, 9])
def test_a_member_that_comes_twice_is_refused(pack, tmp_path, place):
    parts = members(pack)
    refused(made([*parts[: place + 1], *parts[place:]]), tmp_path)


@pytest.mark.parametrize("place", [0, 1, 2, 4, -1])
def test_a_member_that_is_missing_is_refused(pack, tmp_path, place):
    parts = members(pack)
    del parts[place]
    refused(made(parts), tmp_path)


def test_another_order_is_refused(pack, tmp_path):
    parts = members(pack)
    parts[6], parts[7] = parts[7], parts[6]
    refused(made(parts), tmp_path)


def test_a_size_that_lies_is_refused(pack, tmp_path):
    parts = members(pack)
    name, _, content = parts[8]
    info = entry(name, size=len(content) + 512)
    info.mtime = 1
    parts[8] = (name, info.tobuf(tarfile.PAX_FORMAT), content)
    refused(made(parts), tmp_path)


def test_other_content_is_named_with_its_range(pack, tmp_path):
    parts = members(pack)
    place = next(i for i, part in enumerate(parts) if part[0].endswith("chat.gguf"))
    name, header, content = parts[place]
    changed = bytearray(content)
    changed[200_000] ^= 1
    parts[place] = (name, header, bytes(changed))
    said = refused(made(parts), tmp_path, DamagedError)
    assert "models/chat/chat.gguf: other content within bytes 196608-262143" in said


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.fault("C6")
def test_one_bit_anywhere_is_found_and_nothing_is_left(pack, tmp_path, seed):
    at = int.from_bytes(noise(f"at{seed}", 8), "little") % (8 * len(pack))
    changed = bytearray(pack)
    changed[at // 8] ^= 1 << at % 8
    said = refused(bytes(changed), tmp_path, BundlerError)
    assert "byte" in said or "memory" in said or "manifest" in said, said


@pytest.mark.parametrize("share", [0, 0.00001, 0.1, 0.5, 0.9, 0.99999])
def test_a_cut_off_file_says_at_which_byte(pack, tmp_path, share):
    count = int(len(pack) * share)
    with pytest.raises(DamagedError, match=f"ends at byte {count},"):
        unpacked(pack[:count], tmp_path / "b")
    assert not (tmp_path / "b").exists()


# -- going on ----------------------------------------------------------------------------------------


def test_what_was_cut_off_goes_on_and_keeps_what_is_whole_and_right(bundle, pack, tmp_path):
    with pytest.raises(DamagedError) as caught:
        unpacked(pack[: int(len(pack) * 0.9)], tmp_path / "b")
    assert "what is whole and right is kept" in caught.value.problems[0].hint
    (half,) = tmp_path.iterdir()
    assert half.name == ".b.unpacking"
    listed = {file.path: file for file in read_manifest_with_data(bundle)[0].files}
    there = {
        path.relative_to(half).as_posix(): path.stat().st_ino
        for path in half.rglob("*") if path.is_file()
    }  # fmt: skip
    whole = [path for path in there if path in listed
             and (half / path).stat().st_size == listed[path].size_bytes]  # fmt: skip
    assert len(whole) > 5
    rotten, linked, *_ = whole
    data = bytearray((half / rotten).read_bytes())
    data[-1] ^= 1
    (half / rotten).write_bytes(data)
    (tmp_path / "outside").write_bytes((half / linked).read_bytes())
    (half / linked).unlink()
    (half / linked).symlink_to(tmp_path / "outside")
    (half / "stranger").write_text("not of the bundle")
    (half / "folder").symlink_to(tmp_path)
    (half / "empty").mkdir()
    output = unpacked(pack, tmp_path / "b")
    assert digests(output) == digests(bundle)
    assert verify_bundle(output).findings == ()
    assert (output / "start").stat().st_mode & 0o777 == 0o755
    kept = [path for path in whole if (output / path).stat().st_ino == there[path]]
    assert set(whole) - set(kept) <= {rotten, linked} | {"start"}
    assert not (output / linked).is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["b", "outside"]


def test_an_unpacking_that_was_killed_goes_on(bundle, pack, tmp_path):
    script = (
        "import io, os, sys; from pathlib import Path; from tests.test_packing import unpacked\n"
        "import bundler.packing.unpacker as u\n"
        "seen = []\n"
        "def told(done, total):\n"
        "    if done > total // 2: os._exit(9)\n"
        "data = Path(sys.argv[1]).read_bytes(); frames = u.Frames(io.BytesIO(data))\n"
        "u.unpack_bundle(frames, u.open_pack(frames), Path(sys.argv[2]), lambda *_: None, told=told)\n"
    )
    (tmp_path / "pack").write_bytes(pack)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "pack", tmp_path / "b"], capture_output=True
    )
    assert done.returncode == 9, done.stderr
    assert (tmp_path / ".b.unpacking").is_dir()
    assert digests(unpacked(pack, tmp_path / "b")) == digests(bundle)


def test_a_folder_to_go_on_in_that_is_none_of_ours_is_left_alone(pack, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    (tmp_path / ".b.unpacking").symlink_to(tmp_path / "mine")
    with pytest.raises(UnsafeInput, match="is no folder"):
        unpacked(pack, tmp_path / "b")
    assert (tmp_path / "mine" / "text").read_text() == "mine"
    if os.geteuid() == 0:
        (tmp_path / ".c.unpacking").mkdir()
        os.chown(tmp_path / ".c.unpacking", 12345, 12345)
        with pytest.raises(UnsafeInput, match="belongs to somebody else"):
            unpacked(pack, tmp_path / "c")


def test_two_do_not_unpack_to_one_place(pack, tmp_path):
    with folder_to_be(tmp_path / "b") as folder:
        (folder / "x").write_text("x")
        with pytest.raises(BusyError):
            unpacked(pack, tmp_path / "b")
    assert (tmp_path / "b" / "x").read_text() == "x"


def test_what_follows_the_end_is_refused(pack, tmp_path):
    assert f"byte {len(pack)}" in refused(pack + b"more", tmp_path)


@pytest.mark.fault("E9")
def test_a_frame_that_would_fill_the_memory_is_not_opened(tmp_path):
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 30))
    assert "1073741824 bytes of memory" in refused(bomb, tmp_path)


def test_a_frame_that_hides_its_size_is_not_opened(tmp_path):
    maker = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    refused(maker.compress(bytes(1 << 20)), tmp_path, BundlerError)


def test_what_is_no_pack_is_refused(tmp_path):
    for number, data in enumerate((b"PK\x03\x04 a zip", b"".join(framed([b"x" * 5000], 1)))):
        (tmp_path / str(number)).mkdir()
        refused(data, tmp_path / str(number), BundlerError)


def test_a_bundle_that_is_damaged_is_not_packed(bundle, tmp_path):
    broken = copied(bundle, tmp_path / "b")
    data = bytearray((broken / "corpora/b.zim").read_bytes())
    data[70_000] ^= 1
    (broken / "corpora/b.zim").write_bytes(data)
    with pytest.raises(DamagedError, match=r"corpora/b\.zim: other content within bytes 65536"):
        packed(broken)


def test_a_place_that_is_taken_is_left_alone(pack, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    with pytest.raises(UnsafeInput, match="not overwritten"):
        unpacked(pack, tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    with pytest.raises(UnsafeInput, match="not overwritten"):
        unpacked(pack, tmp_path / "c")
    assert os.listdir(tmp_path / "b") == ["mine"]


def test_a_disk_that_is_too_small_is_seen_before(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    refused(pack, tmp_path, DoesNotFit)


def test_nobody_is_believed_before_the_signature_is_judged(pack, tmp_path):
    def judge(folder, manifest, data):
        assert sorted(os.listdir(folder)) == ["manifest.json"]
        raise TrustError("unknown")

    frames = Frames(io.BytesIO(pack))
    with pytest.raises(TrustError):
        unpack_bundle(
            frames, open_pack(frames), tmp_path / "b", judge, told=lambda done, total: None
        )
    assert os.listdir(tmp_path) == []


def command(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "bundler", *map(str, words)], capture_output=True,
        env={**os.environ, "NO_COLOR": "1", "BUNDLER_KEYS": str(more.pop("keys"))}, **more,
    )  # fmt: skip


def test_the_commands_work_with_files_and_pipes(bundle, pack, tmp_path):
    keys = tmp_path / "keys"
    file = tmp_path / "b.tar.zst"
    assert command("pack", bundle, file, keys=keys).returncode == 0
    assert file.read_bytes() == pack
    assert command("pack", bundle, file, keys=keys).returncode == 8
    assert command("pack", bundle, "-", keys=keys).stdout == pack
    listing = command("unpack", file, "--list", keys=keys)
    assert b"models/chat/chat.gguf" in listing.stdout
    refused = command("unpack", file, tmp_path / "no", keys=keys)
    assert refused.returncode == 7
    assert b"the same command with --unsigned" in refused.stderr
    assert not (tmp_path / "no").exists()
    done = command("unpack", "-", tmp_path / "yes", "--unsigned", keys=keys, input=pack)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "yes") == digests(bundle)
    assert sorted(os.listdir(tmp_path)) == ["b.tar.zst", "yes"]
