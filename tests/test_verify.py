"""Sealing and verifying: the bundle is what its manifest says, and every lie is named."""

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.errors import DamagedError, UnsafeInput
from bundler.hardware import Target
from bundler.layout import Layout
from bundler.manifest import Manifest
from bundler.seal import seal, sweep_leftovers
from bundler.store import Store
from bundler.verify import verify_bundle
from bundler.world import World

FILES = {"models/a.gguf": b"weights" * 999, "corpora/b.zim": b"zim" * 99, "start": b"#!/bin/sh\n"}


def manifest_for(layout: Layout) -> Manifest:
    return Manifest(
        name="test", version="1", title="Test", created=1, builder="bundler test",
        target=Target(name="t", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="1" * 64, models=(), corpora=(), step_keys={},
        files=layout.files(),
    )  # fmt: skip


def sealed(folder, files=FILES):
    world = World(store=Store(folder / "store"))
    layout = Layout()
    for path, data in files.items():
        if path == "start":
            layout.add_data(path, data, executable=True)
        else:
            layout.add_object(path, *world.store.put(data))
    done = seal(layout, manifest_for(layout), folder / "dist" / "b", world)
    return folder / "dist" / "b", done.manifest_sha256, world, layout


@pytest.fixture
def bundle(tmp_path):
    return sealed(tmp_path)[0]


def kinds(bundle):
    return {(f.kind, f.path) for f in verify_bundle(bundle).findings}


def spoil(path, data):
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(data)


def test_a_fresh_bundle_is_as_its_manifest_says(bundle):
    assert kinds(bundle) == set()
    assert os.access(bundle / "start", os.X_OK)


def test_sha256sum_alone_can_check_a_bundle(bundle):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True)
    assert done.returncode == 0
    assert done.stdout.count(b": OK") == len(FILES) + 2


@pytest.mark.fault("C6")
def test_one_changed_byte_is_named(bundle):
    data = bytearray(FILES["models/a.gguf"])
    data[1000] ^= 1
    spoil(bundle / "models/a.gguf", bytes(data))
    assert kinds(bundle) == {("changed", "models/a.gguf")}


@pytest.mark.fault("C7")
def test_missing_extra_and_renamed_files_are_told_apart(bundle):
    (bundle / "corpora/b.zim").rename(bundle / "corpora/c.zim")
    (bundle / "start").unlink()
    (bundle / "autorun.inf").write_bytes(b"x")
    assert kinds(bundle) == {
        ("renamed", "corpora/b.zim"), ("missing", "start"), ("extra", "autorun.inf"),
    }  # fmt: skip


def test_a_link_in_a_bundle_is_unsafe_and_not_followed(bundle):
    (bundle / "start").unlink()
    (bundle / "start").symlink_to("/bin/sh")
    assert ("unsafe", "start") in kinds(bundle)


@pytest.mark.fault("C7")
@pytest.mark.parametrize("path", ["start", "models/a.gguf", "SHA256SUMS", "manifest.json"])
def test_a_file_of_no_bytes_is_named(bundle, path):
    spoil(bundle / path, b"")
    assert path in {name for _, name in kinds(bundle)}


@pytest.mark.fault("C7")
def test_swapped_files_are_both_named(bundle):
    a, b = (FILES[p] for p in ("models/a.gguf", "corpora/b.zim"))
    spoil(bundle / "models/a.gguf", b)
    spoil(bundle / "corpora/b.zim", a)
    assert kinds(bundle) == {("changed", "models/a.gguf"), ("changed", "corpora/b.zim")}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.fault("C6")
def test_no_flipped_bit_anywhere_goes_unnoticed(data, flipped_bundle):
    path = data.draw(st.sampled_from(sorted(p for p in flipped_bundle.rglob("*") if p.is_file())))
    content = path.read_bytes()
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    spoil(path, bytes(changed))
    try:
        findings = verify_bundle(flipped_bundle).findings
    except DamagedError:
        findings = (path.name,)
    finally:
        spoil(path, content)
    assert findings


@pytest.fixture(scope="module")
def flipped_bundle(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("flip"))[0]


def test_the_same_parts_make_the_same_bytes(tmp_path):
    one, first, *_ = sealed(tmp_path / "1")
    two, second, *_ = sealed(tmp_path / "2")
    assert first == second
    assert (one / "SHA256SUMS").read_bytes() == (two / "SHA256SUMS").read_bytes()


def test_big_files_are_held_once(tmp_path):
    bundle, _, world, layout = sealed(tmp_path)
    entry = layout.entries["models/a.gguf"].file
    assert (bundle / "models/a.gguf").samefile(world.store.object_path(entry.sha256))


def test_a_bundle_that_is_right_is_left_alone(tmp_path):
    bundle, _, world, layout = sealed(tmp_path)
    before = (bundle / "start").stat().st_ino
    seal(layout, manifest_for(layout), bundle, world)
    assert (bundle / "start").stat().st_ino == before


def test_a_damaged_bundle_is_made_anew(tmp_path):
    bundle, _, world, layout = sealed(tmp_path)
    (bundle / "start").write_bytes(b"evil")
    seal(layout, manifest_for(layout), bundle, world)
    assert kinds(bundle) == set()


def test_a_damaged_object_never_gets_into_a_bundle_and_the_old_one_stays(tmp_path):
    bundle, digest, world, layout = sealed(tmp_path)
    entry = layout.entries["models/a.gguf"].file
    stored = world.store.object_path(entry.sha256)
    stored.chmod(0o644)
    spoiled = bytearray(stored.read_bytes())
    spoiled[5] ^= 1
    stored.unlink()
    stored.write_bytes(spoiled)
    (bundle / "start").unlink()
    with pytest.raises(DamagedError, match="removed"):
        seal(layout, manifest_for(layout), bundle, world)
    assert (bundle / "models/a.gguf").read_bytes() == FILES["models/a.gguf"]
    world.store.put(FILES["models/a.gguf"])
    assert seal(layout, manifest_for(layout), bundle, world).manifest_sha256 == digest
    assert kinds(bundle) == set()


@pytest.mark.fault("C5")
def test_a_program_that_lost_its_executable_bit_is_named(tmp_path):
    bundle, *_ = sealed(tmp_path, {**FILES})
    assert kinds(bundle) == set()
    (bundle / "start").chmod(0o644)
    # Not one program is marked: as on a stick with exFAT, where that is nobody's fault.
    assert kinds(bundle) == set()


def test_an_output_that_is_a_link_or_has_odd_letters_is_sealed_where_it_leads(tmp_path):
    _, _, world, layout = sealed(tmp_path)
    real = tmp_path / "real [1]"
    link = tmp_path / "link"
    link.symlink_to(real)
    for _ in range(2):
        seal(layout, manifest_for(layout), link, world)
        assert kinds(real) == set()
        (real / "start").write_bytes(b"changed")
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dist", "link", "real [1]", "store"]


def test_what_is_no_bundle_is_never_replaced(tmp_path):
    _, _, world, layout = sealed(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear")
    with pytest.raises(UnsafeInput, match="not a bundle"):
        seal(layout, manifest_for(layout), mine, world)
    assert (mine / "diary.txt").read_text() == "dear"


def test_a_build_killed_while_swapping_leaves_one_whole_bundle(tmp_path):
    bundle, _, world, _ = sealed(tmp_path)
    bundle.rename(bundle.with_name(".b.old-xyz"))
    (bundle.parent / ".b.partial-abc").mkdir()
    sweep_leftovers(bundle, world)
    assert kinds(bundle) == set()
    assert os.listdir(bundle.parent) == ["b"]


@pytest.mark.fault("C4")
def test_two_names_that_differ_only_in_case_are_refused():
    layout = Layout()
    layout.add_data("A/x", b"1")
    with pytest.raises(UnsafeInput, match="want the path"):
        layout.add_data("a/X", b"2")
