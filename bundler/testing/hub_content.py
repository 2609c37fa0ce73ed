"""What the test hub serves: bytes, local files, and huge files that are mostly zeros."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

_BLOCK = 1 << 20


class Content(Protocol):
    """Something that has a size, a digest and bytes."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    @property
    def sha256(self) -> str:
        """The digest that is told of it."""
        ...

    def read(self, start: int, length: int) -> bytes:
        """Return the bytes from `start`, at most `length` of them."""
        ...


class Bytes:
    """Content in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    def read(self, start: int, length: int) -> bytes:
        """Return a slice."""
        return self.data[start : start + length]


class LocalFile:
    """A file of this machine, read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the file as it is now."""
        with self._path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read(self, start: int, length: int) -> bytes:
        """Read a slice."""
        with self._path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)


class SparseFile:
    r"""A file of any size: the given segments, and zeros everywhere else. Takes no memory.

    For files whose headers matter and whose weights do not. `sha256` is what the hub *claims*;
    when it is left out the true one is computed, at about one second per gigabyte.

    >>> file = SparseFile(10, {2: b"ab", 8: b"yz"})
    >>> file.read(0, 10)
    b'\x00\x00ab\x00\x00\x00\x00yz'
    """

    def __init__(self, size: int, segments: Mapping[int, bytes], sha256: str | None = None) -> None:
        self.size = size
        self._segments = sorted(segments.items())
        self._claimed = sha256
        for offset, data in self._segments:
            if not 0 <= offset <= size - len(data):
                raise ValueError(f"a segment at {offset} lies outside of a file of {size} bytes")

    @functools.cached_property
    def sha256(self) -> str:
        """The claimed digest, or the true one."""
        if self._claimed is not None:
            return self._claimed
        running = hashlib.sha256()
        for start in range(0, self.size, _BLOCK):
            running.update(self.read(start, _BLOCK))
        return running.hexdigest()

    def read(self, start: int, length: int) -> bytes:
        """Put a slice together."""
        end = min(start + length, self.size)
        if end <= start:
            return b""
        out = bytearray(end - start)
        for offset, data in self._segments:
            first, last = max(offset, start), min(offset + len(data), end)
            if first < last:
                out[first - start : last - start] = data[first - offset : last - offset]
        return bytes(out)


def content_of(given: bytes | str | Path | Content) -> Content:
    """Return content for what a test gives: bytes, text, a path, or content."""
    if isinstance(given, str):
        given = given.encode()
    if isinstance(given, bytes):
        return Bytes(given)
    return LocalFile(given) if isinstance(given, Path) else given


def blocks(content: Content, start: int, end: int, block: int = 64 << 10) -> Iterator[bytes]:
    """Give the bytes from `start` to `end` in blocks."""
    while start < end:
        data = content.read(start, min(block, end - start))
        if not data:
            return
        yield data
        start += len(data)


def git_blob(content: Content) -> str:
    """Return the digest by which git knows the content."""
    running = hashlib.sha1(b"blob %d\0" % content.size, usedforsecurity=False)
    for block in blocks(content, 0, content.size):
        running.update(block)
    return running.hexdigest()
