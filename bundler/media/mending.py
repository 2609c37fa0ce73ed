"""Puts right bytes into a bundle. Every byte is the old one or the right one, whenever it is cut off.

A small file is written beside its place, forced to the disk and renamed. A large one is written in
place, and only those 4 KiB pages of it that differ: they were damaged before, so a power cut leaves
some of them mended and none worse, and a second run finishes. Nothing is written through a link:
a file that shares its bytes with the store gets bytes of its own first.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bundler.descriptors import NEVER_THROUGH_LINKS, put_in_place, read_at, set_mode, write_at
from bundler.errors import UnsafeInput
from bundler.grouping import Piece
from bundler.manifest import BundleFile
from bundler.media.view import PREFIX
from bundler.segments import hash_range, open_plain
from bundler.store import sync_folder

_PAGE_BYTES = 4096
_BLOCK = 1 << 20


def safe_parent(root: Path, path: str) -> Path:
    """Return the folder a file of the bundle belongs in, made if it is not there.

    Raises:
        UnsafeInput: a link or a file lies in the way, so writing could leave the bundle.
    """
    folder = root
    for part in Path(path).parts[:-1]:
        folder /= part
        with suppress(FileExistsError):
            folder.mkdir()
            sync_folder(folder.parent)
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise UnsafeInput("is not a folder: nothing is written through it", where=str(folder))
    return folder


def replace_file(root: Path, path: str, source: Path | bytes, mode: int) -> None:
    """Put a whole file in its place: written beside it, forced to the disk, renamed."""
    folder = safe_parent(root, path)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f"{PREFIX}{os.getpid()}-")
    try:
        with os.fdopen(descriptor, "wb") as writer:
            if isinstance(source, bytes):
                writer.write(source)
            else:
                _copy_into(source, writer.fileno())
            writer.flush()
            os.fsync(writer.fileno())
        set_mode(Path(name), mode)
        put_in_place(Path(name), root / path, aside=Path(f"{name}-old"))
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(folder)


def _copy_into(source: Path, writer: int) -> None:
    with open_plain(source) as descriptor:
        while block := os.read(descriptor, _BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(writer, view) :]


def mend(root: Path, file: BundleFile, right: Mapping[Piece, Path]) -> None:
    """Put the right pieces of a file in their places.

    Args:
        root: the bundle.
        file: the file.
        right: pieces and where their right bytes lie, each held against its digest already.
    """
    path = root / file.path
    if not file.segments:
        (source,) = right.values()
        replace_file(root, file.path, source, 0o755 if file.executable else 0o644)
        return
    safe_parent(root, file.path)
    if path.exists() and path.lstat().st_nlink > 1:
        replace_file(root, file.path, path, 0o755 if file.executable else 0o644)
    _in_place(path, file, right)


def mend_from(root: Path, file: BundleFile, whole: Path) -> None:
    """Make a file what a right copy of all of it is: a large one that is there, in its place.

    A stick may have no room for a second copy of it.
    """
    path = root / file.path
    if file.segments and path.is_file() and path.lstat().st_nlink == 1:
        _in_place(path, file, {Piece(file.path, 0, 0, file.size_bytes): whole})
    else:
        replace_file(root, file.path, whole, 0o755 if file.executable else 0o644)


def cut_to_size(root: Path, file: BundleFile) -> None:
    """Take away what was appended to a file."""
    path = root / file.path
    if path.lstat().st_nlink > 1:
        replace_file(root, file.path, path, 0o755 if file.executable else 0o644)
    _in_place(path, file, {})


def _in_place(path: Path, file: BundleFile, right: Mapping[Piece, Path]) -> None:
    new = 0o755 if file.executable else 0o644
    is_new = not path.exists()
    before = new if is_new else stat.S_IMODE(path.lstat().st_mode)
    if not is_new and not before & 0o200:
        path.chmod(before | 0o200)
    flags = os.O_RDWR | os.O_CREAT | NEVER_THROUGH_LINKS
    descriptor = os.open(path, flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafeInput("is no regular file: nothing is written to it", where=str(path))
        if is_new:
            set_mode(descriptor, new)
        for piece, source in sorted(right.items()):
            _write_pages(descriptor, piece.offset, source)
        if os.fstat(descriptor).st_size > file.size_bytes:
            os.ftruncate(descriptor, file.size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        if not before & 0o200:
            path.chmod(before)
    sync_folder(path.parent)


def _write_pages(descriptor: int, offset: int, source: Path) -> None:
    """Write the pages that differ from what is there, or cannot be read there."""
    with source.open("rb") as reader:
        while page := reader.read(_PAGE_BYTES):
            if _there(descriptor, offset, len(page)) != page:
                write_at(descriptor, page, offset)
            offset += len(page)


def _there(descriptor: int, offset: int, size_bytes: int) -> bytes | None:
    try:
        return read_at(descriptor, size_bytes, offset)
    except OSError:
        return None


def is_right(root: Path, piece: Piece) -> bool:
    """Tell whether a piece of the bundle has the digest it should, read from the medium again."""
    path = root / piece.path
    try:
        _forget_cached(path)
        return hash_range(path, piece.offset, piece.size_bytes) == piece.sha256
    except OSError:
        return False


def _forget_cached(path: Path) -> None:
    """Ask the system to read the file from the medium the next time."""
    if hasattr(os, "posix_fadvise"):
        with open_plain(path) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
