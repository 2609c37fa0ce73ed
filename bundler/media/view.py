"""The view: a scratch folder in which par2 finds the pieces of one set under PAR2's own names.

Intact small files are links into the bundle, segments are copies; what is damaged is always a copy,
so whatever the program does, it does not do it to the bundle. A full set takes 1 GiB here, and no
more: sets are repaired one after the other. par2 works on files, so segments cannot be spared a copy.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bundler.descriptors import open_locked_folder, read_at
from bundler.errors import DamagedError, DoesNotFit
from bundler.grouping import Group, Piece
from bundler.media.packets import Scan, Usable, scan, usable, write_set
from bundler.media.parity import expected
from bundler.segments import copy_range, open_plain
from bundler.store import full_disk_is_an_error
from bundler.value import format_size

PREFIX = ".bundler-repair-"
_MARGIN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """How much room a view takes."""

    copied_bytes: int
    linked_bytes: int = 0
    """Of whole files, which take room only where there are no links."""

    def bytes_at(self, place: Path) -> int:
        """Return how much must be free in a folder."""
        return self.copied_bytes + _MARGIN_BYTES + (0 if _has_links(place) else self.linked_bytes)


@contextmanager
def scratch(root: Path, wanted: Need, given: Path | None) -> Iterator[Path]:
    """Give an empty folder with that much room: where it was told, else on this machine's disk,
    else on the bundle's own.

    Raises:
        DoesNotFit: there is no such room; says how much is needed, and how much more than there is.
    """
    places = [given] if given is not None else [Path(tempfile.gettempdir()), root]
    missing = {place: wanted.bytes_at(place) - shutil.disk_usage(place).free for place in places}
    enough = [place for place in places if missing[place] <= 0]
    if not enough:
        most = max(wanted.bytes_at(place) for place in places)
        said = ", ".join(
            f"{place} has {format_size(shutil.disk_usage(place).free)}, "
            f"{format_size(missing[place])} too little"
            for place in places
        )
        raise DoesNotFit(
            f"repairing takes {format_size(most)} of free space for a while: {said}; "
            "--scratch FOLDER names a folder on another disk",
            where=str(root),
            hint="free that much, or name such a folder; nothing in it is kept",
        )
    with (
        _own_folder(enough[0]) as folder,
        full_disk_is_an_error(enough[0], "what repairing needs for a while"),
    ):
        yield folder


def _has_links(place: Path) -> bool:
    """Tell whether links can be made in a folder, by making one."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=PREFIX) as folder:
            return _linked(place, Path(folder) / "link")
    except OSError:
        return False


@contextmanager
def _own_folder(place: Path) -> Iterator[Path]:
    """Make a folder and hold it as long as it is needed: the lock goes with the process."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=place, prefix=PREFIX))
        descriptor = _held(folder)
        if descriptor is not None:
            break  # else somebody swept it before it was held
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def _held(folder: Path) -> int | None:
    """Return the open folder, locked; None when another holds it or it is gone."""
    try:
        descriptor = open_locked_folder(folder)
    except OSError:
        return None
    if folder.exists():
        return descriptor
    os.close(descriptor)
    return None


def sweep(place: Path) -> None:
    """Remove the folders of repairs that were killed; those of living ones are held, and stay."""
    for folder in place.glob(f"{PREFIX}*"):
        descriptor = _held(folder)
        if descriptor is None:
            continue
        try:
            with suppress(OSError):  # another user's
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def check_writable(root: Path) -> None:
    """Refuse a medium on which nothing can be written, before any work.

    Raises:
        DamagedError: it is one.
    """
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=PREFIX):
            pass
    except OSError as error:
        raise DamagedError(
            f"nothing can be written here, so nothing can be repaired: {error.strerror}",
            where=str(root),
            hint="copy the bundle to a disk that can be written, and repair the copy",
        ) from error


def need(group: Group, damaged: Collection[Piece], parity_bytes: int) -> Need:
    """Return how much room a view of this set takes while it is repaired.

    Segments and what is damaged are copies, and par2 writes what is damaged a second time.
    """
    whole = [piece for piece in group.pieces if piece.index is None and piece not in damaged]
    linked_bytes = sum(piece.size_bytes for piece in whole)
    all_bytes = sum(piece.size_bytes for piece in group.pieces)
    again_bytes = sum(piece.size_bytes for piece in damaged)
    return Need(all_bytes - linked_bytes + again_bytes + parity_bytes, linked_bytes)


def need_to_make(group: Group, parity_bytes: int) -> Need:
    """Return how much room it takes to make this set anew: all pieces are copies, par2 follows no links."""
    return Need(sum(piece.size_bytes for piece in group.pieces) + 3 * parity_bytes)


def fill(view: Path, root: Path, group: Group, damaged: Collection[str]) -> None:
    """Lay out the pieces of a set as the bundle at `root` has them now.

    Args:
        view: an empty folder.
        root: the bundle.
        group: the set.
        damaged: names of pieces that are not right: they are copied as far as they can be read.
    """
    for piece in group.pieces:
        target, source = view / piece.name, root / piece.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() or not source.is_file():
            continue  # No link to nowhere: par2 would write through it.
        if piece.name in damaged:
            _copy_what_is_there(source, piece, target)
        elif piece.index is not None or not _linked(source, target):
            copy_range(source, piece.offset, piece.size_bytes, target)


def _linked(source: Path, target: Path) -> bool:
    if sys.platform == "win32":
        return False  # par2 asks for sizes there without following links
    try:
        target.symlink_to(source)
    except OSError:
        return False  # FAT has no links
    return True


def _copy_what_is_there(source: Path, piece: Piece, target: Path) -> None:
    """Copy a damaged piece block by block: what cannot be read is left as a hole."""
    try:
        with open_plain(source) as reader:
            end = min(os.fstat(reader).st_size, piece.offset + piece.size_bytes)
            if end <= piece.offset:
                return
            with target.open("xb") as writer:
                for at in range(piece.offset, end, 4096):
                    writer.seek(at - piece.offset)
                    writer.write(_readable(reader, at, min(4096, end - at)))
    except OSError:
        return  # It is gone, or cannot be opened: par2 takes it for missing.


def _readable(reader: int, at: int, size_bytes: int) -> bytes:
    try:
        return read_at(reader, size_bytes, at)
    except OSError:
        return bytes(size_bytes)


def checked_parity(source: Path, group: Group, set_id: bytes, target: Path) -> Usable | None:
    """Write those packets of a PAR2 file anew that are intact and belong here; None if too few do.

    Raises:
        UnsafeInput: the file is made to be read for ever.
    """
    if source.is_symlink() or not source.is_file():
        return None
    try:
        found: Scan = scan(source, group.block_bytes)
    except OSError:
        return None
    kept = usable(found, set_id, group.block_bytes, expected(group))
    if kept is not None:
        write_set(source, kept, target)
    return kept
