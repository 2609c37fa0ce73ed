"""Digests of files and of their segments: read once at seal, piece by piece when verifying."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundler.descriptors import NEVER_THROUGH_LINKS, read_at
from bundler.errors import UnsafeInput

_BLOCK = 1 << 20
_PLAIN_FLAGS = os.O_RDONLY | NEVER_THROUGH_LINKS | getattr(os, "O_NONBLOCK", 0)
_KINDS = {
    stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def hash_with_segments(path: Path, segment_bytes: int) -> tuple[str, tuple[str, ...]]:
    """Return the SHA-256 of a file and of each of its segments, from one reading of it."""
    whole, segments = hashlib.sha256(), []
    buffer = memoryview(bytearray(min(_BLOCK, segment_bytes)))
    with path.open("rb", buffering=0) as stream:
        part, left = hashlib.sha256(), segment_bytes
        while count := stream.readinto(buffer[:left]):
            whole.update(buffer[:count])
            part.update(buffer[:count])
            left -= count
            if not left:
                segments.append(part.hexdigest())
                part, left = hashlib.sha256(), segment_bytes
        if left < segment_bytes:
            segments.append(part.hexdigest())
    return whole.hexdigest(), tuple(segments)


@contextmanager
def open_plain(path: Path) -> Iterator[int]:
    """Open a regular file for reading, never what a link leads to, and never what would not answer.

    A pipe is waited at for ever, a device may do something when it is opened: what lies there is
    looked at before, and once more when it is open.

    Raises:
        OSError: it is not there, is a folder, or cannot be read.
        UnsafeInput: it is a link, a pipe, a socket or a device.
    """
    _check_plain(path, path.lstat().st_mode)
    descriptor = os.open(path, _PLAIN_FLAGS)
    try:
        _check_plain(path, os.fstat(descriptor).st_mode)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_plain(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise UnsafeInput(
            f"is {kind_of(mode)} where a file should be, and is not opened",
            where=str(path),
            hint="remove it, then run the same command again",
        )


def kind_of(mode: int) -> str:
    """Say what something is that is neither file nor folder."""
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def hash_range(path: Path, offset: int, size_bytes: int) -> str:
    """Return the SHA-256 of a range of a file; "" when the file ends before it does.

    Raises:
        OSError: it cannot be read.
    """
    with open_plain(path) as descriptor, os.fdopen(descriptor, "rb", 0, closefd=False) as stream:
        running, left = hashlib.sha256(), size_bytes
        buffer = memoryview(bytearray(min(_BLOCK, max(1, size_bytes))))
        stream.seek(offset)
        while left:
            count = stream.readinto(buffer[:left])
            if not count:
                return ""
            running.update(buffer[:count])
            left -= count
        return running.hexdigest()


def copy_range(source: Path, offset: int, size_bytes: int, target: Path) -> None:
    """Copy a range of a file into the new file `target`: in the kernel where it can be.

    A range that reaches beyond the end gives a shorter file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NEVER_THROUGH_LINKS
    with open_plain(source) as reader:
        writer = os.open(target, flags, 0o600)
        try:
            while size_bytes > 0:
                count = _copy_some(reader, offset, size_bytes, writer)
                if not count:
                    return
                offset, size_bytes = offset + count, size_bytes - count
        finally:
            os.close(writer)


def _copy_some(reader: int, offset: int, size_bytes: int, writer: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(reader, writer, size_bytes, offset_src=offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
    data = read_at(reader, min(_BLOCK, size_bytes), offset)
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
    return len(data)
