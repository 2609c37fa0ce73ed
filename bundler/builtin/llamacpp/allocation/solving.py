"""The least damage within a byte budget: exactly, or with a proven gap.

The choice of one type for each tensor is a multiple-choice knapsack. Sizes are counted in units: the
greatest common divisor of what any choice adds to the smallest one, where that leaves few enough
units for dynamic programming; then the answer is exact. Otherwise units are coarser and sizes are
rounded up: the answer still fits, and the bound of `relaxing` says how far from the best it can be.
Units depend on the choices alone and not on the budget, so that more room never does more damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.allocation.relaxing import Options, Relaxed

MOST_CELLS = 1 << 27
"""Tensors times units: one byte each, and the time of a few seconds."""
MOST_UNITS = 1 << 20


class Solution(NamedTuple):
    """Types for all tensors."""

    types: dict[str, str]
    size_bytes: int
    damage: float
    bound: float
    """No choice within the budget does less."""

    @property
    def gap(self) -> float:
        """How much less damage another choice could do, at most, as a share of this one's."""
        return (self.damage - self.bound) / self.damage if self.damage > 0 else 0.0


class _Item(NamedTuple):
    name: str
    types: tuple[str, ...]
    added: npt.NDArray[np.int64]
    """Units that each type takes beyond the smallest."""
    damages: npt.NDArray[np.float64]


def solve(options: Mapping[str, Options], budget_bytes: int) -> Solution:
    """Return the choice of least damage.

    Args:
        options: for each tensor its types with their bytes and damage; none is empty.
        budget_bytes: for all tensors together; at least `smallest(options)`.

    Raises:
        ValueError: the budget is below that.
    """
    least, most = smallest(options), largest(options)
    if budget_bytes < least:
        raise ValueError(f"a budget of {budget_bytes} bytes is below the smallest choice, {least}")
    unit, exact = _unit(options)
    room = (min(budget_bytes, most) - least) // unit
    items = [_item(name, given, unit) for name, given in options.items()]
    types = _best(items, int(room))
    size = sum(options[name][kind][0] for name, kind in types.items())
    damage = sum(options[name][kind][1] for name, kind in types.items())
    bound = damage if exact else min(damage, Relaxed(options).bound(budget_bytes))
    return Solution(types, size, damage, bound)


def smallest(options: Mapping[str, Options]) -> int:
    """Return the bytes of the smallest choice of all."""
    return sum(min(size for size, _ in given.values()) for given in options.values())


def largest(options: Mapping[str, Options]) -> int:
    """Return the bytes beyond which nothing gets better."""
    return sum(_useful(given)[-1][0] for given in options.values())


def _useful(given: Options) -> list[tuple[int, float, str]]:
    """Return a tensor's choices without those that are larger and no better than another."""
    kept: list[tuple[int, float, str]] = []
    for size, damage, name in sorted((s, d, n) for n, (s, d) in given.items()):
        if not kept or damage < kept[-1][1]:
            kept.append((size, damage, name))
    return kept


def _unit(options: Mapping[str, Options]) -> tuple[int, bool]:
    """Return the bytes of a unit, and whether every size is a whole number of them."""
    added = [
        size - points[0][0]
        for points in map(_useful, options.values())
        for size, _, _ in points[1:]
    ]
    divisor = math.gcd(*added) if added else 1
    span = largest(options) - smallest(options)
    most_units = max(1, min(MOST_UNITS, MOST_CELLS // max(1, len(options))))
    if span // max(1, divisor) <= most_units:
        return max(1, divisor), True
    return math.ceil(span / most_units), False


def _item(name: str, given: Options, unit: int) -> _Item:
    points = _useful(given)
    least = points[0][0]
    added = np.array([-(-(size - least) // unit) for size, _, _ in points], np.int64)
    return _Item(
        name, tuple(kind for _, _, kind in points), added,
        np.array([damage for _, damage, _ in points]),
    )  # fmt: skip


def _best(items: list[_Item], room: int) -> dict[str, str]:
    """Return the best types within so many units, by dynamic programming over the room left."""
    best = np.zeros(room + 1)
    taken = np.zeros((len(items), room + 1), np.uint8)
    for number, item in enumerate(items):
        found = best + item.damages[0]
        for kind in range(1, len(item.types)):
            add = int(item.added[kind])
            if add > room:
                continue
            other = best[: room + 1 - add] + item.damages[kind]
            better = other < found[add:]
            taken[number, add:][better] = kind
            np.copyto(found[add:], other, where=better)
        best = found
    types: dict[str, str] = {}
    for number in range(len(items) - 1, -1, -1):
        kind = int(taken[number, room])
        types[items[number].name] = items[number].types[kind]
        room -= int(items[number].added[kind])
    return types
