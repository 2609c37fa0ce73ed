"""The objects of the store that a bundle is made of: hashed once a build, segments and parity cached."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bundler.errors import DamagedError
from bundler.grouping import Group, Piece
from bundler.manifest import BundleFile
from bundler.media.parity import make_set, set_key
from bundler.segments import copy_range, hash_with_segments
from bundler.store import Store, StoredResult, full_disk_is_an_error, share_or_copy
from bundler.value import digest


@dataclass
class Objects:
    """What one build takes from the store; every object is read and hashed at most once."""

    store: Store
    _right: set[str] = field(default_factory=set)

    def path(self, sha256: str) -> Path:
        """Return where an object rests, after its bytes were held against its name once.

        Raises:
            DamagedError: it is missing or damaged; a damaged one is removed.
        """
        if sha256 in self._right:
            return self.store.object_path(sha256)
        found = self.store.verified(sha256)
        self._right.add(sha256)
        return found

    def segments(self, sha256: str, segment_bytes: int) -> tuple[str, ...]:
        """Return the digests of an object's segments: remembered, or from one reading of it.

        Raises:
            DamagedError: the object is damaged; it is removed.
        """
        key = digest({"segments": sha256, "segment_bytes": segment_bytes})
        known = self.store.result(key)
        if known is not None:
            return tuple(str(each) for each in known.facts["segments"])
        whole, segments = hash_with_segments(self.store.object_path(sha256), segment_bytes)
        if whole != sha256:
            self.store.verified(sha256)  # removes it and says so
            raise DamagedError(f"object {sha256[:12]} changed while it was read")
        self._right.add(sha256)
        self.store.keep_result(key, StoredResult({}, {"segments": segments}))
        return segments

    def with_segments(
        self, files: Iterable[BundleFile], segment_bytes: int, workers: int | None = None
    ) -> dict[str, tuple[str, ...]]:
        """Return path → digests of segments, for every file that has any; reads several at once."""
        large = {file.path: file for file in files if file.size_bytes > segment_bytes}
        with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda f: self.segments(f.sha256, segment_bytes), large.values())
            return dict(zip(large, found, strict=True))

    def parity(
        self, group: Group, data: Mapping[str, bytes], files: Mapping[str, BundleFile]
    ) -> tuple[str, int, str]:
        """Return (SHA-256, bytes, PAR2's id) of a group's set: remembered, or made now.

        Args:
            group: the pieces and the shape of the set.
            data: bytes of generated files, by path; all others are objects.
            files: the bundle's files by path.

        Raises:
            DamagedError: an object is damaged.
            DoesNotFit: the disk is full.
        """
        key = set_key(group)
        known = self.store.result(key)
        if known is not None:
            return (*known.files["set.par2"], str(known.facts["set_id"]))
        for sha256 in {files[p.path].sha256 for p in group.pieces if p.path not in data}:
            self.path(sha256)
        place = self._placing(data, files)
        with self.store.scratch() as folder, full_disk_is_an_error(folder, "parity"):
            made, set_id = make_set(group, place, folder)
            sha256, size = self.store.adopt(made, move=True)
        self.store.keep_result(key, StoredResult({"set.par2": (sha256, size)}, {"set_id": set_id}))
        return sha256, size, set_id

    def _placing(
        self, data: Mapping[str, bytes], files: Mapping[str, BundleFile]
    ) -> Callable[[Piece, Path], None]:
        def place(piece: Piece, target: Path) -> None:
            if piece.path in data:
                end = piece.offset + piece.size_bytes
                target.write_bytes(data[piece.path][piece.offset : end])
                return
            source = self.store.object_path(files[piece.path].sha256)
            if piece.index is None:
                share_or_copy(source, target, link=True)
            else:
                copy_range(source, piece.offset, piece.size_bytes, target)

        return place
