"""Looks for sticks that claim more room than they have, before anything is copied to them.

Free room is reserved in pieces, so that they lie all over it, and the first block of each is written
and read back from the device. What this can find: a stick that loses what lies behind its real end,
if more than one piece of the free room lies there. What it cannot: a stick that answers addresses
behind its end with earlier ones, as long as no two blocks meet. Reading everything back after
copying finds both, for all that was copied.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from bundler.deploy.evidence import Evidence, PastCache
from bundler.deploy.ground import Ground
from bundler.deploy.kernel import flush_filesystem, reserve
from bundler.deploy.stopping import Stopped
from bundler.errors import DamagedError
from bundler.grouping import Piece
from bundler.value import format_size

SPOTS = 32
_BLOCK_BYTES = 64 << 10
_LEFT_SHARE = 64  # of the free room, a 64th stays free: for folders and the filesystem's own tables
_LEAST_FREE_BYTES = 64 << 20
_MOST_SPOT_BYTES = (4 << 30) - (1 << 20)  # FAT's files end below 4 GiB


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe of the free room found."""

    spots: int
    """How many blocks were written and read back; 0 when it was not possible."""
    spread_bytes: int
    """Over how much free room they were spread."""
    lost: int
    """How many did not come back."""
    evidence: Evidence
    why_not: str = ""

    def __str__(self) -> str:
        if self.why_not:
            return f"free room not probed: {self.why_not}"
        return f"{self.spots} blocks spread over {format_size(self.spread_bytes)} of free room came back"


def probe_capacity(ground: Ground, stop: threading.Event, spots: int = SPOTS) -> Probe:
    """Write blocks all over the free room of a stick, and read them back past the cache.

    Raises:
        DamagedError: some did not come back.
        OSError: the stick does not take them.
        Stopped: everything is being stopped.
    """
    free = ground.free_bytes or 0
    room = free - max(free // _LEFT_SHARE, _BLOCK_BYTES * spots)
    why = _why_not(ground, free)
    if why:
        return Probe(0, 0, 0, Evidence(), why)
    size = min(room // spots, _MOST_SPOT_BYTES) // _BLOCK_BYTES * _BLOCK_BYTES
    with tempfile.TemporaryDirectory(dir=ground.target, prefix=".bundler-probe-") as made:
        return _probed(Path(made), ground, size, spots, stop)


def _why_not(ground: Ground, free_bytes: int) -> str:
    if not ground.on_device:
        return "there is no device below it"
    if ground.with_system:  # other programs need its free room, also for these seconds
        return "it is the system's own disk, not a stick"
    return "there is too little of it" if free_bytes < _LEAST_FREE_BYTES else ""


def _probed(folder: Path, ground: Ground, size: int, spots: int, stop: threading.Event) -> Probe:
    paths = [folder / f"spot{number:02d}" for number in range(spots)]
    for path in paths:
        if not _reserved(path, size, stop):
            why = f"{ground.kind or 'the filesystem'} cannot reserve room without writing it"
            return Probe(0, 0, 0, Evidence(), why)
    pieces = [_written(path, stop) for path in paths]
    _flush(folder)
    with PastCache(ground, stop) as reading:
        faults = [
            fault
            for path, piece in zip(paths, pieces, strict=True)
            for _, fault in reading.faults(path, [piece])
        ]
        evidence = reading.evidence()
    lost = sum(1 for fault in faults if fault)
    if lost:
        raise DamagedError(
            f"{lost} of {spots} blocks that were written all over its free room did not come back: "
            "it is broken, or claims more room than it has",
            where=str(ground.target),
            hint="do not use this stick, whatever is on it already; try another one",
        )
    return Probe(spots, size * spots, lost, evidence)


def _reserved(path: Path, size: int, stop: threading.Event) -> bool:
    if stop.is_set():
        raise Stopped
    with path.open("xb") as stream:
        return reserve(stream.fileno(), size)


def _written(path: Path, stop: threading.Event) -> Piece:
    """Write a block that no other spot has, and return what it is."""
    if stop.is_set():
        raise Stopped
    data = secrets.token_bytes(_BLOCK_BYTES)
    with path.open("r+b") as stream:
        stream.write(data)
    return Piece(path.name, None, 0, len(data), hashlib.sha256(data).hexdigest())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not flush_filesystem(descriptor):
            os.sync()
    finally:
        os.close(descriptor)
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
