"""What long steps that were cut off had finished of themselves, so that only the rest is done again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bundler.store import Store

MOST_UNFINISHED = 16
"""Of so many steps that were cut off the folder is there; those of the oldest go."""
_PREFIX = "step-"


@contextlib.contextmanager
def kept_of_step(store: Store, key: str) -> Iterator[Path]:
    """Give the folder of the step with this key; it stays unless the block ends well."""
    folder = store.root / "work" / f"{_PREFIX}{key[:32]}"
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    there = sorted(folder.parent.glob(f"{_PREFIX}*"), key=_last_begun, reverse=True)
    for old in there[MOST_UNFINISHED:]:
        shutil.rmtree(old, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _last_begun(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0  # another build was done with it just now
