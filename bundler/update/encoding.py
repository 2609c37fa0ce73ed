"""How each file of the new version comes about: kept, moved, or rebuilt from old ranges and pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bundler.grouping import pieces_of
from bundler.manifest import BundleFile, Manifest
from bundler.update.clusters import Cluster, OldClusters, clusters_of
from bundler.update.delta import SPAN_BYTES, Moved, Near, New, Old, Spanned, kept_paths
from bundler.update.matching import BlockIndex, Run
from bundler.update.packing import Packs, near_range
from bundler.update.unpacking import read_old

PARITY_FOLDER = "parity/"
"""Parity is like nothing else, so nothing is sought in it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What has to be done, by the manifests alone."""

    kept: frozenset[str]
    moved: tuple[Moved, ...]
    rebuilt: tuple[BundleFile, ...]


def change_between(old: Manifest, new: Manifest) -> Change:
    """Return which files stay, which take another name, and which are to be rebuilt."""
    kept = kept_paths(old, new)
    free: dict[str, list[str]] = {}
    for file in old.files:
        if file.path not in kept and file.size_bytes:
            free.setdefault(file.sha256, []).append(file.path)
    moved, rebuilt = [], []
    for file in new.files:
        if file.path in kept:
            continue
        if free.get(file.sha256):
            moved.append(Moved(path=file.path, source=free[file.sha256].pop(0)))
        else:
            rebuilt.append(file)
    return Change(kept, tuple(moved), tuple(rebuilt))


def counterparts(old: Manifest, new: Manifest) -> dict[str, str]:
    """Return new path → the old file that is most likely its predecessor."""
    there = {file.path for file in old.files}
    pairs = {file.path: file.path for file in new.files if file.path in there}
    models = {(m.name, m.tier): m.files for m in old.models}
    corpora = {c.name: c.file for c in old.corpora}
    for model in new.models:
        before = models.get((model.name, model.tier), ())
        for number, path in enumerate(model.files if before else ()):
            # Cut anew, its tensors may have moved to a neighbour: ranges are found there as well.
            pairs.setdefault(path, before[min(number, len(before) - 1)])
    for corpus in new.corpora:
        if corpus.name in corpora:
            pairs.setdefault(corpus.file, corpora[corpus.name])
    by_name: dict[str, list[str]] = {}
    for path in sorted(there):
        by_name.setdefault(PurePosixPath(path).name, []).append(path)
    for file in new.files:
        alike = by_name.get(PurePosixPath(file.path).name)
        if alike:
            pairs.setdefault(file.path, max(alike, key=lambda p: _parts_in_common(p, file.path)))
    return pairs


def _parts_in_common(one: str, two: str) -> int:
    return len(set(PurePosixPath(one).parts) & set(PurePosixPath(two).parts))


def old_places(old: Manifest) -> dict[str, Old]:
    """Return digest → where a file or a segment of that content lies in the old version."""
    places: dict[str, Old] = {}
    for file in old.files:
        if file.size_bytes:
            whole = Old(path=file.path, offset=0, size_bytes=file.size_bytes)
            places.setdefault(file.sha256, whole)
        for piece in pieces_of(file, old.segment_bytes) if file.segments else ():
            at = Old(path=file.path, offset=piece.offset, size_bytes=piece.size_bytes)
            places.setdefault(piece.sha256, at)
    return places


class Encoder:
    """Turns files of the new version into spans."""

    def __init__(
        self, old: Manifest, new: Manifest, new_root: Path, packs: Packs, index: BlockIndex | None,
        readable: frozenset[str], old_clusters: Mapping[str, OldClusters],
    ) -> None:  # fmt: skip
        self._places = old_places(old)
        self._sizes = {file.path: file.size_bytes for file in old.files if file.path in readable}
        self._pairs = counterparts(old, new)
        self._segment_bytes = new.segment_bytes
        self._root, self._packs, self._index = new_root, packs, index
        self._old_clusters = old_clusters
        self._made: dict[str, tuple[Spanned, ...]] = {}

    def spans(self, file: BundleFile) -> tuple[Spanned, ...]:
        """Return the spans of a file; the same content is written once."""
        if file.sha256 not in self._made:
            whole = self._places.get(file.sha256)
            spans = [whole] if whole is not None else self._encoded(file)
            self._made[file.sha256] = tuple(spans) if file.size_bytes else ()
        return self._made[file.sha256]

    def _encoded(self, file: BundleFile) -> list[Spanned]:
        spans: list[Spanned] = []
        for start, end, place in self._regions(file):
            found = [place] if place is not None else self._region(file, start, end)
            for span in found:
                _add(spans, span)
        return spans

    def _regions(self, file: BundleFile) -> Iterator[tuple[int, int, Old | None]]:
        """Yield runs of segments that the old version lacks, and those it has, with their place."""
        missing = 0
        for piece in pieces_of(file, self._segment_bytes):
            place = self._places.get(piece.sha256) if file.segments else None
            if place is None:
                continue
            if missing < piece.offset:
                yield missing, piece.offset, None
            missing = piece.offset + piece.size_bytes
            yield piece.offset, missing, place
        if missing < file.size_bytes:
            yield missing, file.size_bytes, None

    def _region(self, file: BundleFile, start: int, end: int) -> Iterator[Spanned]:
        """Yield spans of a range that is not known by its digest."""
        position = start
        for cluster, span in self._repacked(file.path, start, end):
            yield from self._sought(file.path, position, cluster.offset)
            yield span
            position = cluster.end
        yield from self._sought(file.path, position, end)

    def _repacked(self, path: str, start: int, end: int) -> Iterator[tuple[Cluster, Spanned]]:
        """Yield the clusters of a ZIM that are old, or are packed anew from what they hold."""
        old = self._old_clusters.get(self._pairs.get(path, ""))
        if old is None:
            return
        found = clusters_of(self._root / path)
        for number, cluster in enumerate(found):
            if start <= cluster.offset and cluster.end <= end:
                data = read_old(self._root, path, cluster.offset, cluster.size_bytes)
                span = old.same(data) or old.repacked(
                    data, cluster, number / max(1, len(found) - 1), self._packs
                )
                if span is not None:
                    yield cluster, span

    def _sought(self, path: str, start: int, end: int) -> Iterator[Spanned]:
        """Yield spans of a range in which runs of old bytes are sought."""
        before: Run | None = None
        for run in self._runs(path, start, end):
            yield from self._gap(
                path, before.new_end if before else start, run.new_offset, before, run
            )
            yield Old(path=run.path, offset=run.old_offset, size_bytes=run.size_bytes)
            before = run
        yield from self._gap(path, before.new_end if before else start, end, before, None)

    def _runs(self, path: str, start: int, end: int) -> Iterator[Run]:
        if self._index is not None and not path.startswith(PARITY_FOLDER):
            yield from self._index.runs(self._root / path, start, end)

    def _gap(
        self, path: str, start: int, end: int, before: Run | None, after: Run | None
    ) -> Iterator[New]:
        for offset in range(start, end, SPAN_BYTES):
            size = min(SPAN_BYTES, end - offset)
            near = self._near(path, offset, size, start, end, before, after)
            yield self._packs.put(read_old(self._root, path, offset, size), near)

    def _near(
        self, path: str, offset: int, size: int, start: int, end: int, before: Run | None,
        after: Run | None,
    ) -> Near | None:  # fmt: skip
        """Return the old bytes that are likely to be like a range: beside its neighbours' places."""
        if path.startswith(PARITY_FOLDER):
            return None
        if before is not None:
            source, old_offset = before.path, before.old_end + offset - start
        elif after is not None:
            source, old_offset = after.path, after.old_offset - (end - offset)
        else:
            source, old_offset = self._pairs.get(path, ""), offset
        there = self._sizes.get(source, 0)
        return near_range(source, there, max(0, min(old_offset, there)), size) if there else None


def _add(spans: list[Spanned], span: Spanned) -> None:
    """Append a span; a range that goes on where the last one ended becomes one with it."""
    last = spans[-1] if spans else None
    if isinstance(last, Old) and isinstance(span, Old) and last.path == span.path and (
        last.offset + last.size_bytes == span.offset
    ):  # fmt: skip
        size = last.size_bytes + span.size_bytes
        spans[-1] = Old(path=last.path, offset=last.offset, size_bytes=size)
    else:
        spans.append(span)


def sought_files(old: Manifest, kept: frozenset[str]) -> tuple[BundleFile, ...]:
    """Return the old files in which runs are sought: those that do not stay as they are."""
    return tuple(
        file
        for file in old.files
        if file.path not in kept and not file.path.startswith(PARITY_FOLDER) and file.size_bytes
    )
