"""The bundle that is copied from: every block of it is held to the manifest before it is used.

Each stick has a reader of its own, so that none waits for another. Sticks that are about as fast
find each other's blocks in the page cache, and the bundle's disk is read once for all of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bundler.errors import DamagedError
from bundler.grouping import Piece
from bundler.segments import open_plain

BLOCK_BYTES = 16 << 20
"""Most that is read at once: a segment. Pieces of old bundles may be larger, and are streamed."""


Buffers = tuple[mmap.mmap, mmap.mmap]


def new_buffers() -> Buffers:
    """Return memory for two blocks, which begins at a page, as O_DIRECT wants it.

    It is kept and passed on: memory that is new to a process costs more than reading a disk.
    """
    return mmap.mmap(-1, BLOCK_BYTES), mmap.mmap(-1, BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Block:
    """Some bytes of a piece. The memory is used again when the block after the next is asked for."""

    piece: Piece
    offset: int
    """In the file."""
    view: memoryview
    last: bool
    """Whether the piece ends with it; then all of the piece is known to be right."""


class Reader:
    """Reads pieces of one bundle, one block ahead of whoever writes them; a context manager."""

    def __init__(self, root: Path, buffers: Buffers | None = None) -> None:
        self.root = root
        self._ahead = ThreadPoolExecutor(1, "source")
        self._buffers = buffers or new_buffers()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.shutdown(wait=True, cancel_futures=True)

    def blocks(self, path: str, pieces: Iterable[Piece]) -> Generator[Block, None, None]:
        """Yield the bytes of pieces of one file, in order.

        A piece of up to 16 MiB is yielded only when it is right; of a larger one that is known, and
        raised, at its end.

        Raises:
            DamagedError: the bytes are not those of the manifest, or cannot be read.
        """
        where = self.root / path
        try:
            with open_plain(where) as descriptor:
                yield from self._one_ahead(self._jobs(descriptor, pieces))
        except OSError as error:
            raise DamagedError(
                f"the bundle cannot be read: {error.strerror}", where=str(where), hint=self._hint
            ) from error

    @property
    def _hint(self) -> str:
        return f"bundler repair {self.root}, then the same command again"

    def _jobs(self, descriptor: int, pieces: Iterable[Piece]) -> Iterator[tuple[int, Piece, int]]:
        for piece in pieces:
            for at in range(0, max(1, piece.size_bytes), BLOCK_BYTES):
                yield descriptor, piece, at

    def _one_ahead(self, jobs: Iterator[tuple[int, Piece, int]]) -> Iterator[Block]:
        waiting: Future[Block] | None = None
        running = hashlib.sha256()
        for number, job in enumerate(jobs):
            if job[2] == 0:
                running = hashlib.sha256()
            following = self._ahead.submit(self._read, number, *job, running)
            if waiting is not None:
                try:
                    yield waiting.result()
                except BaseException:
                    following.exception()  # the file is open until it is read
                    raise
            waiting = following
        if waiting is not None:
            yield waiting.result()

    def _read(
        self, number: int, descriptor: int, piece: Piece, at: int, running: hashlib._Hash
    ) -> Block:
        view = memoryview(self._buffers[number % 2])[: min(BLOCK_BYTES, piece.size_bytes - at)]
        filled = 0
        while filled < len(view):
            count = os.preadv(descriptor, [view[filled:]], piece.offset + at + filled)
            if not count:
                raise self._damaged(piece)
            filled += count
        running.update(view)
        last = at + len(view) == piece.size_bytes
        if last and running.hexdigest() != piece.sha256:
            raise self._damaged(piece)
        return Block(piece, piece.offset + at, view, last)

    def _damaged(self, piece: Piece) -> DamagedError:
        end = max(piece.offset + piece.size_bytes - 1, 0)
        return DamagedError(
            f"the bundle itself is damaged within bytes {piece.offset}-{end}: not copied",
            where=str(self.root / piece.path), hint=self._hint,
        )  # fmt: skip
