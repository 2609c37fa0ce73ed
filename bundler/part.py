"""A transfer that is not whole yet: its bytes, their running hash, and what may follow them.

::

    STORE/parts/<sha256>        the bytes so far
    STORE/parts/<sha256>.json   where they came from: {"address": …, "validator": …}

The bytes are forced to the disk at every multiple of `SYNC_BYTES`. Whoever finds a part keeps
it up to the last such multiple and hashes that again, so neither a killed process nor a power cut
can leave a torn tail in an object, and no more than `SYNC_BYTES` are sent twice.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from bundler.errors import UnsafeInput
from bundler.lock import LockedFile
from bundler.store import Store, full_disk_is_an_error, write_durably
from bundler.value import canonical_json

SYNC_BYTES = 4 << 20
_BLOCK = 1 << 20


class Part:
    """The part of one file. Hold the store's lock of that name while there is one."""

    def __init__(self, store: Store, file: LockedFile, descriptor: int) -> None:
        self._store = store
        self._file = file
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self.length = 0
        """Bytes that are here."""
        self.address = ""
        """Where the last of them came from, and the version they belong to."""
        self.validator: str | None = None

    @property
    def missing_bytes(self) -> int:
        """How many bytes are still to come."""
        return self._file.size_bytes - self.length

    def is_right(self) -> bool:
        """Tell whether the bytes here are exactly the ones that were promised."""
        return self.missing_bytes == 0 and self._hash.hexdigest() == self._file.sha256

    def append(self, data: memoryview) -> None:
        """Write `data` behind the rest, forcing it to the disk at every multiple of SYNC_BYTES."""
        with full_disk_is_an_error(self._store.root, self._file.path):
            while data:
                room = SYNC_BYTES - self.length % SYNC_BYTES
                written = os.write(self._descriptor, data[:room])
                self._hash.update(data[:written])
                self.length += written
                data = data[written:]
                if self.length % SYNC_BYTES == 0:
                    os.fsync(self._descriptor)

    def follow(self, address: str, validator: str | None) -> None:
        """Remember where the bytes from here on come from."""
        if (address, validator) == (self.address, self.validator):
            return
        self.address, self.validator = address, validator
        if self._file.size_bytes <= SYNC_BYTES:
            return  # Of so little nothing is taken up again, see `recall`.
        write_durably(
            _sidecar(self._store, self._file),
            canonical_json({"address": address, "validator": validator}),
        )

    def restart(self) -> None:
        """Throw the bytes away and begin at zero."""
        self._cut(0, hashlib.sha256())
        self.address, self.validator = "", None
        _sidecar(self._store, self._file).unlink(missing_ok=True)

    def recall(self, check: Callable[[], None]) -> None:
        """Take up what an earlier process left; `check()` is called now and then and may raise."""
        found = os.fstat(self._descriptor).st_size
        if found > self._file.size_bytes:
            self.restart()
            return
        kept = max(0, found - 1) // SYNC_BYTES * SYNC_BYTES
        running = hashlib.sha256()
        self._hash_on(running, 0, kept, check)
        whole = running.copy()
        self._hash_on(whole, kept, found, check)
        if found == self._file.size_bytes and whole.hexdigest() == self._file.sha256:
            self._cut(found, whole)
        else:
            self._cut(kept, running)
            self._recall_origin()

    def finish(self) -> None:
        """Make the part an object of the store."""
        _sidecar(self._store, self._file).unlink(missing_ok=True)
        self._store.finish_part(self._file.sha256)

    def _hash_on(
        self, running: hashlib._Hash, start: int, end: int, check: Callable[[], None]
    ) -> None:
        while start < end:
            check()
            block = os.pread(self._descriptor, min(_BLOCK, end - start), start)
            if not block:
                return
            running.update(block)
            start += len(block)

    def _cut(self, length: int, running: hashlib._Hash) -> None:
        os.ftruncate(self._descriptor, length)
        os.lseek(self._descriptor, length, os.SEEK_SET)
        self.length, self._hash = length, running

    def _recall_origin(self) -> None:
        try:
            record = json.loads(_sidecar(self._store, self._file).read_bytes())
            address, validator = record["address"], record["validator"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return  # Not known whence: the range is asked for without a condition, the hash decides.
        if isinstance(address, str) and isinstance(validator, str):
            self.address, self.validator = address, validator


def _sidecar(store: Store, file: LockedFile) -> Path:
    return store.root / "parts" / f"{file.sha256}.json"


def forget_part(store: Store, file: LockedFile) -> None:
    """Remove what an interrupted transfer left of a file that is whole by now."""
    store.part_path(file.sha256).unlink(missing_ok=True)
    _sidecar(store, file).unlink(missing_ok=True)


def part_length(store: Store, file: LockedFile) -> int:
    """Return how many bytes of the file an earlier transfer left, without judging them."""
    try:
        found = store.part_path(file.sha256).lstat()
    except FileNotFoundError:
        return 0
    return min(found.st_size, file.size_bytes)


@contextlib.contextmanager
def open_part(store: Store, file: LockedFile, check: Callable[[], None]) -> Iterator[Part]:
    """Open the part of a file, with what an earlier transfer left of it.

    Raises:
        UnsafeInput: something which is not a regular file lies in its place.
    """
    path = store.part_path(file.sha256)
    if path.exists() and not path.is_symlink():
        path.chmod(0o644)  # A process may have died between taking the right to write and the name.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with full_disk_is_an_error(store.root, file.path):
            descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise UnsafeInput("only a regular file can be a part", where=str(path)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafeInput("only a regular file can be a part", where=str(path))
        part = Part(store, file, descriptor)
        part.recall(check)
        try:
            yield part
        finally:
            if part.length == 0:
                forget_part(store, file)  # Nothing is lost, and nobody may ever come back for it.
    finally:
        os.close(descriptor)
