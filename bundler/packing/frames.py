"""A stream in zstd frames of 4 MiB, with the table that lets a reader jump to any of them.

Each frame stands alone, names its size and carries a checksum, so the bytes do not depend on how
many threads made them, and a reader needs the memory of one. Behind the last one lies the seek
table of zstd's seekable format (facebook/zstd, contrib/seekable_format) in a skippable frame,
which `zstd -d` and `tar --zstd` pass over.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import zstandard

from bundler.errors import DamagedError, UnsafeInput


class CutOff(DamagedError):
    """The file ends too early: the rest of it may still come."""


FRAME_BYTES = 4 << 20
"""Content of each frame but the last."""
WINDOW_BYTES = 8 << 20
"""What every zstd is willing to hold; a frame that wants more is not opened."""
_FAST, _SMALL = 1, 9
# Quantized weights shrink by less than this; what comes out of the fast level is kept, mostly raw.
_WORTH = 0.95
_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_own = threading.local()


def framed(chunks: Iterable[bytes], workers: int) -> Iterator[bytes]:
    """Yield the stream of `chunks` as frames, then the seek table; the same for any `workers`."""
    sizes: list[tuple[int, int]] = []
    waiting: deque[tuple[int, Future[bytes]]] = deque()

    def taken() -> bytes:
        plain, future = waiting.popleft()
        made = future.result()
        sizes.append((len(made), plain))
        return made

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for block in _blocks(chunks):
            waiting.append((len(block), pool.submit(_packed, block)))
            if len(waiting) > 2 * workers:
                yield taken()
        while waiting:
            yield taken()
    yield seek_table(sizes)


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= FRAME_BYTES:
            yield bytes(held[:FRAME_BYTES])
            del held[:FRAME_BYTES]
    if held:
        yield bytes(held)


def _packed(block: bytes) -> bytes:
    made = _compressor(_FAST).compress(block)
    return made if len(made) > _WORTH * len(block) else _compressor(_SMALL).compress(block)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """Return this thread's own: they cannot be shared."""
    name = f"level{level}"
    if not hasattr(_own, name):
        made = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        setattr(_own, name, made)
    found: zstandard.ZstdCompressor = getattr(_own, name)
    return found


def seek_table(sizes: list[tuple[int, int]]) -> bytes:
    """Return the skippable frame that says where each frame begins."""
    body = b"".join(struct.pack("<II", packed, plain) for packed, plain in sizes)
    body += struct.pack("<IBI", len(sizes), 0, _SEEKABLE)
    return struct.pack("<II", _SKIPPABLE, len(body)) + body


class Frames:
    """Reads frames from a file or a pipe, one at a time, and hands their content on in order.

    Raises (all methods):
        DamagedError: the file ends too early, or a frame is not as it was written.
        UnsafeInput: a frame wants more memory than any that `pack` writes.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._sizes: list[tuple[int, int]] = []
        self._held = memoryview(b"")
        self.offset = 0
        """Bytes of the file read so far."""

    def take(self, most: int) -> memoryview:
        """Return at least one and at most so many bytes of content."""
        if not self._held:
            self._held = memoryview(self._frame())
        part, self._held = self._held[:most], self._held[most:]
        return part

    def exactly(self, count: int) -> bytes:
        """Return so many bytes of content."""
        parts = bytearray()
        while len(parts) < count:
            parts += self.take(count - len(parts))
        return bytes(parts)

    def finish(self) -> None:
        """Check that nothing but the right seek table follows."""
        if self._held:
            raise UnsafeInput("holds more than its manifest lists", hint="get the file anew")
        start, expected = self.offset, seek_table(self._sizes)
        if self._raw(len(expected)) != expected:
            raise self._damaged(start, "the table at its end is not the one of its frames")
        if self._source.read(1):
            raise UnsafeInput(
                f"goes on behind its end at byte {self.offset}", hint="get the file anew"
            )

    def _raw(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            got = self._source.read(count - len(parts))
            if not got:
                raise CutOff(
                    f"the file is cut off: it ends at byte {self.offset}, within a frame or before "
                    "the last one",
                    hint="fetch the rest (`curl -C -`, `rsync --append`), then unpack it again: what "
                    "is whole and right is kept",
                )
            parts += got
            self.offset += len(got)
        return bytes(parts)

    def _frame(self) -> bytes:
        start = self.offset
        try:
            made, plain = self._whole_frame(start)
            data = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompress(
                made, max_output_size=plain
            )
        except zstandard.ZstdError as error:
            raise self._damaged(start, "its checksum or its form is not right") from error
        if len(data) != plain:
            raise self._damaged(start, "it is not as long as it says")
        self._sizes.append((len(made), plain))
        return data

    def _whole_frame(self, start: int) -> tuple[bytes, int]:
        """Return one frame's bytes and the size of its content; never reads beyond its bound."""
        made = bytearray(self._raw(6))
        if made[:4] != _MAGIC:
            raise self._damaged(start, "no frame begins there")
        made += self._raw(_header_bytes(made[4]) - 6)
        said = zstandard.get_frame_parameters(bytes(made))
        if not 0 < said.content_size <= FRAME_BYTES or said.window_size > WINDOW_BYTES:
            raise UnsafeInput(
                f"the frame at byte {start} wants {max(said.content_size, said.window_size)} bytes "
                f"of memory, more than bundler ever writes",
                hint="it was not made by `bundler pack`; do not open it",
            )
        if said.dict_id or not said.has_checksum:
            raise self._damaged(start, "it has no checksum, or asks for a dictionary")
        last = False
        while not last:
            block = self._raw(3)
            number = int.from_bytes(block, "little")
            last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
            made += block + self._raw(1 if kind == 1 else size)
            if kind == 3 or len(made) > FRAME_BYTES + (FRAME_BYTES >> 7) + 64:
                raise self._damaged(start, "its blocks are not right")
        return bytes(made + self._raw(4)), said.content_size

    def _damaged(self, start: int, why: str) -> DamagedError:
        number = len(self._sizes)
        return DamagedError(
            f"damaged in frame {number}, which begins at byte {start}: {why}",
            hint="get this part of the file anew, or the file",
        )


def _header_bytes(descriptor: int) -> int:
    """Return the length of a frame's header by its descriptor, magic included (RFC 8878, 3.1.1.1)."""
    single = descriptor >> 5 & 1
    size = (single, 2, 4, 8)[descriptor >> 6]
    return 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + size
