"""Reads a stick past the page cache, and keeps account of what proves that its device was read."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bundler.deploy.ground import Ground
from bundler.deploy.kernel import forget_pages, pages_in_memory
from bundler.deploy.mounts import bytes_read_from
from bundler.deploy.source import BLOCK_BYTES, Buffers, new_buffers
from bundler.deploy.stopping import Stopped
from bundler.grouping import Piece

_ALIGNED = 4096
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for it that bytes came from the device and not from memory."""

    read_bytes: int = 0
    forgotten_bytes: int = 0
    """Of files of which, by mincore(2), no page was in memory before they were read."""
    direct_bytes: int = 0
    """Read with O_DIRECT."""
    device_bytes: int | None = None
    """What the kernel counted as read from the block device meanwhile; None when it does not tell."""

    def __add__(self, other: Evidence) -> Evidence:
        """Return what both say together."""
        counted = (
            (self.device_bytes, other.device_bytes) if self.read_bytes else (0, other.device_bytes)
        )
        return Evidence(
            self.read_bytes + other.read_bytes,
            self.forgotten_bytes + other.forgotten_bytes,
            self.direct_bytes + other.direct_bytes,
            None if None in counted else sum(filter(None, counted)),
        )


class PastCache:
    """Reads pieces of files on one stick; a context manager."""

    def __init__(
        self, ground: Ground, stop: threading.Event, buffers: Buffers | None = None
    ) -> None:
        self._ground = ground
        self._stop = stop
        self._hashing = ThreadPoolExecutor(1, "hash")
        self._buffers = buffers or new_buffers()
        self._tally = Evidence()
        self._counted = bytes_read_from(ground.device)

    def __enter__(self) -> PastCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown(wait=True, cancel_futures=True)

    def evidence(self) -> Evidence:
        """Return what is known so far."""
        now = bytes_read_from(self._ground.device)
        counted = None if now is None or self._counted is None else now - self._counted
        return replace(self._tally, device_bytes=counted)

    def faults(self, path: Path, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
        """Yield each piece of the file at `path` with what is wrong with it, "" when nothing is.

        Raises:
            OSError: the file cannot be opened.
            Stopped: everything is being stopped.
        """
        plain = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = os.fstat(plain).st_size
            forgotten = self._forget(plain, size)
            with _Direct(path, plain) as opened:
                for piece in pieces:
                    yield piece, self._fault(opened, piece, forgotten=forgotten)
        finally:
            os.close(plain)

    def _forget(self, descriptor: int, size: int) -> bool:
        """Drop a file's pages; tell whether they are gone, as far as the kernel tells."""
        return forget_pages(descriptor) and pages_in_memory(descriptor, size) == 0

    def _fault(self, opened: _Direct, piece: Piece, *, forgotten: bool) -> str:
        running = hashlib.sha256()
        hashed: Future[None] | None = None
        done, number = 0, 0
        while done < piece.size_bytes:
            if self._stop.is_set():
                raise Stopped
            buffer = self._buffers[number % 2]
            wanted = min(BLOCK_BYTES, piece.size_bytes - done)
            try:
                count = min(wanted, opened.read(buffer, wanted, piece.offset + done))
            except OSError as error:
                return f"cannot be read: {error.strerror}"
            finally:
                if hashed is not None:
                    hashed.result()
            if count == 0:
                return "ends too early"
            hashed = self._hashing.submit(_update, running, buffer, count)
            done, number = done + count, number + 1
            self._count(count, forgotten=forgotten, direct=opened.direct)
        if hashed is not None:
            hashed.result()
        return "" if running.hexdigest() == piece.sha256 else "other content"

    def _count(self, count: int, *, forgotten: bool, direct: bool) -> None:
        tally = self._tally
        self._tally = Evidence(
            tally.read_bytes + count,
            tally.forgotten_bytes + (count if forgotten else 0),
            tally.direct_bytes + (count if direct else 0),
        )


def _update(running: hashlib._Hash, buffer: mmap.mmap, count: int) -> None:
    with memoryview(buffer) as view:
        running.update(view[:count])


class _Direct:
    """A file opened past the page cache where its filesystem has that, else as given."""

    def __init__(self, path: Path, plain: int) -> None:
        self._plain = plain
        self._past = _open_direct(path)

    def __enter__(self) -> _Direct:
        return self

    def __exit__(self, *_: object) -> None:
        if self._past is not None:
            os.close(self._past)

    @property
    def direct(self) -> bool:
        return self._past is not None

    def read(self, buffer: mmap.mmap, size: int, offset: int) -> int:
        """Read up to `size` bytes and return how many came; a few more at the end of a block."""
        with memoryview(buffer) as view:
            if self._past is not None and offset % _ALIGNED == 0:
                try:
                    return os.preadv(self._past, [view[: -(-size // _ALIGNED) * _ALIGNED]], offset)
                except OSError as error:
                    if error.errno not in _NOT_DIRECT:
                        raise
                    os.close(self._past)
                    self._past = None
            return os.preadv(self._plain, [view[:size]], offset)


def _open_direct(path: Path) -> int | None:
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return None
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flag)
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
        return None


# -- what it proves --------------------------------------------------------------------------------


def proofs(evidence: Evidence) -> list[str]:
    """Return what held, as sentences."""
    found = []
    if evidence.read_bytes and evidence.forgotten_bytes == evidence.read_bytes:
        found.append("no page of the files was in memory before they were read (mincore)")
    if evidence.read_bytes and evidence.direct_bytes == evidence.read_bytes:
        found.append("they were read around the page cache (O_DIRECT)")
    if evidence.device_bytes is not None and evidence.device_bytes >= evidence.read_bytes > 0:
        found.append("the device delivered at least as many bytes as were compared (its counter)")
    return found


def doubts(evidence: Evidence, ground: Ground) -> list[str]:
    """Return what could not be proven, as sentences."""
    if not evidence.read_bytes:
        return []
    if not ground.on_device:
        kind = ground.kind or "unknown filesystem"
        return [f"there is no device of this machine below it ({kind}): nothing is proven of one"]
    found = []
    counted = evidence.device_bytes
    if counted is None:
        found.append("the system does not count what its device reads")
    elif counted < evidence.read_bytes:
        share = counted / evidence.read_bytes
        found.append(f"the device delivered only {share:.0%} of the bytes: the rest was in memory")
    if max(evidence.forgotten_bytes, evidence.direct_bytes) < evidence.read_bytes:
        found.append("the system did not let go of what it remembers of some files")
    return found


def device_was_read(evidence: Evidence, ground: Ground) -> bool:
    """Tell whether all bytes that were compared provably came from the device."""
    return bool(evidence.read_bytes) and ground.on_device and not doubts(evidence, ground)
