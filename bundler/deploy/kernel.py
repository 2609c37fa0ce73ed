"""What Linux offers for files and Python does not: syncfs, mincore, fallocate. Elsewhere: nothing.

Every function says whether it worked, so that a proof is never built on what did not happen.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from typing import Any

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_WINDOW_BYTES = 1 << 30  # mapped at a time: a map of a whole 64 GB file may be refused
_MAP_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def flush_filesystem(descriptor: int) -> bool:
    """Write everything of the filesystem that `descriptor` lies on to its device (syncfs(2)).

    Raises:
        OSError: the device did not take it.
    """
    if not hasattr(_libc(), "syncfs"):
        return False
    if _libc().syncfs(ctypes.c_int(descriptor)) != 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return True


def reserve(descriptor: int, size_bytes: int) -> bool:
    """Give a file room on the device without writing it; False where the filesystem cannot.

    Raises:
        OSError: there is no such room.
    """
    if not hasattr(_libc(), "fallocate"):
        return False
    done = _libc().fallocate(
        ctypes.c_int(descriptor), ctypes.c_int(_KEEP_SIZE), ctypes.c_int64(0),
        ctypes.c_int64(size_bytes),
    )  # fmt: skip
    if done == 0:
        return True
    failed = ctypes.get_errno()
    if failed in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM):
        return False
    raise OSError(failed, os.strerror(failed))


def forget_pages(descriptor: int) -> bool:
    """Ask the kernel to drop what it remembers of a file; what is not written yet stays."""
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    return True


def pages_in_memory(descriptor: int, size_bytes: int) -> int | None:
    """Return how many pages of a file the kernel holds (mincore(2)); None when it does not tell."""
    libc = _libc()
    if not hasattr(libc, "mincore"):
        return None
    held = 0
    for offset in range(0, size_bytes, _WINDOW_BYTES):
        count = _pages_of_window(libc, descriptor, offset, min(_WINDOW_BYTES, size_bytes - offset))
        if count is None:
            return None
        held += count
    return held


def _pages_of_window(libc: Any, descriptor: int, offset: int, size_bytes: int) -> int | None:
    libc.mmap.restype = ctypes.c_void_p
    length = ctypes.c_size_t(size_bytes)
    address = libc.mmap(
        None, length, mmap.PROT_READ, mmap.MAP_SHARED, ctypes.c_int(descriptor),
        ctypes.c_int64(offset),
    )  # fmt: skip
    if address in (None, _MAP_FAILED):
        return None
    try:
        states = (ctypes.c_ubyte * -(-size_bytes // mmap.PAGESIZE))()
        if libc.mincore(ctypes.c_void_p(address), length, states) != 0:
            return None
        return sum(bytes(states).translate(_LOWEST_BIT))
    finally:
        libc.munmap(ctypes.c_void_p(address), length)


_LOWEST_BIT = bytes(value & 1 for value in range(256))
