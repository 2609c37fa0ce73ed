"""Digests of files and of their segments: read once at seal, piece by piece when verifying."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK = 1 << 20


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
    """Open a regular file for reading, never what a link leads to.

    Raises:
        OSError: it is not there, is a link, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
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
    data = os.pread(reader, min(_BLOCK, size_bytes), offset)
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
    return len(data)
