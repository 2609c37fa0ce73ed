"""Writes the bytes that travel: as they are, or packed by zstd against old bytes that are like them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import zstandard

from bundler.store import full_disk_is_an_error
from bundler.update.delta import NEAR_BYTES, PACK_BYTES, Near, New, Pack, Piece, pack_name
from bundler.update.unpacking import WINDOW_LOG, read_old

_LEVEL = 12
_PROBE_LEVEL = 3
_PROBE_BYTES = 1 << 17
_PROBES = 3
_WORTH = 0.98
"""Weights and what is packed already stay as they are: unpacking would cost more than it saves."""


class Packs:
    """The packs of a delta while they are written."""

    def __init__(self, root: Path, old_root: Path | None) -> None:
        self._root, self._old = root, old_root
        self._packs: list[list[Piece]] = []
        self._size = 0

    def done(self) -> tuple[Pack, ...]:
        """Return what was written; each file is on the disk."""
        for index in range(len(self._packs)):
            descriptor = os.open(self._root / pack_name(index), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return tuple(Pack(pieces=tuple(pieces)) for pieces in self._packs)

    def put(self, data: bytes, near: Near | None) -> New:
        """Write some bytes of a new file in the least way; return the span that stands for them."""
        packed, used = self._least(data, near if self._old is not None else None)
        stored = data if packed is None else packed
        pack, piece = self._append(stored)
        return New(
            pack=pack, piece=piece, size_bytes=len(data), packed=packed is not None,
            near=used if packed is not None else None,
        )  # fmt: skip

    def put_plain(self, plain: bytes, near: bytes, most: int) -> New | None:
        """Write what a cluster holds against what old ones hold; None where it takes more."""
        made = packed(plain, near, _LEVEL)
        if len(made) > most:
            return None
        pack, piece = self._append(made)
        return New(pack=pack, piece=piece, size_bytes=len(plain), packed=True)

    def _append(self, stored: bytes) -> tuple[int, int]:
        if not self._packs or self._size + len(stored) > PACK_BYTES:
            self._packs.append([])
            self._size = 0
        path = self._root / pack_name(len(self._packs) - 1)
        with full_disk_is_an_error(self._root, "the update"), path.open("ab") as stream:
            stream.write(stored)
        self._size += len(stored)
        sha256 = hashlib.sha256(stored).hexdigest()
        self._packs[-1].append(Piece(size_bytes=len(stored), sha256=sha256))
        return len(self._packs) - 1, len(self._packs[-1]) - 1

    def _least(self, data: bytes, near: Near | None) -> tuple[bytes | None, Near | None]:
        """Return the packed bytes and what they refer to; None where they go as they are."""
        old = b""
        if near is not None and self._old is not None:
            old = read_old(self._old, near.path, near.offset, near.size_bytes)
        if not _worth_it(data, old):
            return None, None
        best: tuple[bytes | None, Near | None] = (None, None)
        least = int(len(data) * _WORTH)
        for dictionary, used in ((b"", None), (old, near)):
            if dictionary or used is None:
                made = packed(data, dictionary, _LEVEL)
                if len(made) < least:
                    least, best = len(made), (made, used)
        return best


def _worth_it(data: bytes, old: bytes) -> bool:
    """Tell from a few samples whether packing can make anything smaller."""
    if len(data) <= _PROBES * _PROBE_BYTES:
        return True
    for number in range(_PROBES):
        start = (len(data) - _PROBE_BYTES) * number // (_PROBES - 1)
        sample = data[start : start + _PROBE_BYTES]
        # What is like it lies at the same distance from the middle, if nothing was moved.
        middle = start + (len(old) - len(data)) // 2
        around = old[max(0, middle - _PROBE_BYTES) : max(0, middle + 2 * _PROBE_BYTES)]
        if min(len(packed(sample, one, _PROBE_LEVEL)) for one in (b"", around)) < _WORTH * len(
            sample
        ):
            return True
    return False


def packed(data: bytes, dictionary: bytes, level: int) -> bytes:
    """Return `data` as one frame of zstd which may refer to `dictionary`."""
    log = min(23, max(16, (len(data) + len(dictionary)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), dict_size=len(dictionary), window_log=min(log + 2, WINDOW_LOG),
        hash_log=log, chain_log=log,
    )  # fmt: skip
    said = (
        zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        if dictionary
        else None
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=said).compress(data)


def near_range(path: str, size_bytes: int, offset: int, wanted: int) -> Near | None:
    """Return a range of an old file around `offset` that may help with `wanted` bytes."""
    margin = min(max(wanted, 1 << 16), (NEAR_BYTES - min(wanted, NEAR_BYTES)) // 2)
    if size_bytes <= min(NEAR_BYTES, wanted + 2 * margin):
        return Near(path=path, offset=0, size_bytes=size_bytes) if size_bytes else None
    start = max(0, min(offset - margin, size_bytes - wanted - 2 * margin))
    end = min(size_bytes, start + wanted + 2 * margin)
    return Near(path=path, offset=start, size_bytes=end - start) if end > start else None
