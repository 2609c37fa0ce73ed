"""Spending a budget where it helps most per byte: a bound that nothing can beat, and a quick answer. Pure.

Each tensor's choices are thinned to their lower convex hull of size against damage; the steps along
all hulls are taken steepest first until the budget is spent. Taking the last step in part is the best
that fractions could do, so no whole choice does less damage (Dyer 1984, Zemel 1984). Leaving that
step out is a choice that fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Options = Mapping[str, tuple[int, float]]
"""Type → (bytes, damage)."""


class Step(NamedTuple):
    """One step along a tensor's hull."""

    gain: float
    """Damage saved for each byte."""
    tensor: str
    type: str
    size_bytes: int
    """What it adds."""
    saved: float


class Spent(NamedTuple):
    """A choice for every tensor."""

    types: dict[str, str]
    size_bytes: int
    damage: float


def hull(options: Options) -> list[tuple[int, float, str]]:
    """Return the choices that could be worth their bytes, smallest first, each gaining less."""
    kept: list[tuple[int, float, str]] = []
    for size, damage, name in sorted((s, d, n) for n, (s, d) in options.items()):
        if kept and damage >= kept[-1][1]:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(
            kept[-1], (size, damage, name)
        ):
            kept.pop()
        kept.append((size, damage, name))
    return kept


def _slope(one: tuple[int, float, str], two: tuple[int, float, str]) -> float:
    return (one[1] - two[1]) / (two[0] - one[0]) if two[0] > one[0] else float("inf")


class Relaxed:
    """All tensors' hulls, looked through once for any number of budgets."""

    def __init__(self, options: Mapping[str, Options]) -> None:
        hulls = {name: hull(given) for name, given in options.items()}
        self._first = {name: points[0] for name, points in hulls.items()}
        self._base = sum(point[1] for point in self._first.values())
        self.least_bytes = sum(point[0] for point in self._first.values())
        self.most_bytes = sum(points[-1][0] for points in hulls.values())
        self._steps = sorted(
            (step for name, points in hulls.items() for step in _steps(name, points)),
            key=lambda step: (-step.gain, step.tensor, step.size_bytes),
        )

    def bound(self, budget_bytes: int) -> float:
        """Return a damage that no choice within the budget can go below."""
        left, damage = float(budget_bytes - self.least_bytes), self._base
        for step in self._steps:
            part = min(1.0, left / step.size_bytes)
            damage -= step.saved * part
            left -= step.size_bytes * part
            if part < 1.0:
                break
        return max(0.0, damage)

    def quick(self, budget_bytes: int) -> Spent:
        """Return a choice that fits, near the best. The budget must hold the smallest of all."""
        types = {name: point[2] for name, point in self._first.items()}
        used, damage = self.least_bytes, self._base
        stopped: set[str] = set()
        for step in self._steps:
            if step.tensor in stopped:
                continue
            if used + step.size_bytes > budget_bytes:
                stopped.add(step.tensor)  # its later steps begin where this one ends
                continue
            types[step.tensor] = step.type
            used, damage = used + step.size_bytes, damage - step.saved
        return Spent(types, used, max(0.0, damage))


def _steps(name: str, points: Sequence[tuple[int, float, str]]) -> list[Step]:
    return [
        Step(_slope(one, two), name, two[2], two[0] - one[0], one[1] - two[1])
        for one, two in itertools.pairwise(points)
    ]
