"""A reference's scores on disk: run once, compared with by every candidate of the model.

Each scored position keeps, exactly: the loss of the token that came and the five likeliest tokens;
and of every token of the vocabulary the log-probability in 16 bits, as how far it is below the
likeliest in steps of 32/65535 nats (at most 32: what lies below has no weight). That is half of
float32, 304 KB a position at a vocabulary of 152k. The rounding of at most 0.00025 nats changes a
mean divergence by less than 1e-6 (`tests/test_kept_scores.py` measures it).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.divergence import LIKELIEST, ROWS, checked, likeliest, log_softmax
from bundler.store import full_disk_is_an_error

Floats = npt.NDArray[np.float64]
_RANGE_NATS = 32.0
_STEP = _RANGE_NATS / 65535
_MAGIC = b"bundler reference scores 1\n"
_NEWEST = 2
"""How many references' scores stay: those of a large vocabulary take a gigabyte."""


@dataclass(frozen=True)
class Kept:
    """The scores of a few neighbouring positions."""

    losses: Floats
    top: npt.NDArray[np.int32]
    below: npt.NDArray[np.uint16]

    def log_probabilities(self) -> Floats:
        """Return them whole, in float64; each row sums to one again."""
        wide: Floats = self.below.astype(np.float64) * -_STEP
        wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
        return wide

    def part(self, rows: slice) -> Kept:
        return Kept(self.losses[rows], self.top[rows], self.below[rows])


def keep(logits: npt.NDArray[np.float32], following: npt.NDArray[np.int64]) -> Kept:
    """Return what is kept of rows of a reference's logits. Raises StepFailed: they are not finite."""
    parts = [
        _keep_rows(logits[first : first + ROWS], following[first : first + ROWS])
        for first in range(0, len(following), ROWS)
    ]
    return Kept(
        np.concatenate([part.losses for part in parts]),
        np.concatenate([part.top for part in parts]),
        np.concatenate([part.below for part in parts]),
    )


def _keep_rows(logits: npt.NDArray[np.float32], following: npt.NDArray[np.int64]) -> Kept:
    exact = log_softmax(checked(logits, "the reference model"))
    below = exact.max(axis=-1, keepdims=True) - exact
    small = np.minimum(np.rint(below / _STEP), 65535).astype(np.uint16)
    losses = -exact[np.arange(len(following)), following]
    return Kept(losses, likeliest(logits).astype(np.int32), small)


# -- on disk -----------------------------------------------------------------------------------------


@dataclass
class KeptFile:
    """The scores of all windows, in a file."""

    path: Path
    windows: list[list[int]]
    rows: int
    vocabulary: int
    body: int
    _top: int = field(default=LIKELIEST)

    def read(self, window: int) -> Kept:
        """Return the scores of one window."""
        sizes = (8 * self.rows, 4 * self.rows * self._width(), 2 * self.rows * self.vocabulary)
        with self.path.open("rb") as stream:
            stream.seek(self.body + window * sum(sizes))
            losses, top, below = (stream.read(size) for size in sizes)
        return Kept(
            np.frombuffer(losses, np.float64),
            np.frombuffer(top, np.int32).reshape(self.rows, -1),
            np.frombuffer(below, np.uint16).reshape(self.rows, self.vocabulary),
        )

    def _width(self) -> int:
        return min(self._top, self.vocabulary)

    def size_bytes(self) -> int:
        """Return how long the file must be."""
        row = 8 + 4 * self._width() + 2 * self.vocabulary
        return self.body + len(self.windows) * self.rows * row + 32


def kept_path(folder: Path, identity: Any) -> Path:
    """Return where the scores lie that belong to a reference, a text and settings."""
    raw = json.dumps(identity, sort_keys=True).encode()
    return folder / f"reference-{hashlib.sha256(raw).hexdigest()[:32]}.scores"


def open_kept(path: Path) -> KeptFile | None:
    """Return scores that were kept, None when there are none or they are not whole."""
    try:
        with path.open("rb") as stream:
            if stream.readline(len(_MAGIC)) != _MAGIC:
                return None
            head = json.loads(stream.readline(1 << 26))
            found = KeptFile(
                path, head["windows"], int(head["rows"]), int(head["vocabulary"]), stream.tell()
            )
            if path.stat().st_size != found.size_bytes():
                return None
        return found if _is_whole(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # It is made anew, which is what it is for.


def _is_whole(path: Path) -> bool:
    left, made = path.stat().st_size - 32, hashlib.sha256()
    with path.open("rb") as stream:
        while left:
            data = stream.read(min(left, 1 << 20))
            made.update(data)
            left -= len(data)
        return stream.read() == made.digest()


def write_kept(
    path: Path, windows: list[list[int]], vocabulary: int, scores: Iterator[Kept]
) -> KeptFile:
    """Write the scores of windows as they come, and return the file.

    Raises:
        StepFailed: the disk is full.
    """
    rows = len(windows[0]) - 1 - len(windows[0]) // 2
    head = json.dumps({"windows": windows, "rows": rows, "vocabulary": vocabulary}) + "\n"
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with full_disk_is_an_error(path.parent, "the reference model's scores"):
            with partial.open("wb") as stream:
                _write(stream, _MAGIC + head.encode(), scores)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _forget_old(path)
    return KeptFile(path, windows, rows, vocabulary, len(_MAGIC) + len(head.encode()))


def _write(stream: IO[bytes], head: bytes, scores: Iterator[Kept]) -> None:
    made = hashlib.sha256(head)
    stream.write(head)
    for kept in scores:
        for array in (kept.losses, kept.top, kept.below):
            data = np.ascontiguousarray(array).data.cast("B")
            stream.write(data)
            made.update(data)
    stream.write(made.digest())


def _forget_old(path: Path) -> None:
    there = sorted(path.parent.glob("reference-*.scores"), key=lambda one: one.stat().st_mtime_ns)
    for old in there[:-_NEWEST]:
        if old != path:
            old.unlink(missing_ok=True)
