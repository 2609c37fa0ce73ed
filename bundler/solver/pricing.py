"""A bound for combinations: every limit gets a price, so that each model can be judged alone. Pure.

With prices, each model takes the candidate whose damage and price together are least; that sum, less
what the limits themselves are worth, is no more than the damage of any combination that fits
(Lagrangian duality: H. Everett, "Generalized Lagrange Multiplier Method", 1963). The best price of
one limit, all others fixed, is where the candidates' lower convex hulls cross its capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from bundler.solver.decision import Option

ROUNDS = 4
"""How often each limit is priced anew; the prices rarely move after the third time."""
SMALL = 1e-3
"""Less than any difference of whole units of damage, and more than rounding of floats adds up to."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one model may take on all of its machines, as the search sees it: tight limits only."""

    damage: int
    sums: tuple[int, ...]
    """What adds up: memory of residents, disk, download."""
    turns: tuple[int, ...]
    """What is had one after the other."""
    picks: tuple[tuple[tuple[str, str], Option], ...]


Group = Sequence[Candidate]
"""All candidates of one model."""


@dataclass(frozen=True)
class Bound:
    """Prices of the limits, and the damage that no combination goes below."""

    prices: tuple[float, ...]
    value: float


def priced(candidate: Candidate, prices: Sequence[float]) -> float:
    """Return a candidate's damage with the price of what it takes."""
    return candidate.damage + sum(
        price * need for price, need in zip(prices, candidate.sums, strict=True) if price
    )


def find_bound(
    groups: Sequence[Group], room: Sequence[int], start: Sequence[float]
) -> Bound | None:
    """Return a high bound for what `room` allows; None when even the least needs exceed it.

    Args:
        groups: the candidates of each model.
        room: what there is of each limit.
        start: prices to begin with, as those of a similar question.
    """
    kinds = range(len(room))
    for kind in kinds:
        if sum(min(c.sums[kind] for c in group) for group in groups) > room[kind]:
            return None
    # Pricing one limit after the other stops at the edges between two of them, so where nothing is
    # known yet every limit is once the first to be priced.
    firsts = kinds if kinds and not any(start) else (0,)
    return max(
        (_ascended(groups, room, start, (*kinds[first:], *kinds[:first])) for first in firsts),
        key=lambda bound: bound.value,
    )


def _ascended(
    groups: Sequence[Group], room: Sequence[int], start: Sequence[float], kinds: Sequence[int]
) -> Bound:
    """Return the bound after pricing the limits in turn."""
    prices = list(start)
    best = Bound(tuple(prices), _value(groups, room, prices))
    for _ in range(ROUNDS):
        before = list(prices)
        for kind in kinds:
            prices[kind] = _best_price(groups, room[kind], prices, kind)
        value = _value(groups, room, prices)
        if value > best.value:
            best = Bound(tuple(prices), value)
        if len(room) == 1 or prices == before:
            break
    return best


def _value(groups: Sequence[Group], room: Sequence[int], prices: Sequence[float]) -> float:
    least = sum(min(priced(candidate, prices) for candidate in group) for group in groups)
    return least - sum(price * most for price, most in zip(prices, room, strict=True))


def _best_price(groups: Sequence[Group], room: int, prices: Sequence[float], kind: int) -> float:
    """Return the price at which the models together stop exceeding one limit."""
    others = [0.0 if index == kind else price for index, price in enumerate(prices)]
    taken = 0
    steps: list[tuple[float, int]] = []
    for group in groups:
        hull = _hull(sorted((c.sums[kind], priced(c, others)) for c in group))
        taken += hull[-1][0]
        steps += [
            ((left[1] - right[1]) / (right[0] - left[0]), right[0] - left[0])
            for left, right in pairwise(hull)
        ]
    if taken <= room:
        return 0.0
    for price, saved in sorted(steps):
        taken -= saved
        if taken <= room:
            return price
    return inf  # cannot be: the least needs fit


def _hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the falling part of the lower convex hull of (need, damage), needs ascending."""
    hull: list[tuple[int, float]] = []
    for x, y in points:
        if hull and y >= hull[-1][1]:
            continue
        if hull and hull[-1][0] == x:
            hull.pop()
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _is_above(left: tuple[int, float], middle: tuple[int, float], right: tuple[int, float]) -> bool:
    """Tell whether `middle` lies on or above the line between the others."""
    return (left[1] - middle[1]) * (right[0] - left[0]) <= (left[1] - right[1]) * (
        middle[0] - left[0]
    )
