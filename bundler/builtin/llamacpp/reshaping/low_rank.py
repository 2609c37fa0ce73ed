"""The best thin correction of a quantized matrix, in closed form. Pure numpy.

With `E = W - Q` what rounding took away, and `C` the second moments of the inputs, the pair `B A` of
rank r that leaves the least error in the layer's output is the truncated SVD of `E S`, `C = S S^T`,
taken back through `S` (QERA, arXiv 2410.06040; EoRA, arXiv 2410.21271). The diagonal of `C` alone
(LQER, arXiv 2402.02446) and no weighting at all are the controls.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Method = Literal["covariance", "diagonal", "plain"]
Roots = tuple[Doubles, Doubles]
"""`S` and its inverse."""
METHODS: tuple[Method, ...] = ("covariance", "diagonal", "plain")
RANK_STEP = 8
"""Ranks are spent in steps: single ones would make the products of an adapter slow."""
MOST_RANK = 256
_DAMPING = 1e-4
_EXACT_SIDE = 128
"""Up to this side the whole SVD is taken; beyond it the strongest directions are searched."""
_SEARCH_ROUNDS = 3
_OVERSAMPLED = 16


@dataclass(frozen=True, eq=False)
class Correction:
    """One matrix's correction with its parts in order of strength."""

    down: Floats
    """(rank, in): what llama.cpp calls `lora_a`."""
    up: Floats
    """(out, rank): `lora_b`."""
    gains: Doubles
    """Share of the output's energy that each part gives back."""
    error: float
    """Share of the output's energy that rounding took, before any correction."""

    def truncated(self, rank: int) -> Correction:
        """Return the correction's strongest parts."""
        return Correction(self.down[:rank], self.up[:, :rank], self.gains[:rank], self.error)


def correction(
    weight: Floats, quantized: Floats, moments: Doubles | None, method: Method, most_rank: int,
    roots: Roots | None = None,
) -> Correction:  # fmt: skip
    """Return the best correction of at most `most_rank`.

    Args:
        weight: as it was, (out, in).
        quantized: as it is.
        moments: mean of `x x^T` over a text, (in, in); may be None for the plain method.
        method: how the error is weighted.
        most_rank: parts beyond are not worked out.
        roots: `roots_of` these moments, where they are at hand: matrices share them.
    """
    error = weight.astype(np.float64) - quantized
    root, back = roots or roots_of(moments, method, weight.shape[1])
    left, strengths, right = _svd(_times(error, root), min(most_rank, *weight.shape))
    # Judged alike for all methods: by what the layer's output really loses, where that is known.
    energy = _energy(weight.astype(np.float64), moments)
    half = np.sqrt(strengths)
    down, up = _times(right, back) * half[:, None], left * half
    return Correction(
        down.astype(np.float32), up.astype(np.float32), strengths**2 / max(energy, 1e-300),
        _energy(error, moments) / max(energy, 1e-300),
    )  # fmt: skip


def remaining(weight: Floats, quantized: Floats, moments: Doubles, found: Correction) -> float:
    """Return the share of the output's energy that is lost with a correction."""
    error = weight.astype(np.float64) - quantized - found.up.astype(np.float64) @ found.down
    return _energy(error, moments) / _energy(weight.astype(np.float64), moments)


def _energy(matrix: Doubles, moments: Doubles | None) -> float:
    if moments is None:
        return float((matrix**2).sum())
    return float(np.einsum("ij,ij->", matrix @ moments, matrix))


def roots_of(moments: Doubles | None, method: Method, columns: int) -> Roots:
    """Return `S` and its inverse; diagonal ones as vectors."""
    if method == "plain" or moments is None:
        return np.ones(columns), np.ones(columns)
    damped = np.diag(moments) + _DAMPING * max(float(np.diag(moments).mean()), 1e-30)
    if method == "diagonal":
        return np.sqrt(damped), 1 / np.sqrt(damped)
    values, vectors = np.linalg.eigh(moments + np.diag(damped - np.diag(moments)))
    spread = np.sqrt(np.maximum(values, 1e-12 * float(values[-1])))
    return vectors * spread, (vectors / spread).T


def _times(matrix: Doubles, root: Doubles) -> Doubles:
    product: Doubles = matrix * root if root.ndim == 1 else matrix @ root
    return product


def _svd(matrix: Doubles, rank: int) -> tuple[Doubles, Doubles, Doubles]:
    """Return the strongest `rank` parts of an SVD."""
    if min(matrix.shape) <= _EXACT_SIDE:
        left, strengths, right = np.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], strengths[:rank], right[:rank]
    # Halko, Martinsson, Tropp (2011): a random range, sharpened by a few rounds.
    wide = min(rank + _OVERSAMPLED, *matrix.shape)
    basis = matrix @ np.random.default_rng(0).standard_normal((matrix.shape[1], wide))
    for _ in range(_SEARCH_ROUNDS):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    small, strengths, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ small)[:, :rank], strengths[:rank], right[:rank]


def pair_bytes(rows: int, columns: int, rank: int, type_name: str) -> int:
    """Return what a pair takes in a file, padded; see `lora_file` for which half has which type."""
    if not rank:
        return 0
    narrow = type_name == "Q8_0"
    down = rank * (columns // 32 * 34 if narrow and columns % 32 == 0 else columns * 2)
    up = rows * (rank // 32 * 34 if narrow and rank % 32 == 0 else rank * 2)
    return sum(-(-size // 32) * 32 for size in (down, up))


def rank_worth_having(sizes: Sequence[tuple[int, int]], budget_bytes: int, type_name: str) -> int:
    """Return how many parts of each matrix to work out: four times its even share of a budget."""
    cost = sum(pair_bytes(rows, columns, RANK_STEP, type_name) for rows, columns in sizes)
    steps = math.ceil(4 * budget_bytes / max(1, cost))
    return min(MOST_RANK, max(2, steps) * RANK_STEP)


def spend(
    corrections: Mapping[str, Correction], budget_bytes: int, type_name: str
) -> dict[str, int]:
    """Return each matrix's rank: the bytes go where they give most of the output's energy back."""
    ranks = dict.fromkeys(corrections, 0)
    left = budget_bytes
    waiting = [(-_worth(found, 0, type_name), name) for name, found in corrections.items()]
    heapq.heapify(waiting)
    while waiting:
        worth, name = heapq.heappop(waiting)
        found, rank = corrections[name], ranks[name]
        cost = _step_bytes(found, rank, type_name)
        if worth >= 0 or cost > left:
            continue
        ranks[name], left = min(rank + RANK_STEP, len(found.gains)), left - cost
        if ranks[name] < len(found.gains):
            heapq.heappush(waiting, (-_worth(found, ranks[name], type_name), name))
    return {name: rank for name, rank in ranks.items() if rank}


def _step_bytes(found: Correction, rank: int, type_name: str) -> int:
    rows, columns = found.up.shape[0], found.down.shape[1]
    new = min(rank + RANK_STEP, len(found.gains))
    return pair_bytes(rows, columns, new, type_name) - pair_bytes(rows, columns, rank, type_name)


def _worth(found: Correction, rank: int, type_name: str) -> float:
    gained = float(found.gains[rank : rank + RANK_STEP].sum())
    # Where 32 ranks become narrower than 31 a step costs nothing, or less: it is taken at once.
    return gained / max(1, _step_bytes(found, rank, type_name))
