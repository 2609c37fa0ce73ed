"""A model in several GGUF files: what they must say of each other, and where to cut. Pure.

Each says which it is, of how many, and how many
tensors all have together; only the first has the model's own fields. The shards made here are
those of llama.cpp's `gguf-split` to the byte, cut where whole files reach a limit: it counts the
tensors alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bundler.errors import DoesNotFit, Problem, UnsafeInput
from bundler.value import format_size
from bundler.weights.ggml_types import BY_NAME
from bundler.weights.gguf import DEFAULT_ALIGNMENT, MAGIC, GgufHeader, GgufTensor

MOST_SHARDS = 1 << 16
"""`split.count` is written in 16 bits."""
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
FIELDS = (NUMBER, COUNT, TENSORS)
"""What a shard says of itself."""
_SHOWN = 5


# -- what they say ---------------------------------------------------------------------------------


def check_shards(headers: Sequence[GgufHeader], where: str) -> None:
    """Refuse files that are not all shards of one model, in order.

    Raises:
        UnsafeInput: names every shard that says something else, and tensors that come twice.
    """
    count = headers[0].metadata.get(COUNT, 1)
    if len(headers) == 1 and count in (0, 1):
        return
    problems = [
        Problem(f"shard {number + 1} says it is number {said[0]} of {said[1]}", where)
        for number, header in enumerate(headers)
        if (said := (header.metadata.get(NUMBER), header.metadata.get(COUNT)))
        != (number, len(headers))
    ]
    tensors = [tensor.name for header in headers for tensor in header.tensors]
    announced = headers[0].metadata.get(TENSORS)
    if announced != len(tensors):
        problems.append(
            Problem(f"the shards have {len(tensors)} tensors, not the {announced} announced", where)
        )
    if len(set(tensors)) != len(tensors):
        seen: set[str] = set()
        twice = next(name for name in tensors if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        problems.append(Problem(f"the tensor {twice!r} is in more than one shard", where))
    if problems:
        raise UnsafeInput(problems[: 4 * _SHOWN])


# -- where to cut ----------------------------------------------------------------------------------


class Piece(NamedTuple):
    """One tensor of a shard, and where its bytes are now."""

    tensor: GgufTensor
    source: int
    """Which of the files that are cut."""
    at: int
    """First byte in that file."""


@dataclass(frozen=True)
class Shard:
    """One file to be."""

    header: bytes
    """Everything before the data, padded."""
    pieces: tuple[Piece, ...]
    alignment: int

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(
            padded(piece.tensor.size_bytes, self.alignment) for piece in self.pieces
        )


def padded(size_bytes: int, alignment: int) -> int:
    """Return a size rounded up to the next multiple of `alignment`."""
    return -(-size_bytes // alignment) * alignment


def cut(headers: Sequence[GgufHeader], front: bytes, most_bytes: int) -> tuple[Shard, ...]:
    """Return the shards of a model, none larger than `most_bytes`, and as few as its order allows.

    Args:
        headers: of the model's file, or of the shards in which it comes.
        front: the first file up to its data.
        most_bytes: the most that a shard may have, its header included.

    Raises:
        DoesNotFit: the model's fields or one of its tensors are larger than that already.
    """
    own, pieces = own_fields(headers[0], front), pieces_of(headers)
    groups = _groups(pieces, own, headers[0].alignment, most_bytes)
    if len(groups) >= MOST_SHARDS:
        raise DoesNotFit(
            f"it would be cut into {len(groups)} files; at most {MOST_SHARDS - 1} are possible",
            hint="a larger limit",
        )
    return laid_out(groups, own, headers[0].alignment)


def own_fields(header: GgufHeader, front: bytes) -> list[bytes]:
    """Return a model's fields as they are in its file, without what a shard says of itself."""
    return [front[start:end] for key, (start, end) in header.spans.items() if key not in FIELDS]


def pieces_of(headers: Sequence[GgufHeader]) -> list[Piece]:
    """Return all tensors of a model, in order."""
    return [
        Piece(tensor, number, header.data_offset + tensor.offset)
        for number, header in enumerate(headers)
        for tensor in header.tensors
    ]


def laid_out(
    groups: Sequence[Sequence[Piece]], own: Sequence[bytes], alignment: int
) -> tuple[Shard, ...]:
    """Return the shards that hold these tensors each."""
    tensors = sum(map(len, groups))
    return tuple(
        _shard(number, len(groups), tensors, group, own, alignment)
        for number, group in enumerate(groups)
    )


def _groups(
    pieces: Sequence[Piece], own: Sequence[bytes], alignment: int, most_bytes: int
) -> list[list[Piece]]:
    """Fill one shard after the other. The first may have no tensor: then it has the fields alone."""
    room = _Room(sum(map(len, own)), alignment, most_bytes)
    if room.size_bytes() > most_bytes:
        raise DoesNotFit(
            f"its header has {format_size(room.size_bytes())}, more than a file may have "
            f"({format_size(most_bytes)})",
            hint="a larger limit, or another model",
        )
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if not room.takes(piece.tensor):
            groups.append([])
            room = _Room(0, DEFAULT_ALIGNMENT, most_bytes)
            if not room.takes(piece.tensor):
                raise DoesNotFit(
                    f"its tensor {piece.tensor.name!r} has {format_size(piece.tensor.size_bytes)}, "
                    f"more than a file may have ({format_size(most_bytes)}), and a tensor cannot "
                    "be cut",
                    hint="fewer bits (`quant`), a smaller model, or a stick with exFAT",
                )
        groups[-1].append(piece)
    return groups


class _Room:
    """What a shard takes as it is filled."""

    def __init__(self, fields_bytes: int, alignment: int, most_bytes: int) -> None:
        said = sum(map(len, _said(0, 1, 0)))
        self._header = 24 + fields_bytes + said
        self._data = 0
        self._alignment, self._most = alignment, most_bytes

    def size_bytes(self) -> int:
        return padded(self._header, self._alignment) + self._data

    def takes(self, tensor: GgufTensor) -> bool:
        """Count a tensor in, if there is room for it."""
        before = self._header, self._data
        self._header += len(_entry(tensor, 0))
        self._data += padded(tensor.size_bytes, self._alignment)
        if self.size_bytes() <= self._most:
            return True
        self._header, self._data = before
        return False


def _shard(
    number: int, count: int, tensors: int, pieces: Sequence[Piece], own: Sequence[bytes],
    alignment: int,
) -> Shard:  # fmt: skip
    """Write the header. Later shards have none of the model's fields, so also no other alignment."""
    fields = [*(() if number else own), *_said(number, count, tensors)]
    alignment = DEFAULT_ALIGNMENT if number else alignment
    parts = [MAGIC, struct.pack("<IQQ", 3, len(pieces), len(fields)), *fields]
    offset = 0
    for piece in pieces:
        parts.append(_entry(piece.tensor, offset))
        offset += padded(piece.tensor.size_bytes, alignment)
    header = b"".join(parts)
    return Shard(header + bytes(-len(header) % alignment), tuple(pieces), alignment)


def _said(number: int, count: int, tensors: int) -> tuple[bytes, ...]:
    """Return a shard's own fields in the order in which gguf-split leaves them."""
    return (
        _text(NUMBER) + struct.pack("<IH", 2, number),
        _text(TENSORS) + struct.pack("<Ii", 5, tensors),
        _text(COUNT) + struct.pack("<IH", 2, count),
    )


def _entry(tensor: GgufTensor, offset: int) -> bytes:
    sizes = list(reversed(tensor.shape))
    while len(sizes) > 1 and sizes[-1] == 1:  # as ggml counts dimensions
        sizes.pop()
    return (
        _text(tensor.name)
        + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        + struct.pack("<IQ", BY_NAME[tensor.type].number, offset)
    )


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
