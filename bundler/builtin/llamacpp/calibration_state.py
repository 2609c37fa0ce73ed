"""What a calibration has summed up so far, kept so that one that was cut off goes on from there."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.value import digest

_EVERY_SECONDS = 30.0
_IDENTITY, _WINDOWS = "identity", "windows"

Squares = dict[str, npt.NDArray[np.float64]]
Counts = dict[str, npt.NDArray[np.int64]]


class Kept:
    """The file of one calibration; `None` as its path keeps nothing.

    `identity` is all that the sums depend on: a file of another calibration is not gone on from.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = digest(dict(identity))
        self._last = time.monotonic()

    def load(self, squares: Squares, counts: Counts) -> int:
        """Fill in the sums and return how many windows are in them; 0 where there is nothing to use.

        A file that was cut off while it was written has another name, so one that cannot be read was
        damaged later: the work is done again.
        """
        if self._path is None or not self._path.is_file():
            return 0
        try:
            with np.load(self._path, allow_pickle=False) as found:
                if str(found[_IDENTITY]) != self._identity:
                    return 0
                names = [name[2:] for name in found.files if name.startswith("s:")]
                sums = {name: found[f"s:{name}"] for name in names}
                seen = {name: found[f"c:{name}"] for name in names}
                windows = int(found[_WINDOWS])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return 0
        squares.update(sums)
        counts.update(seen)
        return windows

    def keep(self, squares: Squares, counts: Counts, windows: int, *, now: bool = False) -> None:
        """Write the sums every half minute."""
        if self._path is None or not (now or time.monotonic() - self._last > _EVERY_SECONDS):
            return
        arrays: dict[str, Any] = {f"s:{name}": value for name, value in squares.items()}
        arrays |= {f"c:{name}": value for name, value in counts.items()}
        arrays |= {_IDENTITY: np.array(self._identity), _WINDOWS: np.array(windows)}
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, self._path)
        self._last = time.monotonic()

    def drop(self) -> None:
        """Throw it away: the calibration is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
