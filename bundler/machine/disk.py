"""The disk a folder lies on: how fast it reads, how full it is, and what its filesystem can do."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bundler.machine.processor import is_virtual
from bundler.machine.values import Figure
from bundler.value import format_size

_BLOCK_BYTES = 4 * 2**20
SAMPLE_BYTES = 256 * 2**20
SAMPLE_SECONDS = 3.0
WRITE_SECONDS = 8.0
"""No more time than this is spent on writing something to read."""
LARGE_FILE_BYTES = 64 * 2**20
"""A file this large tells how fast a disk is; a smaller one is read before the disk is at speed."""
_F_NOCACHE = 48  # sys/fcntl.h of macOS
_PAGE = mmap.PAGESIZE

# FAT32 holds no file of 4 GiB or more; names: what the kernel calls it → what we call it.
FAT = frozenset({"vfat", "msdos", "fat32"})
MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})


class Disk(NamedTuple):
    """Where a folder lies."""

    folder: Path
    """The folder itself, or the nearest one above it that exists."""
    free_bytes: int
    total_bytes: int
    filesystem: str
    """What the system calls it (`ext4`, `exfat`, `vfat`, `tmpfs`); empty when unknown."""
    read_only: bool


def disk_of(folder: Path, root: Path = Path("/")) -> Disk:
    """Return what is known of the disk that `folder` is on, or would be on once it is made."""
    there = folder.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    usage = shutil.disk_usage(there)
    filesystem, options = mounted(there, root)
    read_only = "ro" in options or not os.access(there, os.W_OK)
    return Disk(there, usage.free, usage.total, filesystem, read_only)


def mounted(folder: Path, root: Path = Path("/")) -> tuple[str, frozenset[str]]:
    """Return filesystem and options of the mount that holds `folder`; empty when not told."""
    try:
        lines = (root / "proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return "", frozenset()
    best, found = -1, ("", frozenset[str]())
    resolved = folder.resolve()
    for line in lines:
        fields = line.split()
        if len(fields) < 4:
            continue
        point = Path(fields[1].encode().decode("unicode_escape"))
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), (fields[2], frozenset(fields[3].split(",")))
    return found


def takes_names(folder: Path) -> str:
    """Try the names that bundles have in `folder`; return what it does wrong, or an empty string.

    Writes two empty files into a scratch folder and removes them.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bundler-names-") as made:
        long = "a" * 200 + ".safetensors"
        try:
            (Path(made) / long).touch()
            (Path(made) / "Umlaut-ä-漢字.txt").touch()
        except OSError as error:
            return f"it refuses names that other filesystems take ({error.strerror})"
        if (Path(made) / long.upper()).exists():
            return ""  # upper and lower case are one: our names are all lower case
    return ""


# -- speed -----------------------------------------------------------------------------------------


def disk_read_speed(
    folder: Path, *, sample: Path | None = None, sample_bytes: int = SAMPLE_BYTES
) -> tuple[Figure | None, str]:
    """Return how fast the disk of `folder` reads past the page cache, or None and why not.

    Reads `sample` (any large file there), or a file of random bytes that is written for it and
    removed.
    """
    if sys.platform == "win32":
        return None, "disk read speed was not measured: not known how to pass Windows' cache"
    disk = disk_of(folder)
    if disk.filesystem in MEMORY_FILESYSTEMS:
        return None, f"disk read speed was not measured: {disk.folder} is in memory, no disk"
    try:
        with _sample(disk, sample, sample_bytes) as path:
            return _read_speed(path, sample_bytes)
    except OSError as error:
        return None, f"disk read speed was not measured: {error.strerror or error}"


def large_file(store: Path) -> Path | None:
    """Return the largest object of a store, when it is large enough to measure a disk with."""
    sizes = {path: path.stat().st_size for path in (store / "objects").glob("??/*")}
    largest = max(sizes, key=lambda path: (sizes[path], path.name), default=None)
    return largest if largest is not None and sizes[largest] >= LARGE_FILE_BYTES else None


@contextlib.contextmanager
def _sample(disk: Disk, sample: Path | None, size: int) -> Iterator[Path]:
    """Give a file to read: the one that is there, or one made for it."""
    if sample is not None:
        yield sample
        return
    if disk.read_only:
        raise OSError(errno.EROFS, f"{disk.folder} cannot be written")
    if disk.free_bytes < 4 * size:
        raise OSError(errno.ENOSPC, f"{format_size(4 * size)} should be free for it")
    with tempfile.NamedTemporaryFile(dir=disk.folder, prefix=".bundler-speed-") as made:
        _keep_out_of_cache(made.fileno())
        started = time.perf_counter()
        for _ in range(0, size, _BLOCK_BYTES):
            made.write(os.urandom(_BLOCK_BYTES))  # some disks compress, so no zeros
            made.flush()
            os.fsync(made.fileno())  # each block, so that a slow stick is noticed in time
            if time.perf_counter() - started > WRITE_SECONDS:
                break
        yield Path(made.name)


def _read_speed(path: Path, most_bytes: int) -> tuple[Figure | None, str]:
    """Read a file directly where the filesystem allows it, else after dropping its pages."""
    direct = getattr(os, "O_DIRECT", 0)
    way = "O_DIRECT"
    try:
        descriptor = os.open(path, os.O_RDONLY | direct)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor, direct = os.open(path, os.O_RDONLY), 0
    try:
        if not direct:
            way = _drop_pages(descriptor)
            if not way:
                return None, (
                    "disk read speed was not measured: the filesystem lets nobody past its cache"
                )
        read, seconds = _timed(descriptor, most_bytes)
    finally:
        os.close(descriptor)
    if read == 0 or seconds <= 0:
        return None, "disk read speed was not measured: there was nothing to read"
    how = f"{format_size(read)} read in order past the page cache ({way})"
    if is_virtual():
        how += "; the host of this virtual machine may have cached it"
    return Figure(value=round(read / seconds), how=how), ""


def _timed(descriptor: int, most_bytes: int) -> tuple[int, float]:
    """Read up to `most_bytes` or for a few seconds; return bytes and seconds."""
    read = 0
    with mmap.mmap(-1, _BLOCK_BYTES) as buffer:  # O_DIRECT wants page-aligned memory
        started = time.perf_counter()
        while read < most_bytes and time.perf_counter() - started < SAMPLE_SECONDS:
            count = os.readv(descriptor, [buffer])
            if count == 0:
                break
            read += count
        return read, time.perf_counter() - started


def _drop_pages(descriptor: int) -> str:
    """Make the system forget a file's pages; return how, or nothing when it did not."""
    if sys.platform == "darwin":
        _keep_out_of_cache(descriptor)
        how = "F_NOCACHE"
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        how = "POSIX_FADV_DONTNEED"
    else:
        return ""
    return f"{how}, checked by mincore" if resident_share(descriptor) < 0.01 else ""


def _keep_out_of_cache(descriptor: int) -> None:
    """Ask macOS to read and write this file past its cache; nothing elsewhere."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, _F_NOCACHE, 1)


def resident_share(descriptor: int) -> float:
    """Return which share of a file's pages lies in memory (mincore(2)); 1 when it cannot tell."""
    size = os.fstat(descriptor).st_size
    pages = -(-size // _PAGE)
    if pages == 0:
        return 1.0
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        states = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(view)
        try:
            library = ctypes.CDLL(None, use_errno=True)
            failed = library.mincore(
                ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), states
            )
        finally:
            del anchor  # or the map could not be closed
        return 1.0 if failed else sum(state & 1 for state in states) / pages
