"""Puts the bytes of one file after another onto a stick: flushed piece by piece, named when whole.

A piece counts as written when the device has it (fdatasync), so whatever is pulled out or killed,
at most one piece of 16 MiB is copied again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bundler.deploy.kernel import flush_filesystem
from bundler.deploy.place import Place, mark
from bundler.deploy.source import Block, Reader
from bundler.deploy.stopping import Stopped
from bundler.deploy.survey import Task
from bundler.errors import DamagedError

_CHUNK_BYTES = (
    4 << 20
)  # between two looks at whether to stop: a fraction of a second of a slow stick
_ALIGNED = 4096
_MOST_TOGETHER = 256
_DIRECT = getattr(os, "O_DIRECT", 0)
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class Writer:
    """Writes the tasks of one stick."""

    def __init__(
        self, place: Place, reader: Reader, segment_bytes: int, stop: threading.Event,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:  # fmt: skip
        self._place = place
        self._reader = reader
        self._segment_bytes = segment_bytes
        self._stop = stop
        self._progress = progress
        self.damaged: list[DamagedError] = []
        """What of the source was not copied, since it is not what the manifest says."""
        self.written: list[Task] = []

    def write(self, tasks: Sequence[Task]) -> None:
        """Write all tasks; a file of which the source is damaged is left out, the others go on.

        Raises:
            OSError: the stick does not take it.
            Stopped: everything is being stopped.
        """
        self._place.make_folders({(self._place.root / t.file.path).parent for t in tasks})
        for batch in batches(tasks, self._segment_bytes):
            whole = [task for task in batch if self._grown(task, alone=len(batch) == 1)]
            if len(batch) > 1:
                self._flush([self._place.part(task.file.sha256) for task in whole])
                self._progress(sum(task.write_bytes for task in whole))
            self._place.check_is_there()
            for task in whole:
                final = self._place.root / task.file.path
                os.replace(self._place.part(task.file.sha256), final)
            self._place.flush_folders({(self._place.root / t.file.path).parent for t in whole})
            self.written += whole

    def _grown(self, task: Task, *, alone: bool) -> bool:
        """Grow the part of a task until it is whole; False when the source has not what it needs."""
        self._place.check_is_there()
        part = self._place.part(task.file.sha256)
        if task.base == "taken":
            os.replace(self._place.root / task.file.path, part)
            self._place.flush_folders([part.parent, (self._place.root / task.file.path).parent])
        try:
            blocks = self._reader.blocks(task.file.path, task.wrong)
            with contextlib.closing(blocks), Part(part, self._stop) as growing:
                for block in blocks:
                    growing.write(block)
                    if alone:
                        growing.flush()
                        self._progress(len(block.view))
                growing.end(task.file.size_bytes, executable=task.file.executable, flush=alone)
        except DamagedError as error:
            self.damaged.append(error)
            return False
        return True

    def _flush(self, parts: Sequence[Path]) -> None:
        """Bring many small files to the device at once, and then make sure of each."""
        with _opened(self._place.work) as folder:
            flush_filesystem(folder)
        for part in parts:
            with _opened(part) as descriptor:
                os.fsync(descriptor)


def batches(tasks: Sequence[Task], segment_bytes: int) -> Iterator[list[Task]]:
    """Yield tasks in the order they are written: what frees room, small files together, large ones.

    Files that are written together have no more bytes than a segment, so that being cut off costs no
    more either.
    """
    ordered = sorted(tasks, key=lambda t: (t.file.size_bytes - t.there_bytes, t.file.path))
    small = [task for task in ordered if _is_small(task, segment_bytes)]
    large = [task for task in ordered if not _is_small(task, segment_bytes)]
    yield from ([t] for t in large if t.file.size_bytes < t.there_bytes)
    batch: list[Task] = []
    for task in small:
        full = sum(t.write_bytes for t in batch) + task.write_bytes > segment_bytes
        twin = any(t.file.sha256 == task.file.sha256 for t in batch)
        if batch and (full or twin or len(batch) == _MOST_TOGETHER):
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch
    yield from ([t] for t in large if t.file.size_bytes >= t.there_bytes)


def _is_small(task: Task, segment_bytes: int) -> bool:
    return task.file.size_bytes <= segment_bytes // 16 and task.base != "taken"


class Part:
    """A file that grows on the stick; a context manager."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._path = path
        self._stop = stop

    def __enter__(self) -> Part:
        with contextlib.suppress(FileNotFoundError):
            _make_writable(self._path)
        self._file, self._direct = _opened_past_cache(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, block: Block) -> None:
        """Put a block where it belongs."""
        for at in range(0, len(block.view), _CHUNK_BYTES):
            if self._stop.is_set():
                raise Stopped
            self._put(block.view[at : at + _CHUNK_BYTES], block.offset + at)

    def _put(self, view: memoryview, offset: int) -> None:
        while view:
            aligned = len(view) // _ALIGNED * _ALIGNED
            if self._direct and (not aligned or offset % _ALIGNED):
                self._through_cache()
            try:
                count = os.pwrite(self._file, view[:aligned] if self._direct else view, offset)
            except OSError as error:
                if not self._direct or error.errno not in _NOT_DIRECT:
                    raise
                self._through_cache()
                continue
            view, offset = view[count:], offset + count

    def _through_cache(self) -> None:
        """Write through the page cache from here on: the end of a file is no whole page.

        By the same descriptor: fusefat loses what was written through another.
        """
        import fcntl

        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
        self._direct = False

    def flush(self) -> None:
        """Wait until the device has what was written."""
        _data_sync(self._file)

    def end(self, size_bytes: int, *, executable: bool, flush: bool) -> None:
        """Give the file its size and mode."""
        if os.fstat(self._file).st_size != size_bytes:
            os.ftruncate(self._file, size_bytes)
        mark(self._file, executable=executable)
        if flush:
            os.fsync(self._file)


_data_sync = getattr(os, "fdatasync", os.fsync)


def _make_writable(path: Path) -> None:
    """Let us write to a file that was copied with the mode of a store's object."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode) and not mode & stat.S_IWUSR:
        path.chmod(mode | stat.S_IWUSR)


def _opened_past_cache(path: Path) -> tuple[int, bool]:
    """Open a file to write around the page cache where its filesystem has that; tell whether."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT, 0o644), bool(_DIRECT)
    except OSError as error:
        if not _DIRECT or error.errno not in _NOT_DIRECT:
            raise
        return os.open(path, flags, 0o644), False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
