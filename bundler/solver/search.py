"""The least damage among all combinations that keep every limit, proved. Pure.

Branch and bound, on what is set aside for turns: with the room for the largest model that takes
turns given (from … to …), models that take turns no longer compete, and the bound of `pricing`
is close. The region with the lowest bound is looked at first: it is split, or, once splitting gains
nothing, combined model by model (`combining`) for anything below a mark that rises in steps, so
that only candidates near the bound are ever combined.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from bundler.errors import DoesNotFit
from bundler.solver.candidates import Field, field_of
from bundler.solver.combining import Combining, OutOfWork, Space
from bundler.solver.decision import Decision, Solution
from bundler.solver.pricing import SMALL, Bound, Candidate, find_bound, priced

MOST_WORK = 400_000
"""Combinations that are looked at before the search gives up proving (some five seconds); no plan of
real offers comes near it, and a solution that is not proved says so."""
MOST_WORK_OF_A_LOOK = 100_000
"""A first look at a region is quick, and is not counted."""
_FIRST_STEP = 8
_STEP_FACTOR = 4


def find_best(decision: Decision, *, floor: int | None = None) -> Solution | None:
    """Return the best choice, None when nothing fits.

    Args:
        decision: what is to be decided; each model has at least one option.
        floor: damage that is known not to be undercut, where that is known.

    Raises:
        DoesNotFit: the work allowed was used up before anything was found that fits.
    """
    field = field_of(decision)
    eased = _eased(decision, field)
    if eased is not None:
        found = _of_the_eased(eased)
        if found is not None and not decision.broken(decision.used(found.chosen)):
            return found
        floor = max(floor or 0, found.damage) if found is not None else floor
    if not field.room:
        best: Sequence[Candidate] | None = [group[0] for group in field.groups]
        lowest = None
    else:
        best, lowest = Search(field, floor or 0, MOST_WORK).run()
    if best is None and (lowest is not None or not field.whole):
        raise DoesNotFit(
            f"whether anything fits is not known: {MOST_WORK} combinations were looked at",
            hint="name fewer schemes in `quant`, or give the models more room",
        )
    if best is None:
        return None
    chosen = {key: option for candidate in best for key, option in candidate.picks}
    damage = sum(candidate.damage for candidate in best)
    if not field.whole:
        lowest = floor if floor is not None else 0
    return Solution(
        {want.key: chosen[want.key] for want in decision.wanted},
        damage,
        0 if lowest is None else max(0, damage - lowest),
    )


def _eased(decision: Decision, field: Field) -> Decision | None:
    """Return the decision without the limits that cost nothing at the bound; None when all do cost.

    Most often what is best without them keeps them, and it is found sooner: what differs only in
    what nobody is short of need not be told apart.
    """
    bound = find_bound(field.groups, field.room, (0.0,) * len(field.room))
    free = [k for k, p in zip(field.kinds, bound.prices, strict=True) if not p] if bound else []
    if not free or len(free) == len(field.kinds):
        return None
    limits = tuple(
        replace(limit, capacity_bytes=None) if kind in free else limit
        for kind, limit in enumerate(decision.limits)
    )
    return replace(decision, limits=limits)


def _of_the_eased(decision: Decision) -> Solution | None:
    """Return the best of it where that is proved: no choice that keeps more limits is better."""
    try:
        found = find_best(decision)
    except DoesNotFit:
        return None
    return found if found is not None and not found.gap else None


@dataclass(frozen=True)
class _Region:
    """Combinations whose turns take from `low` to `high` of each limit."""

    low: tuple[int, ...]
    """Numbers of entries in the list of what turns can take."""
    high: tuple[int, ...]
    groups: tuple[tuple[Candidate, ...], ...]
    bound: Bound


class Search:
    """One search. Holds what does not change during it, and the best so far."""

    def __init__(self, field: Field, floor: int, work: int) -> None:
        self._field = field
        self._floor = floor
        self._kinds = range(len(field.room))
        self._steps = [
            sorted({0, *(c.turns[kind] for group in field.groups for c in group)})
            for kind in self._kinds
        ]
        """What turns can take of each limit."""
        self._best: tuple[Candidate, ...] | None = None
        self._damage = 1 << 62
        self._work = work
        self.looked = 0
        """Combinations that were looked at, first looks included."""

    def run(self) -> tuple[tuple[Candidate, ...] | None, int | None]:
        """Return the best combination and, when that is not proved, the damage it may come down to."""
        nothing = tuple(0 for _ in self._kinds)
        whole = self._region(nothing, tuple(len(s) - 1 for s in self._steps), None)
        number = 0
        heap = [(self._lowest(whole), number, _FIRST_STEP, whole)] if whole else []
        if whole:
            self._look(self._space(whole))
        while heap:
            lowest, _, step, region = heapq.heappop(heap)
            if lowest >= self._damage:
                break
            try:
                parts = self._parts(lowest, step, region)
            except OutOfWork:
                return self._best, lowest
            for part_lowest, part_step, part in parts:
                if part_lowest < self._damage:
                    number += 1
                    heapq.heappush(heap, (part_lowest, number, part_step, part))
        return self._best, None

    def _look(self, space: Space) -> None:
        """Take what is found soon."""
        combining = Combining(space, self._damage, MOST_WORK_OF_A_LOOK)
        self._take(combining.quick())
        self.looked += MOST_WORK_OF_A_LOOK - combining.work_left

    def _lowest(self, region: _Region) -> int:
        return max(self._floor, ceil(region.bound.value - SMALL))

    def _parts(self, lowest: int, step: int, region: _Region) -> list[tuple[int, int, _Region]]:
        """Return what is left to do of a region: its halves, or itself from a higher mark on."""
        kind = self._worth_splitting(region)
        if kind is not None:
            halves = self._halves(region, kind)
            return [(max(lowest, self._lowest(half)), step, half) for half in halves]
        space = self._space(region)
        if step == _FIRST_STEP:
            self._look(space)
        if self._damage <= lowest:
            return []
        mark = min(self._damage, lowest + step)
        combining = Combining(space, mark, self._work)
        try:
            found = combining.best()
        finally:
            self.looked += self._work - combining.work_left
            self._work = combining.work_left
        self._take(found)
        return [(mark, step * _STEP_FACTOR, region)] if found is None else []

    def _space(self, region: _Region) -> Space:
        settled = tuple(map(int.__eq__, region.low, region.high))
        left = self._left(region.low)
        return Space(region.groups, region.bound, self._field.room, left, settled)

    def _take(self, found: tuple[Candidate, ...] | None) -> None:
        """Keep a combination that is better than the best so far."""
        damage = sum(candidate.damage for candidate in found) if found else self._damage
        if damage < self._damage:
            self._best, self._damage = found, damage

    def _worth_splitting(self, region: _Region) -> int | None:
        """Return the limit whose turns make the bound loose, None when none does."""
        loose = [
            (price * (self._steps[kind][high] - self._steps[kind][low]), kind)
            for kind, (price, low, high) in enumerate(
                zip(region.bound.prices, region.low, region.high, strict=True)
            )
            if high > low and price > 0
        ]
        return max(loose)[1] if loose else self._overtaken(region)

    def _overtaken(self, region: _Region) -> int | None:
        """Return a limit that the cheapest candidates exceed with their turns, None if none is."""
        cheapest = [
            min(group, key=lambda candidate: priced(candidate, region.bound.prices))
            for group in region.groups
        ]
        for kind in self._kinds:
            taken = sum(candidate.sums[kind] for candidate in cheapest)
            turn = max(candidate.turns[kind] for candidate in cheapest)
            split = region.high[kind] > region.low[kind]
            if split and taken + turn > self._field.room[kind]:
                return kind
        return None

    def _halves(self, region: _Region, kind: int) -> list[_Region]:
        middle = (region.low[kind] + region.high[kind]) // 2
        lower = (*region.high[:kind], middle, *region.high[kind + 1 :])
        upper = (*region.low[:kind], middle + 1, *region.low[kind + 1 :])
        found = (self._region(region.low, lower, region), self._region(upper, region.high, region))
        return [half for half in found if half is not None]

    def _region(
        self, low: tuple[int, ...], high: tuple[int, ...], parent: _Region | None
    ) -> _Region | None:
        """Return a region with its bound; None when nothing in it can fit."""
        most = tuple(steps[number] for steps, number in zip(self._steps, high, strict=True))
        groups = tuple(
            tuple(c for c in group if all(map(int.__le__, c.turns, most)))
            for group in (parent.groups if parent else self._field.groups)
        )
        if not all(groups):
            return None
        room = self._left(low)
        start = parent.bound.prices if parent else (0.0,) * len(room)
        bound = find_bound(groups, room, start)
        return _Region(low, high, groups, bound) if bound else None

    def _left(self, low: tuple[int, ...]) -> list[int]:
        """Return the room beside what the turns of a region take at least."""
        return [
            size - steps[number]
            for size, steps, number in zip(self._field.room, self._steps, low, strict=True)
        ]
