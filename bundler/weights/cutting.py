"""Cut a model's GGUF file into shards, or shards into smaller ones: one pass, a few MiB of memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bundler.errors import DamagedError
from bundler.weights.gguf import GgufHeader, read_gguf_file
from bundler.weights.shard_names import shard_name
from bundler.weights.shards import Piece, Shard, check_shards, cut, padded

BLOCK_BYTES = 4 << 20

Told = Callable[[int, int], None]
"""Bytes written, bytes in all."""


def write_shards(
    sources: Sequence[Path], folder: Path, stem: str, most_bytes: int, told: Told
) -> tuple[str, ...]:
    """Write a model as shards into `folder`; return their names, in order.

    The same model and limit give the same bytes. What is not whole is called `*.partial`.

    Args:
        sources: the model's file, or the shards in which it comes, in order.
        folder: where to.
        stem: what the shards' names begin with.
        most_bytes: the most that one may have.
        told: is told how far it is.

    Raises:
        UnsafeInput: a header cannot be trusted, or the shards are not of one model.
        DoesNotFit: a tensor is larger than a shard may be.
        DamagedError: a file became shorter while it was read.
    """
    headers = [read_gguf_file(source) for source in sources]
    check_shards(headers, sources[0].name)
    shards = cut(headers, _front(sources[0], headers[0]), most_bytes)
    names = tuple(shard_name(stem, n, len(shards)) for n in range(1, len(shards) + 1))
    count = _Count(told, sum(shard.size_bytes for shard in shards))
    with ExitStack() as stack:
        given = [stack.enter_context(source.open("rb", buffering=0)) for source in sources]
        for name, shard in zip(names, shards, strict=True):
            _write(folder / name, shard, given, count)
    return names


def _front(source: Path, header: GgufHeader) -> bytes:
    with source.open("rb") as file:
        return file.read(header.data_offset)


@dataclass
class _Count:
    """Counts what is written and tells of it."""

    told: Told
    total_bytes: int
    done_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes
        self.told(self.done_bytes, self.total_bytes)


def _write(path: Path, shard: Shard, given: Sequence[BinaryIO], count: _Count) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb", buffering=0) as out:
            _put(out, shard.header, count)
            for piece in shard.pieces:
                _copy(given[piece.source], out, piece, count)
                size = piece.tensor.size_bytes
                _put(out, bytes(padded(size, shard.alignment) - size), count)
            os.fsync(out.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _copy(source: BinaryIO, out: BinaryIO, piece: Piece, count: _Count) -> None:
    source.seek(piece.at)
    left = piece.tensor.size_bytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        if not block:
            raise DamagedError(
                f"ends within the tensor {piece.tensor.name!r}: it became shorter while it was read",
                where=str(source.name), hint="is another program writing it?",
            )  # fmt: skip
        _put(out, block, count)
        left -= len(block)


def _put(out: BinaryIO, data: bytes, count: _Count) -> None:
    """Write all of it: an unbuffered file may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]
    count.add(len(data))
