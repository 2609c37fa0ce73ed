"""New files are built beside the old ones, in a folder of the bundle, and held against the manifest.

What is in the folder is never believed: a file that was being written goes on behind its last
segment that has the right digest, and a finished one is read again before the old version is given
up. So it does not matter when the stick was pulled out, or who wrote into the folder since.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bundler.descriptors import NEVER_THROUGH_LINKS, set_mode
from bundler.errors import DamagedError, DoesNotFit, Problem, UnsafeInput
from bundler.grouping import Piece, pieces_of
from bundler.manifest import UPDATE_NAME, BundleFile, Manifest
from bundler.segments import hash_range
from bundler.store import full_disk_is_an_error, sync_folder
from bundler.update.delta import Delta, Rebuilt, kept_paths, sources_of
from bundler.update.reading import Pieces
from bundler.update.unpacking import span_bytes
from bundler.value import format_bytes

STAGING_NAME = UPDATE_NAME
PART = ".part"
_MARGIN_BYTES = 4 << 20
"""For lists, and what a filesystem takes for itself."""

Count = Callable[[int], None]
"""Told of bytes that were dealt with."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A file of the new version and where its bytes are until it gets its name."""

    file: BundleFile
    name: str
    """In the staging folder."""
    rebuilt: Rebuilt | None
    """None when it is an old file that only changes its name."""
    source: str = ""
    """That old file."""

    def place(self, root: Path) -> Path:
        """Return where its bytes are before the switch."""
        return root / (self.source or f"{STAGING_NAME}/{self.name}")


def staged_files(delta: Delta, new: Manifest) -> tuple[Staged, ...]:
    """Return every file that is not kept, named by content: any run finds what is built already."""
    rebuilt = {one.path: one for one in delta.rebuilt}
    moved = {one.path: one.source for one in delta.moved}
    twins: Counter[str] = Counter()
    staged = []
    for file in new.files:
        if file.path in rebuilt or file.path in moved:
            name = f"{file.sha256}-{twins[file.sha256]}"
            twins[file.sha256] += 1
            staged.append(Staged(file, name, rebuilt.get(file.path), moved.get(file.path, "")))
    return tuple(staged)


def open_staging(root: Path) -> Path:
    """Return the staging folder of a bundle, made if it is not there.

    Raises:
        UnsafeInput: something else has its name.
    """
    folder = root / STAGING_NAME
    with suppress(FileExistsError):
        folder.mkdir()
        sync_folder(root)
    if not stat.S_ISDIR(folder.lstat().st_mode):
        hint = "remove it, then run the same command again"
        raise UnsafeInput(
            "is not a folder: nothing is written through it", where=str(folder), hint=hint
        )
    return folder


def sweep(folder: Path, staged: tuple[Staged, ...]) -> None:
    """Remove what another update that was given up has built there.

    Raises:
        UnsafeInput: something lies there that no update puts there.
    """
    names = {one.name for one in staged}
    for path in sorted(folder.iterdir()):
        if not stat.S_ISREG(path.lstat().st_mode):
            hint = "remove it, then run the same command again"
            raise UnsafeInput("was not put there by an update", where=str(path), hint=hint)
        if path.name.removesuffix(PART) not in names:
            path.unlink()


def needed_bytes(root: Path, staged: tuple[Staged, ...]) -> int:
    """Return how much room building takes beyond what a run before this one has built already."""
    unit = _cluster_bytes(root)
    need = _MARGIN_BYTES
    for one in staged:
        if one.rebuilt is not None:
            there = _size(one.place(root)) + _size(_partial(one.place(root)))
            need += max(0, -(-one.file.size_bytes // unit) * unit - there)
    return need


def _cluster_bytes(root: Path) -> int:
    """Return what a file's size is rounded up to; where nobody says it, the most that exFAT takes."""
    if sys.platform == "win32":
        return 128 << 10
    return os.statvfs(root).f_frsize or 4096


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def check_room(root: Path, need: int) -> None:
    """Refuse before the first byte when the new files cannot lie beside the old ones.

    Raises:
        DoesNotFit: with both figures.
    """
    total, _, free = shutil.disk_usage(root)
    if total and need > free:  # some FUSE filesystems do not tell: then writing will
        raise DoesNotFit(
            f"the update needs {format_bytes(need)} beside the version that is there, and "
            f"{format_bytes(free)} are free",
            where=str(root),
            hint=f"free {format_bytes(need - free)} there; the old version is kept until the new "
            "one is whole, so only what changed needs room twice",
        )


# -- building ----------------------------------------------------------------------------------------


def build(root: Path, one: Staged, pieces: Pieces, segment_bytes: int, count: Count) -> None:
    """Build a file of the new version in the staging folder, going on where a run was cut off.

    Raises:
        DamagedError: what was built is not what the new manifest says.
        DoesNotFit: the disk is full.
    """
    final = one.place(root)
    if one.rebuilt is None or (_size(final) == one.file.size_bytes and final.exists()):
        count(one.file.size_bytes)
        return
    partial = _partial(final)
    parts = pieces_of(one.file, segment_bytes)
    with full_disk_is_an_error(root, one.file.path):
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | NEVER_THROUGH_LINKS, 0o644)
        try:
            right = _right_so_far(partial, parts)
            start = sum(part.size_bytes for part in right)
            os.truncate(descriptor, start)
            os.lseek(descriptor, start, os.SEEK_SET)
            count(start)
            blocks = span_bytes(one.rebuilt.spans, start, root, pieces)
            _write_parts(descriptor, blocks, parts[len(right) :], one, root, count)
            _settle(descriptor, executable=one.file.executable)
        finally:
            os.close(descriptor)
        os.replace(partial, final)


def _partial(final: Path) -> Path:
    return final.with_name(final.name + PART)


def _right_so_far(partial: Path, parts: tuple[Piece, ...]) -> list[Piece]:
    """Return the segments of a half-built file that are right, up to the first that is not."""
    right: list[Piece] = []
    for part in parts if _size(partial) else ():
        if hash_range(partial, part.offset, part.size_bytes) != part.sha256:
            break
        right.append(part)
    return right


def _write_parts(
    descriptor: int, blocks: Iterator[bytes], parts: tuple[Piece, ...], one: Staged, root: Path,
    count: Count,
) -> None:  # fmt: skip
    """Write segment by segment; each is right before the next one is begun."""
    left = memoryview(b"")
    for part in parts:
        running, missing = hashlib.sha256(), part.size_bytes
        while missing:
            if not left:
                left = memoryview(next(blocks, b""))
                if not left:
                    break
            some, left = left[:missing], left[missing:]
            running.update(some)
            _write(descriptor, some)
            missing -= len(some)
            count(len(some))
        if running.hexdigest() != part.sha256:
            raise _not_as_promised(one, root)


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _settle(descriptor: int, *, executable: bool) -> None:
    """Force a file to the disk, and out of memory, so that it is read from there afterwards."""
    set_mode(descriptor, 0o755 if executable else 0o644)
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _not_as_promised(one: Staged, root: Path) -> DamagedError:
    assert one.rebuilt is not None
    read = sorted({source.path for source in sources_of(one.rebuilt.spans)})
    used = f"; it is made from {', '.join(read[:3])} of the bundle there" if read else ""
    return DamagedError(
        f"does not come out as the new version has it{used}",
        where=one.file.path,
        hint=f"bundler repair {root}, then the same command again; nothing was changed so far",
    )


# -- before the old version is given up ----------------------------------------------------------------


def check_new_version(
    root: Path, staged: tuple[Staged, ...], old: Manifest, new: Manifest, count: Count,
    workers: int = 2,
) -> None:  # fmt: skip
    """Read every byte of the new version where it lies now: built, moved and kept files.

    Files that were built and do not come back right are removed, so that they are built anew.

    Raises:
        DamagedError: every file that is not right; the old version is still all there.
    """
    places = {one.file.path: one.place(root) for one in staged}
    kept = kept_paths(old, new)
    places |= {path: root / path for path in kept}
    files = [file for file in new.files if file.path in places]
    pieces = [piece for file in files for piece in pieces_of(file, new.segment_bytes)]
    wrong: dict[str, None] = {}
    with ThreadPoolExecutor(workers) as pool:
        right = pool.map(lambda piece: _is_right(places[piece.path], piece), pieces)
        for piece, fine in zip(pieces, right, strict=True):
            count(piece.size_bytes)
            if not fine:
                wrong[piece.path] = None
    wrong |= {f.path: None for f in files if _size(places[f.path]) != f.size_bytes}
    if wrong:
        raise DamagedError([_not_right(root, path, places[path]) for path in sorted(wrong)])


def _is_right(place: Path, piece: Piece) -> bool:
    try:
        return hash_range(place, piece.offset, piece.size_bytes) == piece.sha256
    except OSError:
        return False


def _not_right(root: Path, path: str, place: Path) -> Problem:
    if place.parent.name == STAGING_NAME:
        place.unlink(missing_ok=True)
        hint = (
            "run the same command again: it is built anew; if it happens twice, the stick is worn"
        )
        return Problem("was not read back as it was written", path, hint)
    hint = f"bundler repair {root}, then the same command again; nothing was changed so far"
    return Problem("is damaged in the bundle that lies there", path, hint)
