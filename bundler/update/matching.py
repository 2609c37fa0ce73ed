"""Finds runs of old bytes in a new file, wherever they lie now: rsync's idea, byte for byte exact.

Old files are hashed in blocks; the new one is hashed at every byte by a rolling polynomial, on whole
arrays at a time. A hit is held against the bytes themselves and grown in both directions, so a
weak hash costs time and never a wrong match. A tensor that moved, a cluster of a ZIM behind one that
grew: both are runs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bundler.segments import open_plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

WINDOW_BYTES = 1 << 20
LEAST_BLOCK_BYTES = 1 << 10
MOST_BLOCK_BYTES = 1 << 16
_MOST_BLOCKS = 1 << 21  # 20 bytes each are held
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; 2^64 divided by the golden ratio
_MOST_BITS = 26  # of the table that says no quickly: 64 MiB


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of a new file that an old one has."""

    new_offset: int
    size_bytes: int
    path: str
    old_offset: int

    @property
    def new_end(self) -> int:
        """Return the first byte behind it in the new file."""
        return self.new_offset + self.size_bytes

    @property
    def old_end(self) -> int:
        """Return the first byte behind it in the old file."""
        return self.old_offset + self.size_bytes


def block_bytes_for(total_bytes: int) -> int:
    """Return how large blocks must be so that old files of this size are held in bounded memory."""
    block = LEAST_BLOCK_BYTES
    while block < MOST_BLOCK_BYTES and total_bytes // block > _MOST_BLOCKS:
        block *= 2
    return block


def _powers(base: int, count: int) -> Words:
    import numpy as np

    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


class BlockIndex:
    """The blocks of old files, to be asked for at any offset of a new one."""

    def __init__(self, root: Path, total_bytes: int) -> None:
        self.block_bytes = block_bytes_for(total_bytes)
        self._root = root
        self._paths: list[str] = []
        self._found: list[tuple[Words, int]] = []
        self._powers = _powers(_BASE, WINDOW_BYTES + self.block_bytes)
        self._inverse = _powers(pow(_BASE, -1, 1 << 64), WINDOW_BYTES + 1)

    def add(self, path: str) -> str:
        """Take in a file of the old version; return its SHA-256, from the same reading."""
        import numpy as np

        running, hashes = hashlib.sha256(), []
        with open_plain(self._root / path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:  # fmt: skip
            while data := stream.read(WINDOW_BYTES):
                running.update(data)
                whole = len(data) // self.block_bytes
                blocks = np.frombuffer(data, np.uint8, whole * self.block_bytes)
                weighed = blocks.reshape(whole, self.block_bytes) * self._powers[: self.block_bytes]
                hashes.append(weighed.sum(axis=1, dtype=np.uint64))
        self._found.append((np.concatenate(hashes or [np.empty(0, np.uint64)]), len(self._paths)))
        self._paths.append(path)
        return running.hexdigest()

    def close(self) -> None:
        """Put the blocks in order; nothing is added from now on."""
        import numpy as np

        keys = [hashes for hashes, _ in self._found] or [np.empty(0, np.uint64)]
        files = [np.full(len(h), number, np.int32) for h, number in self._found]
        blocks = [np.arange(len(h), dtype=np.int64) for h, _ in self._found]
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._files = np.concatenate(files or [np.empty(0, np.int32)])[first]
        self._blocks = np.concatenate(blocks or [np.empty(0, np.int64)])[first]
        self._found = []
        bits = min(_MOST_BITS, max(16, len(self._keys).bit_length() + 5))
        self._shift = np.uint64(64 - bits)
        self._there = np.zeros(1 << bits, dtype=bool)
        self._there[self._keys >> self._shift] = True

    def hits(self, data: bytes) -> Iterator[tuple[int, str, int]]:
        """Yield (offset in `data`, old path, old offset) of blocks that are probably there.

        `data` has at most a window and a block.
        """
        import numpy as np

        count = len(data) - self.block_bytes + 1
        if count <= 0 or not len(self._keys):
            return
        weighed = np.frombuffer(data, np.uint8) * self._powers[: len(data)]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighed, dtype=np.uint64)])
        hashes = (sums[self.block_bytes :] - sums[:count]) * self._inverse[:count]
        offsets = np.nonzero(self._there[hashes >> self._shift])[0]
        places = np.searchsorted(self._keys, hashes[offsets])
        places[places == len(self._keys)] = 0
        same = self._keys[places] == hashes[offsets]
        for offset, place in zip(offsets[same].tolist(), places[same].tolist(), strict=True):
            old = int(self._blocks[place]) * self.block_bytes
            yield offset, self._paths[int(self._files[place])], old

    def runs(self, new: Path, start: int, end: int) -> Iterator[Run]:
        """Yield runs of old bytes within a range of a new file, in order, none overlapping."""
        with open_plain(new) as descriptor:
            position = start
            for window in range(start, end, WINDOW_BYTES):
                if position >= window + WINDOW_BYTES:
                    continue
                size = min(WINDOW_BYTES + self.block_bytes - 1, end - window)
                data = os.pread(descriptor, size, window)
                for offset, path, old in self.hits(data):
                    if window + offset < position:
                        continue
                    run = self._grown(descriptor, window + offset, position, end, path, old)
                    if run is not None:
                        yield run
                        position = run.new_end

    def _grown(
        self, new: int, offset: int, least: int, end: int, path: str, old_offset: int
    ) -> Run | None:
        """Return the run around a hit, None when it was none."""
        with open_plain(self._root / path) as old:
            ahead = _same_ahead(new, offset, end, old, old_offset)
            if ahead < self.block_bytes:
                return None
            behind = _same_behind(new, offset, least, old, old_offset)
        return Run(offset - behind, ahead + behind, path, old_offset - behind)


def _same_ahead(new: int, offset: int, end: int, old: int, old_offset: int) -> int:
    """Return how many bytes from here on are the same."""
    same, step = 0, 1 << 14
    while offset + same < end:
        want = min(step, end - offset - same)
        one, two = os.pread(new, want, offset + same), os.pread(old, want, old_offset + same)
        common = _common(one, two)
        same += common
        if common < want:
            break
        step = min(2 * step, WINDOW_BYTES)
    return same


def _same_behind(new: int, offset: int, least: int, old: int, old_offset: int) -> int:
    """Return how many bytes before here are the same, as far back as `least`."""
    same, most, step = 0, min(offset - least, old_offset), 1 << 12
    while same < most:
        want = min(step, most - same)
        one = os.pread(new, want, offset - same - want)
        two = os.pread(old, want, old_offset - same - want)
        common = _common(one[::-1], two[::-1])
        same += common
        if common < want:
            break
        step = min(2 * step, WINDOW_BYTES)
    return same


def _common(one: bytes, two: bytes) -> int:
    """Return how many bytes two strings have in common at their beginning."""
    import numpy as np

    least = min(len(one), len(two))
    if one[:least] == two[:least]:
        return least
    return int(
        np.argmax(np.frombuffer(one, np.uint8, least) != np.frombuffer(two, np.uint8, least))
    )
