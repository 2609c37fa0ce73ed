"""Times `bundler deploy` against copying, flushing and reading once by hand, on the same bytes.

    .venv/bin/python bench/deploying.py --mib 960 --folder /media/stick

Both begin from a source in the page cache and an empty folder, in turns; what the other one wrote is
flushed and removed before. By hand is `cp -r`, `sync -f`, and one reading of all files from the
device with `cat`, their pages dropped first. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.media import Sealing
from bundler.deploy.cargo import cargo_of
from bundler.deploy.outcome import Wishes
from bundler.deploy.stick import deploy_to


def deploy_ratios(mib: int, runs: int = 5, folder: Path | None = None) -> dict[str, float]:
    """Return what deploying takes, as a multiple of doing its parts by hand.

    Each begins as often as the other; the ratio is the median over pairs that ran one after the other,
    since a disk that others use is not the same disk for long.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        bundle = Sealing(Path(name), mib).bundle()
        stick = Path(name) / "stick"
        subprocess.run(
            ["grep", "-rqF", "nothing like this", bundle], check=False
        )  # warms the cache
        tries = []
        for number in range(runs):
            ways = [(_ours, bundle, stick), (_by_hand, bundle, stick)]
            seconds = {way[0]: _fresh(*way) for way in (ways if number % 2 else ways[::-1])}
            tries.append((seconds[_ours], seconds[_by_hand]))
        resumed = _resumed_bytes(bundle, stick)
    ours, by_hand = (statistics.median(column) for column in zip(*tries, strict=True))
    return {
        "deploy, wall_ratio to cp + sync + one read": statistics.median(a / b for a, b in tries),
        "deploy, MiB/s": mib / ours,
        "cp + sync + one read, MiB/s": mib / by_hand,
        "resume after a kill, segments copied again": resumed / (16 << 20),
    }


def _fresh(way: Callable[[Path, Path], None], bundle: Path, stick: Path) -> float:
    shutil.rmtree(stick, ignore_errors=True)
    stick.mkdir()
    os.sync()
    started = time.perf_counter()
    way(bundle, stick)
    return time.perf_counter() - started


def _ours(bundle: Path, stick: Path) -> None:
    outcome = deploy_to(cargo_of(bundle), stick, Wishes(probe=False), threading.Event())
    if outcome.state != "copied" or outcome.mended:
        raise SystemExit(f"not copied: {outcome.errors}")


def _by_hand(bundle: Path, stick: Path) -> None:
    subprocess.run(["cp", "-r", bundle, stick / "copy"], check=True)
    subprocess.run(["sync", "-f", stick], check=True)
    files = [path for path in (stick / "copy").rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL)


_KILLED = """
import os, signal, sys, threading
from pathlib import Path
from bundler.deploy import outcome, steps, stick
from bundler.deploy.cargo import cargo_of
steps.REPORT_SECONDS = 0

def report(event):
    if type(event).__name__ == "Progress" and event.step.startswith("copy"):
        print(int(event.done), flush=True)
        if event.done > event.total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

stick.deploy_to(cargo_of(Path(sys.argv[1])), Path(sys.argv[2]), outcome.Wishes(probe=False),
                threading.Event(), report)
"""


def _resumed_bytes(bundle: Path, stick: Path) -> int:
    """Kill a copy half way and return how much of what was done the next one did again."""
    shutil.rmtree(stick, ignore_errors=True)
    stick.mkdir()
    words = [sys.executable, "-c", _KILLED, bundle, stick]
    killed = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    done = int(killed.stdout.split()[-1])
    again = deploy_to(cargo_of(bundle), stick, Wishes(probe=False), threading.Event())
    if again.state != "copied":
        raise SystemExit(f"not gone on with: {again.errors}")
    total = sum(file.size_bytes for file in cargo_of(bundle).manifest.files)
    return done + again.written_bytes - total


def main() -> int:
    """Compare, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=960, help="size of the bundle")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work")
    words = parser.parse_args()
    figures = deploy_ratios(words.mib, words.runs, words.folder)
    for what, figure in figures.items():
        print(f"{figure:8.2f}  {what}")
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
