"""Segments and parity: computed once, the same every time, and good for any PAR2 program."""

import hashlib
import os
import shutil
import struct
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.errors import DamagedError, UnsafeInput
from bundler.grouping import (
    MOST_BLOCKS,
    MOST_PIECES,
    SET_SEGMENTS,
    Piece,
    grouped,
    parity_bytes,
    pieces_of,
)
from bundler.manifest import BundleFile, Manifest
from bundler.media import par2
from bundler.media.objects import Objects
from bundler.media.packets import MAGIC, RECOVERY, scan, set_ids
from bundler.media.parity import make_set
from bundler.planning.parity_room import planned_parity_bytes, room_without_parity
from bundler.segments import hash_with_segments
from bundler.store import Store
from bundler.value import pretty_json
from bundler.verify import read_manifest, verify_bundle
from tests.media import SEGMENT_BYTES, copied, digests, noise, overwrite, packet, sealed, some_files

MIB = 1 << 20
needs_par2 = pytest.mark.skipif(shutil.which("par2") is None, reason="no par2 of the system's own")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("parity"))


# -- segments ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 5 * 4096), segment_bytes=st.sampled_from([4096, 8192]))
def test_one_reading_gives_the_files_digest_and_that_of_each_segment(
    size, segment_bytes, tmp_path_factory
):
    data = noise(str(size), size)
    path = tmp_path_factory.mktemp("one") / "file"
    path.write_bytes(data)
    whole, segments = hash_with_segments(path, segment_bytes)
    assert whole == hashlib.sha256(data).hexdigest()
    assert list(segments) == [
        hashlib.sha256(data[at : at + segment_bytes]).hexdigest()
        for at in range(0, size, segment_bytes)
    ]


def test_a_file_that_can_be_read_only_once_is_enough(tmp_path):
    data, pipe = noise("pipe", 300_000), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    whole, segments = hash_with_segments(pipe, SEGMENT_BYTES)
    writer.join()
    assert whole == hashlib.sha256(data).hexdigest()
    assert len(segments) == 5


def test_segments_of_an_object_are_remembered_and_not_hashed_again(tmp_path):
    store = Store(tmp_path)
    sha256, _ = store.put(noise("a", 3 * SEGMENT_BYTES))
    first = Objects(store).segments(sha256, SEGMENT_BYTES)
    path = store.object_path(sha256)
    path.chmod(0o644)
    overwrite(path, 5, 1)
    assert Objects(store).segments(sha256, SEGMENT_BYTES) == first
    with pytest.raises(DamagedError, match="removed"):
        Objects(store).segments(sha256, SEGMENT_BYTES * 2)


def test_the_manifest_names_the_segments_of_large_files_only(bundle):
    for file in read_manifest(bundle).files:
        data = (bundle / file.path).read_bytes()
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        pieces = pieces_of(file, SEGMENT_BYTES)
        assert (file.segments is None) is (file.size_bytes <= SEGMENT_BYTES)
        for piece in pieces:
            part = data[piece.offset : piece.offset + piece.size_bytes]
            assert hashlib.sha256(part).hexdigest() == piece.sha256
        assert sum(piece.size_bytes for piece in pieces) == file.size_bytes


def test_verify_names_the_ranges_that_are_damaged(bundle, tmp_path):
    stick = copied(bundle, tmp_path / "stick")
    overwrite(stick / "models/chat/chat.gguf", 5 * SEGMENT_BYTES + 9, 1)
    overwrite(stick / "models/chat/chat.gguf", 7 * SEGMENT_BYTES - 1, 2)
    (finding,) = verify_bundle(stick).findings
    assert finding.ranges == ((5 * SEGMENT_BYTES, 8 * SEGMENT_BYTES),)
    assert f"bytes {5 * SEGMENT_BYTES}-{8 * SEGMENT_BYTES - 1} of" in str(finding)


def test_a_cut_file_names_the_ranges_that_are_gone(bundle, tmp_path):
    stick = copied(bundle, tmp_path / "stick")
    os.truncate(stick / "corpora/b.zim", 8 * SEGMENT_BYTES - 3)
    (finding,) = verify_bundle(stick).findings
    assert finding.ranges == ((7 * SEGMENT_BYTES, 9 * SEGMENT_BYTES),)
    assert "instead of" in finding.detail


# -- groups --------------------------------------------------------------------------------------------

sizes = st.lists(
    st.one_of(st.integers(0, 5000), st.integers(0, 4 * MIB), st.integers(0, 3000 * MIB)),
    max_size=60,
)


def files_of(sizes, segment_bytes=16 * MIB):
    return [
        BundleFile(
            path=f"f{number:04d}", size_bytes=size, sha256="0" * 64,
            segments=("0" * 64,) * -(-size // segment_bytes) if size > segment_bytes else None,
        )
        for number, size in enumerate(sizes)
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, percent=st.floats(0.1, 50))
def test_every_byte_is_in_exactly_one_set_and_no_set_is_too_large(sizes, percent):
    pieces = [p for f in files_of(sizes) for p in pieces_of(f, 16 * MIB)]
    groups = grouped(pieces, percent, 16 * MIB)
    inside = [piece for group in groups for piece in group.pieces]
    assert sorted(inside) == sorted(piece for piece in pieces if piece.size_bytes)
    for group in groups:
        assert sum(piece.size_bytes for piece in group.pieces) <= SET_SEGMENTS * 16 * MIB
        assert len(group.pieces) <= MOST_PIECES
        assert group.data_blocks <= MOST_BLOCKS
        assert (
            group.data_blocks >= group.recovery_blocks >= group.data_blocks * percent / 100 - 1e-6
        )


def test_without_parity_there_are_no_sets():
    assert grouped([Piece("a", None, 0, 5)], 0, 4096) == ()
    assert parity_bytes([10**9], 0) == planned_parity_bytes(10**9, 0) == 0
    assert room_without_parity(10**9, 0) == 10**9


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(0, 10**13), percent=st.floats(0, 50))
def test_what_is_planned_beside_parity_fits_with_it(capacity, percent):
    room = room_without_parity(capacity, percent)
    assert 0 <= room <= capacity
    if room:
        assert room + planned_parity_bytes(room, percent) <= capacity


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(20 * MIB, 9000 * MIB), min_size=1, max_size=6),
    percent=st.floats(1, 50),
)
def test_plans_take_parity_for_a_little_more_than_it_is(sizes, percent):
    real = parity_bytes(sizes, percent)
    planned = planned_parity_bytes(sum(sizes), percent)
    slack = 4 * 512 * 1024 * (len(sizes) + sum(sizes) // (SET_SEGMENTS * 16 * MIB) + 1)
    # Too much by a thousandth of the bundle at most: what describes the pieces, rounded up.
    assert real - slack <= planned <= 1.05 * real + sum(sizes) / 1000 + 10 * MIB


@pytest.mark.parametrize("percent", [1, 5, 20])
def test_parity_is_as_large_as_foretold(tmp_path, percent):
    bundle = sealed(tmp_path, percent=percent)
    manifest = read_manifest(bundle)
    names = {one.file for one in manifest.parity.sets}
    real = sum(f.size_bytes for f in manifest.files if f.path in names)
    told = parity_bytes(
        [f.size_bytes for f in manifest.files if f.path not in names], percent, SEGMENT_BYTES
    )
    assert real <= told <= 1.15 * real
    assert real >= percent / 100 * sum(map(len, some_files().values()))


def test_a_bundle_may_have_no_parity_and_damage_is_still_found(tmp_path):
    bundle = sealed(tmp_path, percent=0)
    assert sorted(os.listdir(bundle / "parity")) == ["manifest.json"]
    assert verify_bundle(bundle).findings == ()
    stick = copied(bundle, tmp_path / "stick")
    overwrite(stick / "corpora/b.zim", 99, 1)
    assert [f.path for f in verify_bundle(stick).findings] == ["corpora/b.zim"]


# -- the same bytes ------------------------------------------------------------------------------------


def test_two_builds_in_two_places_give_the_same_parity(bundle, tmp_path):
    assert digests(sealed(tmp_path / "elsewhere")) == digests(bundle)


def test_sets_do_not_depend_on_threads_or_memory(tmp_path):
    view = tmp_path / "view"
    view.mkdir()
    for name in "abc":
        (view / name).write_bytes(noise(name, 3 * MIB + 17))
    made = set()
    for number, words in enumerate((["-t1", "-m16"], ["-t2", "-m512"], ["-t4", "-T2"])):
        names = [str(view / name) for name in "abc"]
        output = tmp_path / f"made{number}"
        subprocess.run(
            [par2.program(), "create", "-q", "-q", *words, "-s8192", "-c60", "-n1", f"-B{view}",
             f"-a{output}", *names], check=True, capture_output=True,
        )  # fmt: skip
        (volume,) = tmp_path.glob(f"made{number}.vol*")
        made.add(volume.read_bytes())
    assert len(made) == 1


def test_a_set_is_remembered_and_one_changed_file_makes_one_set_anew(tmp_path):
    store = Store(tmp_path / "store")
    bundle = sealed(tmp_path)
    before = {p.name for p in (store.root / "results").iterdir()}
    sealed(tmp_path)
    assert {p.name for p in (store.root / "results").iterdir()} == before
    files = some_files() | {"app/page03.html": b"changed"}
    sets = {one.file: digests(bundle)[one.file] for one in read_manifest(bundle).parity.sets}
    changed = sealed(tmp_path, files)
    now = digests(changed)
    assert sorted(path for path, digest in sets.items() if now[path] != digest) == [
        "parity/0001.par2"
    ]


def test_the_manifest_is_there_twice_and_what_nobody_lists_protects_itself(bundle):
    assert (bundle / "manifest.json").read_bytes() == (bundle / "parity/manifest.json").read_bytes()
    found = scan(bundle / "parity/head.par2", MIB)
    assert found.damaged_bytes == 0
    assert len(set_ids(found)) == 1
    assert len({p.body for p in found.of(RECOVERY)}) >= 4


# -- other programs ------------------------------------------------------------------------------------


def debians(*words, folder):
    return subprocess.run(
        ["/usr/bin/par2", *map(str, words)], cwd=folder, capture_output=True, text=True
    )


@needs_par2
def test_debians_par2_verifies_and_repairs_sets_of_small_files_in_the_bundle(bundle, tmp_path):
    stick = copied(bundle, tmp_path / "stick")
    assert debians("verify", "-q", "-B", stick, "parity/0001.par2", folder=stick).returncode == 0
    assert debians("verify", "-q", "-B", stick, "parity/head.par2", folder=stick).returncode == 0
    before = digests(stick)
    overwrite(stick / "app/page05.html", 3, 60)
    (stick / "app/page07.html").unlink()
    overwrite(stick / "SHA256SUMS", 100, 5)
    assert debians("verify", "-q", "-B", stick, "parity/0001.par2", folder=stick).returncode == 1
    for name in ("parity/0001.par2", "parity/head.par2"):
        done = debians("repair", "-q", "-B", stick, name, folder=stick)
        assert done.returncode == 0, done.stdout
    after = digests(stick)
    assert {path for path in before if after[path] != before[path]} == set()


@needs_par2
def test_debians_par2_repairs_a_large_file_after_split(bundle, tmp_path):
    """The commands of docs/bundle.md, as they are written there."""
    stick, work = copied(bundle, tmp_path / "stick"), tmp_path / "work"
    damaged = stick / "models/chat/chat.gguf"
    right = damaged.read_bytes()
    overwrite(damaged, 3 * SEGMENT_BYTES, 9 * SEGMENT_BYTES // 4)
    for path in ("models/chat/chat.gguf", "corpora/b.zim"):
        (work / path).parent.mkdir(parents=True)
        subprocess.run(
            ["split", "-b", str(SEGMENT_BYTES), "-d", "-a", "5", stick / path, f"{work / path}."],
            check=True,
        )
    set_of_it = next(
        one for one in read_manifest(stick).parity.sets
        if any(part.path.endswith("gguf") and part.count > 1 for part in one.slices)
    )  # fmt: skip
    for path in set_of_it.files:
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(stick / path, work / path)
    shutil.copy(stick / set_of_it.file, work / "set.par2")
    assert debians("verify", "-q", "-B", work, "set.par2", folder=work).returncode == 1
    done = debians("repair", "-q", "-B", work, "set.par2", folder=work)
    assert done.returncode == 0, done.stdout
    parts = sorted(work.glob("models/chat/chat.gguf.[0-9][0-9][0-9][0-9][0-9]"))
    assert b"".join(part.read_bytes() for part in parts) == right


# -- hostile files -------------------------------------------------------------------------------------


def test_packets_are_found_behind_damage_and_none_that_is_damaged_is_used(tmp_path):
    good = packet(RECOVERY, struct.pack("<I", 7) + bytes(400))
    bad = bytearray(good)
    bad[80] ^= 1
    path = tmp_path / "x.par2"
    path.write_bytes(b"rubbish" + bytes(bad) + good + MAGIC)
    found = scan(path, 400)
    assert [p.body for p in found.packets] == [struct.pack("<I", 7)]
    assert found.damaged_bytes == 7 + len(bad) + len(MAGIC)


def test_lengths_that_lie_are_not_believed(tmp_path):
    path = tmp_path / "x.par2"
    for length in (0, 1, 63, 64, 2**63, 2**64 - 1):
        path.write_bytes(MAGIC + struct.pack("<Q", length) + bytes(48))
        assert scan(path, 400).packets == []


def test_a_maze_of_packets_is_left(tmp_path):
    fake = MAGIC + struct.pack("<Q", 4 << 20) + bytes(32) + b"PAR 2.0\0Main\0\0\0\0"
    path = tmp_path / "x.par2"
    path.write_bytes(fake * 200_000)
    with pytest.raises(UnsafeInput, match="maze"):
        scan(path, 400)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), at=st.integers(0, 2000), cut=st.integers(0, 2000))
def test_no_rubbish_makes_the_reader_fail(data, at, cut, tmp_path_factory):
    row = packet(RECOVERY, struct.pack("<I", 1) + bytes(400)) * 4
    path = tmp_path_factory.mktemp("rubbish") / "x.par2"
    path.write_bytes(row[: at % len(row)] + data + row[cut % len(row) :])
    found = scan(path, 400)
    assert all(p.body == struct.pack("<I", 1) for p in found.packets)
    assert found.damaged_bytes + sum(p.length for p in found.packets) == path.stat().st_size


def test_making_a_set_of_a_file_that_is_too_short_is_noticed(tmp_path):
    from bundler.errors import StepFailed

    (group,) = grouped([Piece("a", None, 0, 9000)], 10, 1 << 20)
    (tmp_path / "w").mkdir()
    with pytest.raises(StepFailed, match="another set"):
        make_set(group, lambda piece, target: target.write_bytes(b"short"), tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m["files"].append(m["files"][0]), "twice"),
        (lambda m: m["files"].append({**m["files"][0], "path": "MODELS/chat/chat.gguf"}), "twice"),
        (lambda m: m["files"].append({**m["files"][0], "path": "start/x"}), "below another"),
        (lambda m: m["files"].append({**m["files"][0], "path": "parity/head.par2"}), "own"),
        (lambda m: m["files"].append({**m["files"][0], "path": "../up"}), "plain relative"),
        (lambda m: m["files"][0].update(size_bytes=-1), "negative"),
        (lambda m: m["parity"]["sets"][0].update(file="gone.par2"), "not among"),
        (lambda m: m["parity"]["sets"][0]["files"].append("gone"), "not there"),
        (lambda m: m["parity"]["sets"][1]["files"].append("start"), "in two parity sets"),
        (lambda m: m["parity"]["sets"][-1]["slices"][0].update(first=99), "not there"),
        (lambda m: m.update(segment_bytes=5), "multiple of 4096|greater than"),
        (lambda m: m["parity"]["sets"][0].update(block_bytes=1 << 40), "less than"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_hang_together_is_refused(bundle, change, word):
    said = read_manifest(bundle).model_dump(mode="json", exclude_none=True)
    said["parity"]["sets"][0]["files"] = list(said["parity"]["sets"][0]["files"])
    change(said)
    with pytest.raises(ValueError, match=word):
        Manifest.model_validate_json(pretty_json(said))
