"""The embedded example, built once for all tests that look at it.

The store lies in `.cache`, so a second run of the tests finds the steps done; the bundle itself is
put together and read back each time.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"


def bundler(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would; everything it printed comes back."""
    return subprocess.run(
        [sys.executable, "-m", "bundler.cli", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=1500,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb", **environment},
    )  # fmt: skip


@functools.cache
def demo_bundle() -> Path:
    """Return the bundle of `recipes/quickstart.toml`, built by the command line."""
    CACHE.mkdir(exist_ok=True)
    output = CACHE / "demo" / "quickstart"
    recipe = ROOT / "recipes/quickstart.toml"
    with FileLock(CACHE / "demo.lock"):
        for words in (("lock", recipe), ("build", recipe, "--output", output)):
            done = bundler(*words, "--store", CACHE / "store")
            assert done.returncode == 0, done.stdout + done.stderr
    return output
