"""One tensor's change: channels multiplied, blocks of channels turned. Pure numpy."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Turn:
    """An orthogonal matrix `Q` for vectors of a size, made of a seed; applied without being built.

    `Q = D (H ⊗ C)`: random signs, a Walsh-Hadamard matrix for the power of two in the size, and an
    orthonormal cosine matrix for the odd rest of it. Every value of `Q` is of nearly the same
    magnitude, which is what spreads a channel over all the others.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.power = size & -size
        """The largest power of two that divides the size."""
        signs = np.random.default_rng(seed).integers(0, 2, size)
        self._signs = (1 - 2 * signs).astype(np.float32)
        self._rest = cosines(size // self.power)

    def right(self, values: Floats) -> Floats:
        """Return `values @ Q`, for each run of `size` columns."""
        blocks = values.reshape(-1, self.size) * self._signs
        return self._mixed(blocks).reshape(values.shape)

    def left(self, values: Floats) -> Floats:
        """Return `Q.T @ values`, for each run of `size` rows."""
        turned = self.right(np.ascontiguousarray(values.T))
        return np.ascontiguousarray(turned.T)

    def _mixed(self, blocks: Floats) -> Floats:
        odd = self.size // self.power
        parts = blocks.reshape(-1, self.power, odd)
        if odd > 1:
            parts = parts @ self._rest
        mixed: Floats = walsh(parts, 1)
        return mixed.reshape(blocks.shape)


@functools.cache
def cosines(size: int) -> Floats:
    """Return the orthonormal matrix of the discrete cosine transform (type II)."""
    rows = np.arange(size)[:, None] + 0.5
    matrix = np.sqrt(2 / size) * np.cos(math.pi / size * rows * np.arange(size))
    matrix[:, 0] = math.sqrt(1 / size)
    rounded: Floats = matrix.astype(np.float32)
    return rounded


def walsh(values: Floats, axis: int) -> Floats:
    """Multiply an axis, whose length is a power of two, by the orthonormal Hadamard matrix."""
    length = values.shape[axis]
    moved = np.moveaxis(values, axis, -1)
    shape = moved.shape
    flat = np.ascontiguousarray(moved).reshape(-1, length)
    half = 1
    while half < length:
        pairs = flat.reshape(-1, length // (2 * half), 2, half)
        both, apart = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]
        flat = np.stack([both, apart], axis=2).reshape(-1, length)
        half *= 2
    flat = flat * np.float32(1 / math.sqrt(length))
    return np.moveaxis(flat.reshape(shape), -1, axis)


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of a tensor `W`: `left(rows * W * columns) right`, in this order.

    Factors are one row for all experts, or one for each. Where only a part of the rows is meant
    (`first`, `count`), `rows` and `left` are for that part. A vector counts as one row, or with
    `upright` as one column.
    """

    rows: Floats | None = None
    columns: Floats | None = None
    left: Turn | None = None
    right: Turn | None = None
    first: int = 0
    count: int = -1
    upright: bool = False
    ones: bool = False
    """A gain that went into the matrices behind it: nothing but ones is left."""

    @property
    def row_by_row(self) -> bool:
        """Whether rows can be changed without looking at others."""
        return self.left is None

    def of(self, values: Floats, expert: int = 0, first_row: int = 0) -> Floats:
        """Return changed rows of one matrix; `first_row` is the number of the first of them."""
        if self.ones:
            return np.ones_like(values)
        if self.columns is not None:
            values = values * _of_expert(self.columns, expert)
        if self.rows is not None:
            values = values * self._row_factors(expert, first_row, len(values))[:, None]
        if self.left is not None:
            values = values.copy()
            part = slice(self.first, self._end(len(values)))
            values[part] = self.left.left(values[part])
        return values if self.right is None else self.right.right(values)

    def _end(self, rows: int) -> int:
        return rows if self.count < 0 else self.first + self.count

    def _row_factors(self, expert: int, first_row: int, count: int) -> Floats:
        assert self.rows is not None
        whole = np.ones(max(first_row + count, self.first + self.rows.shape[-1]), np.float32)
        whole[self.first : self.first + self.rows.shape[-1]] = _of_expert(self.rows, expert)
        return whole[first_row : first_row + count]


def _of_expert(factors: Floats, expert: int) -> Floats:
    row: Floats = factors if factors.ndim == 1 else factors[expert]
    return row


@dataclass(frozen=True, eq=False)
class Reshaping:
    """All changes of a model."""

    changes: Mapping[str, Change]
    untied: Change | None = None
    """What the output matrix is made of, where the embedding was it so far."""
    title: str = ""
    """What was done, for the new file's header."""
