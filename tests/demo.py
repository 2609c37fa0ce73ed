"""The embedded example, built once for all tests that look at it.

The store lies in `.cache`, so a second run of the tests finds the steps done; the bundle itself is
put together and read back each time.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"


def bundler(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would; everything it printed comes back."""
    return subprocess.run(
        [sys.executable, "-m", "bundler", *map(str, words)],
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


@functools.cache
def quickstart() -> Path:
    """Return a copy of `recipes/quickstart.toml` with its lock beside it, in a folder of its own.

    A checkout has no lock of it (it is made, not kept), and the one that a build leaves in the tree
    may come or not come before a test. `examples/` is beside the copy's folder, as in the tree.
    """
    folder = Path(tempfile.mkdtemp(prefix="bundler-quickstart-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.lock"))
    recipe = folder / "recipes" / "quickstart.toml"
    done = bundler("lock", recipe, "--store", folder / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    return recipe
