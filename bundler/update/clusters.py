"""Clusters of ZIM files: found, unpacked, and paired with the old ones that hold the same articles.

Only what is needed to cut a file at its clusters is read; every offset is held against the file's
size, and what does not look like a ZIM is dealt with like any other file. The format:
https://wiki.openzim.org/wiki/ZIM_file_format
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import pairwise
from pathlib import Path

from bundler.segments import open_plain
from bundler.update.delta import SPAN_BYTES, Near, Old, Repacked
from bundler.update.packing import Packs
from bundler.update.unpacking import old_clusters, packed_as_libzim, read_old, unpacked_cluster

_MAGIC = 72173914
_HEADER = struct.Struct("<IHH16xIIQQQQ")
_MOST_CLUSTERS = 1 << 22
_CHECKSUM_BYTES = 16
_ZSTD = 5
_EXTENDED = 0x10
_MOST_BLOBS = 1 << 21
"""Articles whose place is kept in mind: about 200 bytes each."""
_NEAREST = 3
_WORTH = 0.8
"""Packing again takes a second for each 2 MB at the far end, so it must save a good part."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The frame of a packed cluster in its file."""

    offset: int
    size_bytes: int
    extended: bool

    @property
    def end(self) -> int:
        """Return the first byte behind it."""
        return self.offset + self.size_bytes


def clusters_of(path: Path) -> tuple[Cluster, ...]:
    """Return the clusters of a file that zstd has packed, in order; none of what is no ZIM."""
    with open_plain(path) as descriptor:
        size = os.fstat(descriptor).st_size
        header = os.pread(descriptor, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            return ()
        magic, *_, count, urls, titles, list_offset, mimes = _HEADER.unpack(header)
        if magic != _MAGIC or not 0 < count <= _MOST_CLUSTERS or list_offset + 8 * count > size:
            return ()
        data = os.pread(descriptor, 8 * count, list_offset)
        starts = sorted(set(struct.unpack(f"<{count}Q", data)))
        bounds = sorted({*starts, urls, titles, list_offset, mimes, size - _CHECKSUM_BYTES, size})
        kinds = [(s, os.pread(descriptor, 1, s)) for s in starts if s < size]
    after = dict(pairwise(bounds))
    return tuple(
        Cluster(start + 1, after[start] - start - 1, bool(kind[0] & _EXTENDED))
        for start, kind in kinds
        if kind and kind[0] & 15 == _ZSTD and 1 < after[start] - start <= SPAN_BYTES
    )


def blobs_of(plain: bytes, *, extended: bool) -> Iterator[bytes]:
    """Yield what a cluster holds; nothing of one whose offsets make no sense."""
    form = "<Q" if extended else "<I"
    width = struct.calcsize(form)
    first = struct.unpack_from(form, plain)[0] if len(plain) >= width else 0
    if not width <= first <= len(plain) or first % width:
        return
    offsets = struct.unpack_from(f"<{first // width}{form[1]}", plain)
    for start, end in pairwise(offsets):
        if start <= end <= len(plain):
            yield plain[start:end]


def _key(blob: bytes) -> bytes:
    return blake2b(blob, digest_size=8).digest()


class OldClusters:
    """The clusters of an old ZIM, to be asked which of them are like a new one."""

    def __init__(self, root: Path, path: str) -> None:
        self._root, self._path = root, path
        self.clusters = clusters_of(root / path)
        self._home: dict[bytes, int] = {}
        self._packed: dict[bytes, int] = {}
        for number, cluster in enumerate(self.clusters):
            data = read_old(root, path, cluster.offset, cluster.size_bytes)
            self._packed.setdefault(sha256(data).digest(), number)
            plain = unpacked_cluster(data)
            for blob in blobs_of(plain or b"", extended=cluster.extended):
                if len(self._home) < _MOST_BLOBS:
                    self._home.setdefault(_key(blob), number)

    def same(self, data: bytes) -> Old | None:
        """Return where the old file has this very cluster."""
        number = self._packed.get(sha256(data).digest())
        if number is None:
            return None
        at = self.clusters[number]
        return Old(path=self._path, offset=at.offset, size_bytes=at.size_bytes)

    def nearest(self, plain: bytes, *, extended: bool, share: float) -> tuple[Near, ...]:
        """Return the old clusters that hold most of the same articles.

        Where none does, the one at the same share of the file is as good a guess as any.
        """
        held: Counter[int] = Counter()
        for blob in blobs_of(plain, extended=extended):
            number = self._home.get(_key(blob))
            if number is not None:
                held[number] += len(blob)
        numbers = [number for number, _ in held.most_common(_NEAREST)]
        if not numbers and self.clusters:
            numbers = [int(share * (len(self.clusters) - 1))]
        found = (self.clusters[number] for number in numbers)
        return tuple(
            Near(path=self._path, offset=one.offset, size_bytes=one.size_bytes) for one in found
        )

    def repacked(
        self, data: bytes, cluster: Cluster, share: float, packs: Packs
    ) -> Repacked | None:
        """Return the span for a new cluster; None where its bytes do not come out, or hardly pay."""
        plain = unpacked_cluster(data)
        if plain is None or packed_as_libzim(plain) != data:
            return None
        near = self.nearest(plain, extended=cluster.extended, share=share)
        span = packs.put_plain(plain, old_clusters(near, self._root), int(_WORTH * len(data)))
        if span is None:
            return None
        return Repacked(size_bytes=len(data), plain=span, near=near)
