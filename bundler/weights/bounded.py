"""Reading the front of a file in growing windows, never past its end or past a limit."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bundler.errors import UnsafeInput
from bundler.value import format_bytes

Read = Callable[[int, int], bytes]
"""`read(start, length)` returns exactly those bytes of a file, fewer only at its end."""

FIRST_WINDOW_BYTES = 1 << 20
"""One ranged request fetches this much; each further one doubles what is held…"""
MOST_WINDOW_BYTES = 8 << 20
"""…up to this much at a time, so that memory stays near what is held."""

_LENGTH = struct.Struct("<Q")

HINT = "the file is damaged or was made to do harm; fetch it again, or choose another source"


def unsafe(where: str, offset: int, reason: str, hint: str = HINT) -> UnsafeInput:
    """Make the error that names the file, the byte and the reason."""
    return UnsafeInput(f"{reason} (at byte {offset})", where=where, hint=hint)


@contextmanager
def file_reader(path: Path) -> Iterator[tuple[Read, int]]:
    """Open a local file and yield its `read` and its size in bytes."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        yield read, size


class Cursor:
    """A place in a header that moves forward only; fetches more as it is needed.

    `limit_bytes` bounds how much of the file is ever held.
    """

    def __init__(self, read: Read, size_bytes: int, *, where: str, limit_bytes: int) -> None:
        self._read = read
        self._held = bytearray()
        self._limit = limit_bytes
        self.size_bytes = size_bytes
        self.where = where
        self.position = 0

    def fail(self, reason: str, offset: int | None = None) -> UnsafeInput:
        """Make the error for what is wrong here (or at `offset`)."""
        return unsafe(self.where, self.position if offset is None else offset, reason)

    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self.size_bytes - self.position

    def need(self, length: int, what: str) -> int:
        """Make sure `length` more bytes are held, move past them, return where they begin."""
        start, end = self.position, self.position + length
        if end > self.size_bytes:
            raise self.fail(
                f"{what} needs {length} bytes, the file has {self.size_bytes - start} left"
            )
        if end > self._limit:
            raise self.fail(f"the header passes the limit of {format_bytes(self._limit)}")
        if end > len(self._held):
            self._fetch(end)
        self.position = end
        return start

    def _fetch(self, end: int) -> None:
        """Hold everything up to `end`, piece by piece."""
        while (have := len(self._held)) < end:
            window = min(max(have, FIRST_WINDOW_BYTES), MOST_WINDOW_BYTES)
            wanted = min(window, min(self.size_bytes, self._limit) - have)
            piece = self._read(have, wanted)
            if len(piece) != wanted:
                have += len(piece)
                raise self.fail(
                    f"the file should have {self.size_bytes} bytes but gave only {have}", have
                )
            self._held += piece

    def unpack(self, format_: struct.Struct, what: str) -> Any:
        """Read one number."""
        return format_.unpack_from(self._held, self.need(format_.size, what))[0]

    def bytes(self, length: int, what: str) -> bytes:
        """Read `length` bytes."""
        start = self.need(length, what)
        return bytes(self._held[start : start + length])

    def held(self) -> memoryview:
        """Everything read so far. No more can be read while a view of it lives."""
        return memoryview(self._held).toreadonly()

    def skip_strings(self, count: int, most_bytes: int, what: str) -> None:
        """Move past `count` strings: eight bytes of length, then that many bytes."""
        # There may be a million: no call is made for those that are held already.
        held, position, have = self._held, self.position, len(self._held)
        for _ in range(count):
            if position + 8 > have:
                self.position = position
                self.need(8, what)
                have = len(held)
            (length,) = _LENGTH.unpack_from(held, position)
            position += 8
            if length > most_bytes:
                raise self.fail(f"{what} claims {length} bytes", position)
            if position + length > have:
                self.position = position
                self.need(length, what)
                have = len(held)
            position += length
        self.position = position
