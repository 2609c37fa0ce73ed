"""Whole builds by the command line, in processes of their own: disturbed, judged, and done again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bundler.store import hash_file
from bundler.verify import verify_bundle
from tests.fake_build import RECIPE

ROOT = Path(__file__).parents[1]
FULL = os.environ.get("BUNDLER_SLOW_SWEEP") == "1"
LOST_BY_PYTHON = "SystemError: <built-in function exec> returned NULL without setting an exception"
NO_STEPS = ("lock", "fetch", "seal", "parity", "verify")
"""What a build says of itself as of steps: the work around them, and the one stage behind them all."""


class Attempt:
    """Builds of one recipe in one folder, by the command line, and what may never be seen."""

    def __init__(self, folder: Path, whole: Path, plugin_path: Path) -> None:
        self.folder, self.whole, self.plugin_path = folder, whole, plugin_path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.toml").write_text(RECIPE)
        shutil.copy(whole / "fake.lock", folder)

    def command(self, progress: str = "quiet") -> list[str]:
        return [
            sys.executable, "-B", "-m", "bundler", "build", str(self.folder / "fake.toml"),
            "--store", str(self.folder / "store"), "--output", str(self.output),
            "--progress", progress,
        ]  # fmt: skip

    @property
    def output(self) -> Path:
        return self.folder / "dist" / "fake"

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.plugin_path), str(ROOT)])
        return {**os.environ, "PYTHONPATH": path, "SOURCE_DATE_EPOCH": "1", "NO_COLOR": "1"}

    def build(self, *before: str, progress: str = "quiet") -> subprocess.CompletedProcess[str]:
        """Build in a process of its own, behind the words of another program if there are any."""
        return subprocess.run(
            [*before, *self.command(progress)], capture_output=True, text=True, check=False,
            timeout=300, cwd=ROOT, env=self.environment,
        )  # fmt: skip

    def start(self, *before: str) -> subprocess.Popen[str]:
        """Begin a build, and do not wait for it."""
        return subprocess.Popen(
            [*before, *self.command()], cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def is_right(self) -> bool:
        """Tell whether the bundle is byte for byte what the undisturbed build made."""
        wanted = hash_file(self.whole / "dist/fake/manifest.json")
        return (
            hash_file(self.output / "manifest.json") == wanted
            and not verify_bundle(self.output).findings
        )

    def check_what_is_there(self) -> None:
        """Whatever has a final name is whole: each object of the store, and the bundle."""
        for path in (self.folder / "store/objects").glob("*/*"):
            assert hash_file(path) == path.name, path
        if self.output.exists():
            assert self.is_right()

    def check_words(self, done: subprocess.CompletedProcess[str]) -> None:
        """A failure has words and a code, and no traceback; success is the right bundle."""
        said = done.stdout + done.stderr
        # strace counts in each thread: the call that failed may have been that of the error's text.
        # With no memory left Python itself may lose an error, and then nobody can catch it.
        if "_write_buffer" not in said and LOST_BY_PYTHON not in said:
            assert "Traceback" not in said, said
        assert "fault of bundler" not in said, said
        if done.returncode == 0:
            assert self.is_right(), said
        else:
            assert done.returncode in (1, 2, 4, 5, 6, 10), (done.returncode, said)
            assert "error" in said or LOST_BY_PYTHON in said, said

    def check_again(self, finished: frozenset[str] = frozenset()) -> None:
        """The same command once more makes it right, and does again nothing that was finished."""
        again = self.build(progress="json")
        assert again.returncode == 0, again.stdout + again.stderr
        assert self.is_right()
        assert [path.name for path in self.output.parent.iterdir()] == ["fake"]
        redone = finished & steps(again.stdout, "StepStarted")
        assert not redone, f"done twice: {redone}"

    def check(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Hold one attempt against the catalogue's oracle; tell whether it had failed."""
        self.check_words(done)
        self.check_what_is_there()
        self.check_again()
        return done.returncode != 0


def steps(said: str, event: str) -> frozenset[str]:
    """Return the steps of which a build told `event`: a last line that was cut off tells nothing."""
    events = []
    for line in said.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return frozenset(
        one["step"] for one in events
        if one.get("event") == event and one["step"].split()[0] not in NO_STEPS
        and one.get("outcome") != "cached"
    )  # fmt: skip


def calls_on_own_files(attempt: Attempt, call: str, progress: str = "quiet") -> list[int]:
    """Return which calls of one kind, counted in the main thread, touch the build's folder."""
    trace = attempt.folder.with_suffix(".strace")
    done = attempt.build(
        "strace", "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace=execve,{call}",
        progress=progress,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = trace.read_text(errors="replace").splitlines()
    main = lines[0].split()[0]  # whoever called execve
    own = [line for line in lines if line.split()[0] == main and f" {call}(" in line]
    return [number for number, line in enumerate(own, 1) if str(attempt.folder) in line]


def spread(numbers: list[int], count: int, in_full: int) -> list[int]:
    """Return so many of them from the first to the last; more of them in the long sweep."""
    wanted = in_full if FULL else count
    if len(numbers) <= wanted:
        return numbers
    step = (len(numbers) - 1) / max(1, wanted - 1)
    return [numbers[round(index * step)] for index in range(wanted)]


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    """Mount an ext4 image for a while."""
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
