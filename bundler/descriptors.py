"""Descriptors of files and folders as POSIX has them, and the nearest that Windows has.

The far end may be either. What Windows lacks is said at each door: a folder cannot be opened there,
a descriptor has one position, text mode changes bytes, and there is no flag against links.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

NEVER_THROUGH_LINKS = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)
"""Flags for `os.open`: not inherited, every byte as it is, and a link is refused where the system
can. Windows cannot: there `is_link_here` has to be asked before."""

if sys.platform == "win32":
    import msvcrt

    def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
        """Return bytes from an offset, fewer at the end of the file.

        Moves the descriptor's position: two threads need a descriptor each.
        """
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size_bytes)

    def write_at(descriptor: int, data: bytes, offset: int) -> int:
        """Write bytes at an offset and return how many; moves the descriptor's position."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)

    def lock(descriptor: int) -> None:
        """Hold an open file alone, until it is closed or the process ends.

        Raises:
            BlockingIOError: another holds it.
        """
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, "another process holds it") from error

    def open_locked_folder(folder: Path, *, through_links: bool = False) -> int:
        """Hold a folder alone and return a descriptor that ends it when it is closed.

        A folder cannot be locked here: what is locked is a file in this user's temporary folder,
        named after it, which is gone when it is closed. A stick is in one computer at a time.

        Raises:
            BlockingIOError: another process holds it.
            OSError: it is not there, is no folder, or is a link and `through_links` is not given.
        """
        place = folder.resolve(strict=True)
        if not stat.S_ISDIR((place if through_links else folder).lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        name = hashlib.sha256(os.path.normcase(place).encode()).hexdigest()[:32]
        holder = Path(tempfile.gettempdir()) / f"bundler-{name}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_TEMPORARY | NEVER_THROUGH_LINKS
        try:
            descriptor = os.open(holder, flags, 0o600)
        except PermissionError as error:  # it is about to go, and so is who holds it
            raise BlockingIOError(error.errno, "another process holds it") from error
        try:
            lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def set_mode(place: int | Path, mode: int) -> None:
        """Do nothing: Windows' files have no such modes."""

    def put_in_place(new: Path, target: Path, aside: Path) -> None:
        """Rename a file to where another one may lie.

        A program that runs can be renamed but neither replaced nor removed: it goes `aside`, and
        whoever comes by when it no longer runs removes it.
        """
        if target.exists():
            target.chmod(stat.S_IWRITE)  # one that is marked as read-only cannot be removed either
        try:
            os.replace(new, target)
        except PermissionError:
            target.rename(aside)
            try:
                new.rename(target)
            except OSError:
                aside.rename(target)
                raise

else:
    import fcntl

    def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
        """Return bytes from an offset, fewer at the end of the file."""
        return os.pread(descriptor, size_bytes, offset)

    def write_at(descriptor: int, data: bytes, offset: int) -> int:
        """Write bytes at an offset and return how many."""
        return os.pwrite(descriptor, data, offset)

    def lock(descriptor: int) -> None:
        """Hold an open file alone, until it is closed or the process ends.

        Raises:
            BlockingIOError: another holds it.
        """
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def open_locked_folder(folder: Path, *, through_links: bool = False) -> int:
        """Hold a folder alone and return a descriptor that ends it when it is closed.

        Raises:
            BlockingIOError: another process holds it.
            OSError: it is not there, is no folder, or is a link and `through_links` is not given.
        """
        place = folder.resolve(strict=True) if through_links else folder
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | NEVER_THROUGH_LINKS)
        try:
            lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def set_mode(place: int | Path, mode: int) -> None:
        """Set the mode of a file, open or by its path, where the filesystem has such a thing.

        What FAT's drivers say that it has not: Linux' own and exfat-fuse EPERM, fusefat ENOSYS.
        """
        try:
            os.chmod(place, mode)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def put_in_place(new: Path, target: Path, aside: Path) -> None:
        """Rename a file to where another one may lie."""
        os.replace(new, target)
