"""Times `bundler verify` against `sha256sum -c` on the same bundle, in turns, from a warm cache.

    .venv/bin/python bench/verify_bundle.py dist/quickstart

Prints the ratio of each pair and its median; ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bundler.verify import verify_bundle


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes, in wall seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    words = parser.parse_args()
    workers = min(4, os.cpu_count() or 1)
    ours = lambda: verify_bundle(words.bundle, workers=workers)  # noqa: E731
    theirs = lambda: subprocess.run(  # noqa: E731
        ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=words.bundle, check=True
    )
    ours(), theirs()
    ratios = []
    for _ in range(words.pairs):
        a, b = seconds(ours), seconds(theirs)
        ratios.append(b / a)
        print(f"bundler verify {a:.3f} s, sha256sum -c {b:.3f} s: {b / a:.2f} times as fast")
    print(json.dumps({"pairs": words.pairs, "median_times_as_fast": statistics.median(ratios)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
