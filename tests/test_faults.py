"""The fault catalogue's part A on whole builds: kills, injected errors, full disks, cut power, clocks, rot."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.errors import DamagedError
from bundler.verify import verify_bundle
from tests.attempts import (
    FULL,
    LOST_BY_PYTHON,
    ROOT,
    Attempt,
    calls_on_own_files,
    mounted,
    spread,
    steps,
)
from tests.demo import quickstart
from tests.fake_build import RECIPE, fakes, run
from tests.media import copied, sealed

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root"
)
# Root may do anything; without these two rights it is refused like anybody else.
needs_setpriv = pytest.mark.skipif(
    not shutil.which("setpriv") or (hasattr(os, "geteuid") and os.geteuid() != 0),
    reason="takes rights from root: needs setpriv, and root",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a build went through undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that makes `tests.fake_build` an installed plugin of the command line."""
    folder = tmp_path_factory.mktemp("plugins") / "bundler_fakes-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bundler-fakes\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text("[bundler]\nfakes = tests.fake_plugin:INSTALLED\n")
    return folder.parent


# -- A1: kill -9 -------------------------------------------------------------------------------------


@needs_strace
@pytest.mark.slow_sweep  # tests/test_pipeline.py kills a few builds each time
@pytest.mark.timeout(3600)
@pytest.mark.fault("A1")
@pytest.mark.parametrize(("call", "in_full"), [("rename", 40), ("fsync", 50), ("openat", 80)])
def test_killed_at_any_call_it_goes_on_and_does_nothing_twice(
    call, in_full, tmp_path, whole, plugin_path, cases_tried
):
    counted = Attempt(tmp_path / "counted", whole, plugin_path)
    chosen = spread(calls_on_own_files(counted, call, "json"), 0, in_full)
    for number in chosen:
        attempt = Attempt(tmp_path / str(number), whole, plugin_path)
        rule = f"inject={call}:signal=KILL:when={number}"
        done = attempt.build(
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", rule, progress="json"
        )  # fmt: skip
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        attempt.check_what_is_there()
        attempt.check_again(steps(done.stdout, "StepFinished"))
        shutil.rmtree(attempt.folder)
    cases_tried(len(chosen))


# -- A3: stopped twice -------------------------------------------------------------------------------


@pytest.mark.fault("A3")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_who_asks_twice_to_stop_does_not_wait(sent, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "bundler", "build", quickstart(), "--frozen",
         "--store", tmp_path / "store", "--output", tmp_path / "dist", "--progress", "plain"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    with process:
        for line in process.stdout:
            if "models/chat/quantize" in line:
                break
        process.send_signal(sent)
        time.sleep(0.02)
        process.send_signal(sent)
        begun = time.monotonic()
        said = process.stdout.read()
    assert time.monotonic() - begun < 10, "on an idle machine it is a tenth of a second"
    assert process.returncode in (128 + sent, -sent), (process.returncode, said)
    assert "fault of bundler" not in said
    assert not (tmp_path / "dist").exists()


# -- A4: the disk is full ----------------------------------------------------------------------------


@contextlib.contextmanager
def in_memory(point: Path, options: str) -> Iterator[Path]:
    """Mount a filesystem in memory for a while."""
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@as_root
@pytest.mark.root
@pytest.mark.timeout(1800)
@pytest.mark.fault("A4")
def test_however_full_the_disk_is_the_build_says_so_and_goes_on_when_there_is_room(
    tmp_path, whole, plugin_path, cases_tried
):
    chance = random.Random("room")
    count = 20 if FULL else 3
    failed = 0
    with in_memory(tmp_path / "small", "size=24m") as small:
        for _ in range(count):
            attempt = Attempt(small / "b", whole, plugin_path)
            ballast = small / "ballast"
            free_bytes = chance.randrange(64 << 10, 3 << 20)
            ballast.write_bytes(bytes(shutil.disk_usage(small).free - free_bytes))
            done = attempt.build()
            attempt.check_words(done)
            attempt.check_what_is_there()
            said = done.stdout + done.stderr
            assert done.returncode in (0, 4), said
            assert done.returncode == 0 or "free" in said or "left" in said, said
            failed += done.returncode == 4
            ballast.unlink()
            attempt.check_again()
            shutil.rmtree(attempt.folder)
    cases_tried(count)
    assert failed >= count // 2


# -- A5, A6: errors of the kernel ----------------------------------------------------------------------


MUST_FAIL = {"fsync": "all", "read": "some", "write": "some", "openat": "some", "link": "some"}
"""What is not on the disk is not called finished: no failed fsync is passed over, and a write that
failed is either done otherwise or said. A folder that cannot be removed or listed may be left."""


@needs_strace
@pytest.mark.timeout(3600)
@pytest.mark.fault("A5")
@pytest.mark.parametrize(
    "call",
    ["read", "write", "fsync", *(
        pytest.param(call, marks=pytest.mark.slow_sweep)
        for call in ("openat", "link", "mkdir", "getdents64", "unlinkat")
    )],
)  # fmt: skip
def test_an_error_of_the_disk_at_any_call_is_told_and_loses_nothing(
    call, tmp_path, whole, plugin_path, cases_tried
):
    counted = Attempt(tmp_path / "counted", whole, plugin_path)
    chosen = spread(calls_on_own_files(counted, call), 2, 16)
    failed = []
    for number in chosen:
        attempt = Attempt(tmp_path / str(number), whole, plugin_path)
        rule = f"inject={call}:error=EIO:when={number}"
        if attempt.check(attempt.build("strace", "-f", "-qq", "-o", "/dev/null", "-e", rule)):
            failed.append(number)
        shutil.rmtree(attempt.folder)
    cases_tried(len(chosen))
    assert MUST_FAIL.get(call) != "all" or failed == chosen
    assert call not in MUST_FAIL or failed


@needs_strace
@pytest.mark.timeout(3600)
@pytest.mark.fault("A6")
def test_a_rename_that_would_cross_filesystems_is_done_otherwise_or_told(
    tmp_path, whole, plugin_path, cases_tried
):
    counted = Attempt(tmp_path / "counted", whole, plugin_path)
    chosen = spread(calls_on_own_files(counted, "rename"), 3, 40)
    for number in chosen:
        attempt = Attempt(tmp_path / str(number), whole, plugin_path)
        rule = f"inject=rename:error=EXDEV:when={number}"
        attempt.check(attempt.build("strace", "-f", "-qq", "-o", "/dev/null", "-e", rule))
        shutil.rmtree(attempt.folder)
    cases_tried(len(chosen))


# -- A7: out of memory ---------------------------------------------------------------------------------


@pytest.mark.fault("A7")
@pytest.mark.skipif(not shutil.which("prlimit"), reason="prlimit is not installed")
@pytest.mark.parametrize(
    "most_mb", [180, *(pytest.param(mb, marks=pytest.mark.slow_sweep) for mb in (150, 165, 200, 230, 300))]
)  # fmt: skip
def test_a_build_with_too_little_memory_says_so_and_leaves_nothing(
    most_mb, tmp_path, whole, plugin_path
):
    attempt = Attempt(tmp_path / "b", whole, plugin_path)
    done = attempt.build("prlimit", f"--as={most_mb}000000", "--")
    attempt.check_words(done)
    attempt.check_what_is_there()
    if done.returncode:
        if LOST_BY_PYTHON not in done.stderr:
            assert done.returncode == 4, done.stderr
            assert "memory" in done.stderr
        assert not attempt.output.exists()
    attempt.check_again()


# -- A8: two at once -----------------------------------------------------------------------------------


@pytest.mark.fault("A8")
@pytest.mark.parametrize("apart", [0.0, 0.4])
def test_two_processes_building_the_same_both_end_with_the_right_bundle(
    apart, tmp_path, whole, plugin_path
):
    attempt = Attempt(tmp_path / "b", whole, plugin_path)
    with attempt.start() as one:
        time.sleep(apart)
        with attempt.start() as two:
            said = [process.communicate(timeout=120)[1] for process in (one, two)]
    assert 0 in (one.returncode, two.returncode), said
    assert {one.returncode, two.returncode} <= {0, 10}, said
    assert "Traceback" not in "".join(said)
    attempt.check_what_is_there()
    attempt.check_again()


def wait_for(path: Path, inside: str = "") -> None:
    """Wait until something lies there, or something of that name inside it."""
    deadline = time.monotonic() + 120
    while not (any(path.glob(inside)) if inside else path.exists()):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


# -- A9: one model, two recipes ------------------------------------------------------------------------


@pytest.mark.fault("A9")
def test_two_recipes_fetch_and_build_the_model_they_share_once(tmp_path):
    plugin = fakes()
    run(tmp_path, plugin)
    other = RECIPE.replace('name = "fake"', 'name = "other"')
    again = fakes()
    (tmp_path / "fake.lock").unlink()
    run(tmp_path, again, recipe=other)
    assert again.engine.runs == []
    assert again.source.opened == []


@pytest.mark.fault("A9")
def test_a_lock_held_by_a_process_that_died_is_taken_over(tmp_path, whole, plugin_path):
    attempt = Attempt(tmp_path / "b", whole, plugin_path)
    with attempt.start() as process:
        wait_for(attempt.folder / "store")
        process.kill()
    assert attempt.build().returncode == 0
    assert attempt.is_right()


# -- A10: the power goes -------------------------------------------------------------------------------


def cut_while_building(
    tmp_path: Path, whole: Path, plugin_path: Path, count: int
) -> list[tuple[Path, bool]]:
    """Build on an ext4 image until it was copied so often, each time at another moment.

    Returns:
        Copies of the image, and whether the bundle was not there yet when each was made.
    """
    chance = random.Random("power")
    image = tmp_path / "disk"
    cuts: list[tuple[Path, bool]] = []
    while len(cuts) < count:
        with image.open("wb") as stream:
            stream.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        with mounted(image, tmp_path / "mount") as point:
            attempt = Attempt(point / "b", whole, plugin_path)
            os.sync()
            with attempt.start() as process:
                wait_for(attempt.folder / "store")
                while process.poll() is None and len(cuts) < count:
                    time.sleep(chance.uniform(0.02, 0.4))
                    process.send_signal(signal.SIGSTOP)
                    cut = tmp_path / f"cut{len(cuts)}"
                    # What the image has now is what reached the device: the rest is in memory.
                    subprocess.run(["cp", "--sparse=always", image, cut], check=True)
                    cuts.append((cut, not attempt.output.exists()))
                    process.send_signal(signal.SIGCONT)
                said = process.communicate(timeout=120)[1]
                assert process.returncode == 0, said
    return cuts


@as_root
@pytest.mark.root
@pytest.mark.timeout(1800)
@pytest.mark.fault("A10")
def test_after_a_power_cut_what_has_a_final_name_is_whole_and_a_build_goes_on(
    tmp_path, whole, plugin_path, cases_tried
):
    cuts = cut_while_building(tmp_path, whole, plugin_path, 20 if FULL else 5)
    for cut, _ in cuts:
        with mounted(cut, tmp_path / "after") as point:
            attempt = Attempt(point / "b", whole, plugin_path)
            attempt.check_what_is_there()
            attempt.check_again()
    cases_tried(len(cuts))
    assert any(under_way for _, under_way in cuts)


# -- A11: read-only, other clocks ----------------------------------------------------------------------


@as_root
@pytest.mark.root
@pytest.mark.fault("A11")
def test_a_read_only_store_or_output_is_refused_in_words(tmp_path, whole, plugin_path, cases_tried):
    for name in ("store", "dist"):
        attempt = Attempt(tmp_path / f"for-{name}", whole, plugin_path)
        folder = attempt.folder / name
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], check=True)
        try:
            done = attempt.build()
        finally:
            subprocess.run(["umount", folder], check=True)
        said = done.stdout + done.stderr
        assert done.returncode == 4, said
        assert "ead-only" in said
        assert "Traceback" not in said
        folder.rmdir()
        assert attempt.build().returncode == 0
        assert attempt.is_right()
    cases_tried(2)


@pytest.mark.fault("A11")
@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed")
@pytest.mark.parametrize("shift", ["-10y", "+10y"])
def test_a_clock_ten_years_off_gives_the_same_bytes(shift, tmp_path, whole, plugin_path):
    attempt = Attempt(tmp_path / "b", whole, plugin_path)
    done = attempt.build("faketime", "-f", shift)
    assert done.returncode == 0, done.stdout + done.stderr
    assert attempt.is_right()


@needs_setpriv
@pytest.mark.fault("A11")
@pytest.mark.parametrize("name", ["store", "dist"])
def test_a_folder_that_one_may_not_write_to_is_refused_in_words(name, tmp_path, whole, plugin_path):
    attempt = Attempt(tmp_path / "b", whole, plugin_path)
    folder = attempt.folder / name
    folder.mkdir(mode=0o555)
    done = attempt.build("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
    assert done.returncode == 4, done.stderr
    attempt.check_words(done)
    assert "ermission" in done.stderr
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    attempt.check_again()


@pytest.mark.fault("A11")
@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed")
@pytest.mark.parametrize(("first", "then"), [("+10y", "-10y"), ("-10y", "+10y")])
def test_a_clock_that_changes_between_two_runs_changes_nothing(
    first, then, tmp_path, whole, plugin_path
):
    """Killed after its first step, and gone on with when it is twenty years later or earlier."""
    attempt = Attempt(tmp_path / "b", whole, plugin_path)
    with attempt.start("faketime", "-f", first) as process:
        wait_for(attempt.folder / "store/results", "*.json")
        process.kill()
    attempt.check_what_is_there()
    done = attempt.build("faketime", "-f", then)
    assert done.returncode == 0, done.stderr
    assert attempt.is_right()
    attempt.check_again()


# -- A12: rot between two steps ------------------------------------------------------------------------


@pytest.mark.fault("A12")
def test_a_flipped_bit_in_any_stored_object_never_gets_into_a_bundle(tmp_path, cases_tried):
    expected = run(tmp_path).manifest_sha256
    objects = sorted(p for p in (tmp_path / "store/objects").glob("*/*") if p.stat().st_size)
    assert len(objects) >= 5
    for path in objects:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.chmod(0o600)
        path.write_bytes(data)
        shutil.rmtree(tmp_path / "dist")
        # Either made anew at once, or told, with the damaged object gone: then the next build does.
        with contextlib.suppress(DamagedError):
            assert run(tmp_path).manifest_sha256 == expected, path
        assert run(tmp_path).manifest_sha256 == expected, path
        assert not verify_bundle(tmp_path / "dist/fake").findings
    cases_tried(len(objects))


# -- F7: other programs on the stick -------------------------------------------------------------------


@pytest.mark.fault("F7")
def test_another_program_on_the_stick_is_found_by_a_machine_that_is_trusted(tmp_path, cases_tried):
    bundle = copied(sealed(tmp_path), tmp_path / "stick")
    programs = [bundle / "start", bundle / "app/page00.html", bundle / "runtime/lib.so"]
    for program in programs:
        right = program.read_bytes()
        program.write_bytes(b"#!/bin/sh\ntouch /tmp/owned\n".ljust(len(right), b"#")[: len(right)])
        found = [finding.path for finding in verify_bundle(bundle).findings]
        assert found == [program.relative_to(bundle).as_posix()]
        program.write_bytes(right)
    cases_tried(len(programs))
