"""What of a bundle lies on a stick already, and what is left to do. Reads the stick; changes nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from bundler.deploy.evidence import PastCache
from bundler.deploy.place import Place, There
from bundler.errors import Problem
from bundler.grouping import Piece, pieces_of
from bundler.manifest import BESIDE, UPDATE_NAME, BundleFile, Manifest
from bundler.media.copies import bounded_bytes

Base = Literal["nothing", "part", "taken", "replaced"]
"""What a file grows from: nothing, its unfinished part, an older file that is rewritten where it
differs, or nothing while an older file stays until the new one is whole."""


@dataclass(frozen=True, slots=True)
class Task:
    """One file that is not on the stick as it should be."""

    file: BundleFile
    base: Base
    wrong: tuple[Piece, ...]
    """The pieces to write."""
    there_bytes: int = 0
    """Size of the part or the older file it grows from."""

    @property
    def write_bytes(self) -> int:
        """Return how many bytes are to be written."""
        return sum(piece.size_bytes for piece in self.wrong)


@dataclass(frozen=True, slots=True)
class Survey:
    """A stick, compared with a bundle."""

    tasks: tuple[Task, ...]
    kept: tuple[BundleFile, ...]
    """Files that are whole, by their bytes."""
    head_is_right: bool
    """Whether manifest, signature and what else stands beside the files are as they should be."""
    unfinished: bool
    leftovers: tuple[There, ...]
    """Files of an older version of this bundle that this version does not have."""
    foreign: tuple[str, ...]
    """Files nobody knows."""
    in_the_way: tuple[Problem, ...]
    modes: tuple[BundleFile, ...] = ()
    """Whole files that are not marked executable."""
    stale: Mapping[str, int] = field(default_factory=dict)
    """Digest → size of parts of files that are not wanted any more."""

    @property
    def write_bytes(self) -> int:
        """Return how many bytes of files are to be written."""
        return sum(task.write_bytes for task in self.tasks)

    @property
    def kept_bytes(self) -> int:
        """Return how many bytes were found right: whole files, and pieces of others."""
        whole = sum(file.size_bytes for file in self.kept)
        return whole + sum(task.file.size_bytes - task.write_bytes for task in self.tasks)

    @property
    def changes_nothing(self) -> bool:
        """Tell whether the bundle is there, whole."""
        right = not self.tasks and self.head_is_right
        return right and not self.unfinished and not self.in_the_way


@dataclass
class Surveyor:
    """Compares one stick with one bundle."""

    place: Place
    manifest: Manifest
    beside: Mapping[str, bytes]
    reading: PastCache
    progress: Callable[[int, int], None] = lambda done, total: None
    deleting: bool = False
    """Whether leftovers will be deleted: then each is compared to its last byte first."""
    _done: int = 0
    _total: int = 0
    _parts: dict[str, int] = field(default_factory=dict)
    _older: dict[str, BundleFile] = field(default_factory=dict)
    _segment_bytes: dict[str, int] = field(default_factory=dict)

    def survey(self) -> Survey:
        """Return what is there and what is to do.

        Raises:
            UnsafeInput: the folder is not one that may be written to.
            OSError: it cannot be looked at.
        """
        there = self.place.listing()
        self._parts = self.place.parts()
        earlier = [m for m in self.place.earlier() if m.name == self.manifest.name]
        self._older = {file.path: file for manifest in earlier for file in manifest.files}
        self._segment_bytes = {f.path: m.segment_bytes for m in earlier for f in m.files}
        paths = [*(file.path for file in self.manifest.files), *self.beside]
        blocked = (*in_the_way(paths, there, self._is_folded), *_cut_off_update(there))
        sound = [] if blocked else list(self.manifest.files)
        self._total = sum(self._to_compare(file, there) for file in sound)
        tasks = {file.path: self._task(file, there.get(file.path)) for file in sound}
        left, foreign = self._others(there)
        blocked = (*blocked, *self._strangers(tasks, there))
        return Survey(
            tasks=tuple(task for task in tasks.values() if task is not None),
            kept=tuple(file for file in sound if tasks[file.path] is None),
            head_is_right=self._head_is_right(),
            unfinished=self.place.work.is_dir(),
            leftovers=left, foreign=foreign, in_the_way=blocked,
            stale=dict(self._parts),
            modes=tuple(
                f for f in sound
                if f.executable and tasks[f.path] is None and not there[f.path].executable
            ),
        )  # fmt: skip

    def _strangers(
        self, tasks: Mapping[str, Task | None], there: Mapping[str, There]
    ) -> Iterator[Problem]:
        """Yield files that no version of this bundle put there, and that would be overwritten."""
        listed = [path for path, task in tasks.items() if task is not None]
        beside = [] if self._older else [name for name in BESIDE if not self._is_right(name)]
        for path in (*listed, *beside):
            if path in there and path not in self._older:
                yield Problem(
                    "would be overwritten, and is not known to be of this bundle", path,
                    "move it elsewhere; where this is a damaged copy of the bundle, `bundler repair` "
                    "it first, or remove its folder",
                )  # fmt: skip

    def _is_folded(self, path: str) -> bool:
        return (self.place.root / path).exists()

    def _to_compare(self, file: BundleFile, there: Mapping[str, There]) -> int:
        lying = there[file.path].size_bytes if file.path in there else 0
        return min(file.size_bytes, lying or self._parts.get(file.sha256, 0))

    def _task(self, file: BundleFile, lying: There | None) -> Task | None:
        pieces = pieces_of(file, self.manifest.segment_bytes)
        if lying is not None and (lying.size_bytes or not file.size_bytes):
            wrong = self._wrong(file.path, file, pieces, lying.size_bytes)
            if not wrong and lying.size_bytes == file.size_bytes:
                return None
            if file.sha256 not in self._parts:
                return self._from_older(file, pieces, wrong, lying)
        begun = self._parts.pop(file.sha256, None)  # the first of twins goes on with it
        if begun is None:
            return Task(file, "nothing", pieces)
        part = self.place.part(file.sha256).relative_to(self.place.root).as_posix()
        return Task(file, "part", self._wrong(part, file, pieces, begun), begun)

    def _from_older(
        self, file: BundleFile, pieces: tuple[Piece, ...], wrong: tuple[Piece, ...], lying: There
    ) -> Task:
        # A file with two names is somebody else's too; a small one is sooner written than patched.
        if lying.links > 1 or len(pieces) == 1:
            return Task(file, "replaced", pieces)
        return Task(file, "taken", wrong, lying.size_bytes)

    def _wrong(
        self, path: str, file: BundleFile, pieces: tuple[Piece, ...], size_bytes: int
    ) -> tuple[Piece, ...]:
        """Return the pieces that are not right in the file at `path` of the stick."""
        older = self._older.get(file.path)
        other = _known_to_differ(file, older) if path == file.path else frozenset()
        read = [
            p for p in pieces
            if p.index not in other and p.offset + p.size_bytes <= size_bytes
        ]  # fmt: skip
        right = set()
        for piece, fault in self.reading.faults(self.place.root / path, read):
            self._done += piece.size_bytes
            self.progress(self._done, max(self._done, self._total))
            if not fault:
                right.add(piece)
        return tuple(piece for piece in pieces if piece not in right)

    def _head_is_right(self) -> bool:
        return all(map(self._is_right, BESIDE))

    def _is_right(self, name: str) -> bool:
        return bounded_bytes(self.place.root / name) == self.beside.get(name)

    def _others(self, there: Mapping[str, There]) -> tuple[tuple[There, ...], tuple[str, ...]]:
        """Return what an older version left, and what is not of this bundle at all."""
        ours = {file.path for file in self.manifest.files} | set(BESIDE)
        left, foreign = [], []
        for path, lying in sorted(there.items()):
            if path in ours or lying.folder:
                continue
            older = self._older.get(path)
            if older is not None and lying.regular and self._is_as_it_was(older, lying):
                left.append(lying)
            else:
                foreign.append(path)
        return tuple(left), tuple(foreign)

    def _is_as_it_was(self, older: BundleFile, lying: There) -> bool:
        """Tell whether a file is what the older version put there.

        Its size and its beginning tell that well enough to name it; to delete it, every byte must.
        """
        if lying.size_bytes != older.size_bytes:
            return False
        pieces = pieces_of(older, self._segment_bytes[older.path])
        pieces = pieces if self.deleting else pieces[:1]
        for piece, fault in self.reading.faults(self.place.root / older.path, pieces):
            self._done += piece.size_bytes
            self.progress(self._done, max(self._done, self._total))
            if fault:
                return False
        return True


def _known_to_differ(file: BundleFile, older: BundleFile | None) -> frozenset[int]:
    """Return which segments need not be looked at: the older version had others there."""
    if older is None or not older.segments or not file.segments:
        return frozenset()
    pairs = enumerate(zip(file.segments, older.segments, strict=False))
    return frozenset(index for index, (new, old) in pairs if new != old)


def _cut_off_update(there: Mapping[str, There]) -> Iterator[Problem]:
    if UPDATE_NAME in there:
        yield Problem(
            "an update of this bundle was begun here and not finished",
            UPDATE_NAME,
            "finish it (the same update again), or give it up by removing this folder",
        )


def in_the_way(
    paths: Iterable[str], there: Mapping[str, There], is_folded: Callable[[str], bool]
) -> Iterator[Problem]:
    """Yield what lies where the bundle's files must go and cannot be replaced by them.

    Args:
        paths: what is to be copied.
        there: what lies on the stick, by its exact name.
        is_folded: tells whether a path leads to something although no name is exactly like it.
    """
    folded = {_folded(path): path for path in there}
    seen: set[str] = set()
    for path in map(PurePosixPath, paths):
        for place in (*reversed(path.parents[:-1]), path):
            name = place.as_posix()
            if name in seen:
                continue
            seen.add(name)
            why = _why_blocked(name, place != path, there, folded, is_folded)
            if why:
                yield Problem(why, name, "rename it, or move it elsewhere")


def _why_blocked(
    name: str, folder: bool, there: Mapping[str, There], folded: Mapping[str, str],
    is_folded: Callable[[str], bool],
) -> str:  # fmt: skip
    lying = there.get(name)
    if lying is not None:
        if folder and not lying.folder:
            return "is in the way: a folder of the bundle has this name"
        return "is in the way: it is not a plain file" if not folder and not lying.regular else ""
    other = folded.get(_folded(name))
    if other is not None and is_folded(name):
        return f"{other!r} is in the way: the stick does not tell the two names apart"
    return ""


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
