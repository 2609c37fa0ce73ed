"""The weights of a GGUF file as float32 rows, read where they lie and never all at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.errors import Problem, UnsafeInput
from bundler.weights.gguf import GgufHeader, GgufTensor, read_gguf_file

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[Any]
"""F32, F16, or the bits of BF16."""
BLOCK_VALUES = 1 << 22
"""Values that are worked on at once: 16 MiB of float32."""
_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
}  # fmt: skip
_SHOWN = 8


class Matrix:
    """One tensor as rows; those of a mixture's experts follow each other."""

    def __init__(self, tensor: GgufTensor, raw: npt.NDArray[np.uint8]) -> None:
        self.name, self.type, self.shape = tensor.name, tensor.type, tensor.shape
        self.row_values = tensor.shape[-1]
        self.rows = math.prod(tensor.shape[:-1])
        self.experts = math.prod(tensor.shape[:-2])
        """How many matrices it is made of: 1, or one for each expert."""
        stored: Stored = raw[: tensor.size_bytes].view(_STORED[tensor.type])
        self._stored: Stored = stored.reshape(self.rows, self.row_values)

    def read(self, rows: slice | npt.NDArray[np.int64]) -> Floats:
        """Return some rows as float32."""
        return widened(self._stored[rows], self.type)

    @property
    def item_bytes(self) -> int:
        """Bytes of one stored value."""
        return int(self._stored.itemsize)

    def stored(self, rows: slice) -> Stored:
        """Return some rows as they lie in the file."""
        found: Stored = self._stored[rows]
        return found

    def blocks(self) -> Iterator[slice]:
        """Cut the rows into runs that are worked on at once, none across two experts."""
        per_expert = self.rows // self.experts
        step = max(1, BLOCK_VALUES // self.row_values)
        for first in range(0, self.rows, per_expert):
            for start in range(first, first + per_expert, step):
                yield slice(start, min(start + step, first + per_expert))

    def expert_of(self, row: int) -> int:
        """Return which of its matrices a row belongs to."""
        return row // (self.rows // self.experts)


def widened(stored: Stored, type_name: str) -> Floats:
    """Return stored values (F32, F16 or BF16) as float32."""
    if type_name == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def narrowed(values: Floats, type_name: str) -> Stored:
    """Return float32 values as they are stored; BF16 rounds to the nearest, ties to even."""
    if type_name == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        halves: Stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return halves
    floats: Stored = values.astype(_STORED[type_name])
    return floats


class Weights:
    """A model's file, mapped into memory."""

    def __init__(self, path: Path, where: str = "model.gguf") -> None:
        self.header: GgufHeader = read_gguf_file(path, where=where)
        self._where = where
        self._bytes = np.memmap(path, np.uint8, mode="r")
        self._tensors = {tensor.name: tensor for tensor in self.header.tensors}

    def matrix(self, name: str) -> Matrix:
        """Return a tensor that is stored as floats."""
        tensor = self._tensors[name]
        start = self.header.data_offset + tensor.offset
        return Matrix(tensor, self._bytes[start:])

    def check_finite(self) -> None:
        """Look at every stored float.

        Raises:
            UnsafeInput: some are not numbers, or infinite; names tensors and first rows.
        """
        floats = [tensor for tensor in self.header.tensors if tensor.type in _STORED]
        found = [(tensor, self._first_odd_row(tensor.name)) for tensor in floats]
        bad = [f"{tensor.name} (row {row})" for tensor, row in found if row is not None]
        if bad:
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise UnsafeInput(
                Problem(
                    f"has weights that are not a number or infinite: {', '.join(bad[:_SHOWN])}{more}",
                    where=self._where,
                    hint="the published file is damaged or was converted with an overflow: fetch it "
                    "again, or take the BF16 or F32 version of the model",
                )
            )

    def _first_odd_row(self, name: str) -> int | None:
        matrix = self.matrix(name)
        for block in matrix.blocks():
            odd = ~np.isfinite(matrix.read(block)).all(axis=1)
            if odd.any():
                return int(block.start + int(np.argmax(odd)))
        return None
