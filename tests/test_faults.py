"""The fault catalogue's part A on whole builds: injected errors, cut power, other clocks, rot."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.errors import DamagedError
from bundler.store import hash_file
from bundler.verify import verify_bundle
from tests.fake_build import RECIPE, fakes, run
from tests.media import copied, sealed

ROOT = Path(__file__).parents[1]
FULL = os.environ.get("BUNDLER_SLOW_SWEEP") == "1"
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root"
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


class Attempt:
    """Builds of one recipe in one folder, by the command line, and what may never be seen."""

    def __init__(self, folder: Path, whole: Path, plugin_path: Path) -> None:
        self.folder, self.whole, self.plugin_path = folder, whole, plugin_path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.toml").write_text(RECIPE)
        shutil.copy(whole / "fake.lock", folder)

    def command(self) -> list[str]:
        return [
            sys.executable, "-B", "-m", "bundler.cli", "build", str(self.folder / "fake.toml"),
            "--store", str(self.folder / "store"), "--output", str(self.output),
            "--progress", "quiet",
        ]  # fmt: skip

    @property
    def output(self) -> Path:
        return self.folder / "dist" / "fake"

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.plugin_path), str(ROOT)])
        return {**os.environ, "PYTHONPATH": path, "SOURCE_DATE_EPOCH": "1", "NO_COLOR": "1"}

    def build(self, *before: str) -> subprocess.CompletedProcess[str]:
        """Build in a process of its own, behind the words of another program if there are any."""
        return subprocess.run(
            [*before, *self.command()], capture_output=True, text=True, check=False, timeout=300,
            cwd=self.folder, env=self.environment,
        )  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(), cwd=self.folder, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def is_right(self) -> bool:
        """Tell whether the bundle is byte for byte what the undisturbed build made."""
        wanted = hash_file(self.whole / "dist/fake/manifest.json")
        return (
            hash_file(self.output / "manifest.json") == wanted
            and not verify_bundle(self.output).findings
        )

    def check(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Hold one attempt against the catalogue's oracle; tell whether it had failed.

        Success is the right bundle; failure has words, a code, no traceback and no half of a
        bundle; and the same command once more makes it right.
        """
        said = done.stdout + done.stderr
        # strace counts in each thread: the call that failed may have been that of the error's text.
        if "_write_buffer" not in said:
            assert "Traceback" not in said, said
        assert "fault of bundler" not in said, said
        if done.returncode == 0:
            assert self.is_right(), said
        else:
            assert done.returncode in (1, 2, 4, 5, 6, 10), (done.returncode, said)
            assert "error" in said, said
        if self.output.exists():
            assert not verify_bundle(self.output).findings
        again = self.build()
        assert again.returncode == 0, again.stdout + again.stderr
        assert self.is_right()
        assert [path.name for path in self.output.parent.iterdir()] == ["fake"]
        return done.returncode != 0


# -- A5, A6: errors of the kernel ----------------------------------------------------------------------


def calls_on_own_files(attempt: Attempt, call: str) -> list[int]:
    """Return which calls of one kind, counted in the main thread, touch the build's folder."""
    trace = attempt.folder.with_suffix(".strace")
    done = attempt.build(
        "strace", "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace=execve,{call}"
    )
    assert done.returncode == 0, done.stderr
    lines = trace.read_text(errors="replace").splitlines()
    main = lines[0].split()[0]  # whoever called execve
    own = [line for line in lines if line.split()[0] == main and f" {call}(" in line]
    return [number for number, line in enumerate(own, 1) if str(attempt.folder) in line]


def spread(numbers: list[int], count: int) -> list[int]:
    """Return `count` of them from the first to the last; all of them in the long sweep."""
    if FULL or len(numbers) <= count:
        return numbers
    return [numbers[index * (len(numbers) - 1) // (count - 1)] for index in range(count)]


@needs_strace
@pytest.mark.timeout(3600)
@pytest.mark.fault("A5")
@pytest.mark.parametrize("call", ["read", "write", "fsync", "fdatasync"])
def test_an_error_of_the_disk_at_any_call_is_told_and_loses_nothing(
    call, tmp_path, whole, plugin_path, cases_tried
):
    numbers = calls_on_own_files(Attempt(tmp_path / "counted", whole, plugin_path), call)
    chosen = spread(numbers, 5)
    failed = 0
    for number in chosen:
        attempt = Attempt(tmp_path / str(number), whole, plugin_path)
        rule = f"inject={call}:error=EIO:when={number}"
        failed += attempt.check(attempt.build("strace", "-f", "-qq", "-o", "/dev/null", "-e", rule))
        shutil.rmtree(attempt.folder)
    cases_tried(len(chosen))
    assert not numbers or failed >= len(chosen) // 2


@needs_strace
@pytest.mark.timeout(3600)
@pytest.mark.fault("A6")
def test_a_rename_that_would_cross_filesystems_is_done_otherwise_or_told(
    tmp_path, whole, plugin_path, cases_tried
):
    numbers = calls_on_own_files(Attempt(tmp_path / "counted", whole, plugin_path), "rename")
    chosen = spread(numbers, 6)
    for number in chosen:
        attempt = Attempt(tmp_path / str(number), whole, plugin_path)
        rule = f"inject=rename:error=EXDEV:when={number}"
        attempt.check(attempt.build("strace", "-f", "-qq", "-o", "/dev/null", "-e", rule))
        shutil.rmtree(attempt.folder)
    cases_tried(len(chosen))


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
        deadline = time.monotonic() + 60
        while not (attempt.folder / "store").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert attempt.build().returncode == 0
    assert attempt.is_right()


# -- A10: the power goes -------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    """Mount an ext4 image for a while."""
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def cut_while_building(
    tmp_path: Path, whole: Path, plugin_path: Path, moments: list[float]
) -> list[Path]:
    """Build on an ext4 image; return copies of the image as it was at each moment."""
    image, cuts = tmp_path / "disk", []
    with image.open("wb") as stream:
        stream.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(image, tmp_path / "mount") as point:
        attempt = Attempt(point / "b", whole, plugin_path)
        with attempt.start() as process:
            begun = time.monotonic()
            for index, moment in enumerate(moments):
                time.sleep(max(0.0, begun + moment - time.monotonic()))
                cut = tmp_path / f"cut{index}"
                # What the image has now is what reached the device: the rest is in memory.
                shutil.copyfile(image, cut)
                cuts.append(cut)
            assert process.wait(120) == 0
    return cuts


@as_root
@pytest.mark.root
@pytest.mark.timeout(1800)
@pytest.mark.fault("A10")
def test_after_a_power_cut_what_has_a_final_name_is_whole_and_a_build_goes_on(
    tmp_path, whole, plugin_path, cases_tried
):
    chance = random.Random("power")
    count = 20 if FULL else 5
    moments = sorted(chance.uniform(0.3, 2.5) for _ in range(count))
    for cut in cut_while_building(tmp_path, whole, plugin_path, moments):
        with mounted(cut, tmp_path / "after") as point:
            folder = point / "b"
            if not (folder / "fake.lock").exists():
                continue
            attempt = Attempt(folder, whole, plugin_path)
            for path in (folder / "store/objects").glob("*/*"):
                assert hash_file(path) == path.name, path
            if attempt.output.exists():
                assert not verify_bundle(attempt.output).findings
            assert attempt.build().returncode == 0
            assert attempt.is_right()
    cases_tried(count)


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
