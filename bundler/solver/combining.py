"""Combines candidates model by model, as far as a mark of damage; exact. Pure.

A combination's damage is the bound, what its candidates' prices are above their models' cheapest, and
the price of what it leaves unused. Whatever brings that to the mark ends; so does, of two
combinations over the same models, the one that takes no less and harms no less.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bundler.solver.pricing import SMALL, Bound, Candidate, priced

_BEAM = 60
"""How many combinations are kept at each model while looking for a first good one."""
_BEAM_CHOICES = 8
_BEAM_END = 1500
"""How many are kept for the last two models, which have to fill what is left."""
_BEAM_WHOLE = 6
"""Before these last but two, a few candidates of each model are enough to choose from."""
_ENDS_TRIED = 24
_COMPARED = 24


class OutOfWork(Exception):
    """As many combinations were looked at as were allowed."""


@dataclass(frozen=True)
class Space:
    """Candidates with their bound, and the room there is for them."""

    groups: Sequence[Sequence[Candidate]]
    bound: Bound
    room: Sequence[int]
    """Of each limit, for sums and turns."""
    left: Sequence[int]
    """The same less what is set aside for turns at least: what the bound is of."""
    settled: Sequence[bool]
    """Whether exactly that is set aside: turns then no longer matter."""


class _Choice(NamedTuple):
    """A candidate of one model, with what can still matter."""

    above: float
    """Its price above that of the model's cheapest."""
    damage: int
    sums: tuple[int, ...]
    turns: tuple[int, ...]
    candidate: Candidate


class _Linked(NamedTuple):
    candidate: Candidate
    before: _Linked | None


class _State(NamedTuple):
    """Candidates of the first few models together."""

    damage: int
    price: float
    sums: tuple[int, ...]
    turns: tuple[int, ...]
    picked: _Linked | None


class Combining:
    """One space, being combined. Holds what does not change meanwhile."""

    def __init__(self, space: Space, mark: int, work: int) -> None:
        self._space = space
        self._mark = float(mark)
        self._best: _Linked | None = None
        self.work_left = work
        self._prepare()

    def quick(self) -> tuple[Candidate, ...] | None:
        """Return something good below the mark, if it is found soon."""
        if not all(self._groups):
            return None
        states = [self._nothing()]
        last = max(0, len(self._groups) - 2)
        for index in range(last):
            most = _BEAM_CHOICES if index < last - _BEAM_WHOLE else None
            try:
                states = sorted(self._expand(states, index, most), key=self._promise(index + 1))
            except OutOfWork:
                return None
            del states[_BEAM if index < last - 1 else _BEAM_END :]
        return self._picked(self._finished(states, last))

    def _finished(self, states: Iterable[_State], last: int) -> list[_State]:
        """Fill states up with the last two models, pairs that use what is left first: the best one."""
        best: list[_State] = []
        mark = self._mark - 1
        ends: list[_State] = [self._nothing()]
        for index in range(last, len(self._groups)):
            ends = [self._added(end, choice) for end in ends for choice in self._groups[index]]
        place = max(self._priced, key=lambda item: item[1] * item[2], default=(0, 0, 0))[0]
        ends.sort(key=lambda end: (end.sums[place : place + 1], end.damage))
        taken = [end.sums[place] if end.sums else 0 for end in ends]
        for state in states:
            room = self._capacity[place] - state.sums[place] if state.sums else 0
            end = bisect_right(taken, room)
            for one in ends[max(0, end - _ENDS_TRIED) : end]:
                if state.damage + one.damage > mark:
                    continue
                sums = tuple(map(int.__add__, state.sums, one.sums))
                turns = tuple(map(max, state.turns, one.turns))
                if self._fits(sums, turns, tuple(self._capacity)):
                    linked = state.picked
                    for candidate in _in_order(one.picked):
                        linked = _Linked(candidate, linked)
                    better = _State(state.damage + one.damage, 0.0, sums, turns, linked)
                    best = [min((*best, better), key=lambda state: (state.damage, state.sums))]
                    mark = best[0].damage
        return best

    def _added(self, state: _State, choice: _Choice) -> _State:
        return _State(
            state.damage + choice.damage,
            state.price + choice.above,
            tuple(map(int.__add__, state.sums, choice.sums)),
            tuple(map(max, state.turns, choice.turns)),
            _Linked(choice.candidate, state.picked),
        )

    def _promise(self, index: int) -> Callable[[_State], tuple[float, tuple[int, ...]]]:
        """Return what sorts states by how well they can end: cheap, and not too hard to fill up."""
        least, most = self._least[index], self._most[index]
        easy = [
            (place, worth, left - (least[place] + 3 * most[place]) / 4,
             left - (3 * least[place] + most[place]) / 4)
            for place, worth, left in self._priced
        ]  # fmt: skip

        def key(state: _State) -> tuple[float, tuple[int, ...]]:
            off = sum(
                worth * max(low - state.sums[place], state.sums[place] - high, 0)
                for place, worth, low, high in easy
            )
            return state.price + off, state.sums

        return key

    def best(self) -> tuple[Candidate, ...] | None:
        """Return the combination of least damage below the mark, None when there is none.

        Raises:
            OutOfWork: it would take more work than is allowed.
        """
        if not all(self._groups):
            return None
        states = [self._nothing()]
        for index in range(len(self._groups)):
            states = self._not_dominated(self._expand(states, index))
        return self._picked(states)

    # -- what matters ----------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Keep the candidates near the bound, and the limits they could exceed."""
        space = self._space
        near = [self._near(group) for group in space.groups]
        kinds = [kind for kind in range(len(space.room)) if self._matters(kind, near)]
        turning = [kind for kind in kinds if not space.settled[kind]]
        self._capacity = [
            (space.left if space.settled[kind] else space.room)[kind] for kind in kinds
        ]
        self._at = [kinds.index(kind) for kind in turning]
        self._priced = [
            (place, space.bound.prices[kind], space.left[kind])
            for place, kind in enumerate(kinds)
            if space.bound.prices[kind]
        ]
        groups = [
            [
                _Choice(
                    above,
                    c.damage,
                    tuple(c.sums[kind] for kind in kinds),
                    tuple(c.turns[kind] for kind in turning),
                    c,
                )
                for above, c in group
            ]
            for group in near
        ]
        # Those with the widest choice first: what is left by the last ones then tells early how much
        # room stays unused. Before them those that take turns, which fill nothing.
        spreads = [self._spread(group) for group in groups]
        order = sorted(range(len(groups)), key=lambda n: (spreads[n] > 0, -spreads[n], n))
        self._order = order
        self._groups = [groups[number] for number in order]
        self._prepare_rest(len(kinds), len(turning))

    def _near(self, group: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
        prices = [priced(candidate, self._space.bound.prices) for candidate in group]
        least = min(prices)
        slack = self._mark - self._space.bound.value + SMALL
        near = [(p - least, number) for number, p in enumerate(prices) if p - least < slack]
        return [(above, group[number]) for above, number in sorted(near)]

    def _matters(self, kind: int, near: Sequence[Sequence[tuple[float, Candidate]]]) -> bool:
        space = self._space
        if space.bound.prices[kind]:
            return True
        most = sum(max((c.sums[kind] for _, c in group), default=0) for group in near)
        turn = max((c.turns[kind] for group in near for _, c in group), default=0)
        if space.settled[kind]:
            return most > space.left[kind]
        return most + turn > space.room[kind]

    def _spread(self, group: Sequence[_Choice]) -> float:
        """Return how much a model's candidates differ in what they take, by its price."""
        taken = [sum(price * c.sums[place] for place, price, _ in self._priced) for c in group]
        return max(taken, default=0.0) - min(taken, default=0.0)

    def _prepare_rest(self, kinds: int, turning: int) -> None:
        """Compute the least and the most that the models from each index on will take."""
        least, most, turn = [(0,) * kinds], [(0,) * kinds], [(0,) * turning]
        for group in reversed(self._groups):
            sums = list(zip(*(c.sums for c in group), strict=True)) or [(0,)] * kinds
            turns = list(zip(*(c.turns for c in group), strict=True)) or [(0,)] * turning
            least.append(tuple(map(int.__add__, least[-1], map(min, sums))))
            most.append(tuple(map(int.__add__, most[-1], map(max, sums))))
            # A model that may stay in memory, too, does not need a turn in any case.
            turn.append(tuple(map(max, turn[-1], map(min, turns))))
        self._least, self._most, self._turn = least[::-1], most[::-1], turn[::-1]

    # -- combining -------------------------------------------------------------------------------

    def _nothing(self) -> _State:
        return _State(0, 0.0, (0,) * len(self._capacity), (0,) * len(self._at), None)

    def _expand(
        self, states: Sequence[_State], index: int, most: int | None = None
    ) -> Iterator[_State]:
        """Give what each state becomes with one more model, less what cannot fit or win."""
        group = self._groups[index][:most]
        slack = self._mark - 1 - self._space.bound.value + SMALL
        ceiling = tuple(map(int.__sub__, self._capacity, self._least[index + 1]))
        turn = self._turn[index + 1]
        filled = self._most[index + 1]
        wanting = [(place, worth, left - filled[place]) for place, worth, left in self._priced]
        for damage, price, sums, turns, picked in states:
            for above, more, own, own_turns, candidate in group:
                total = price + above
                if total > slack:
                    break  # the others cost more still
                self.work_left -= 1
                new_sums = tuple(map(int.__add__, sums, own))
                for place, worth, enough in wanting:
                    if new_sums[place] < enough:
                        total += worth * (enough - new_sums[place])
                if total > slack:
                    continue  # what stays unused is paid for in the bound
                new_turns = tuple(map(max, turns, own_turns))
                if self._fits(new_sums, tuple(map(max, new_turns, turn)), ceiling):
                    linked = _Linked(candidate, picked)
                    yield _State(damage + more, price + above, new_sums, new_turns, linked)
            if self.work_left <= 0:
                raise OutOfWork

    def _fits(
        self, sums: tuple[int, ...], turns: tuple[int, ...], ceiling: tuple[int, ...]
    ) -> bool:
        if not all(map(int.__le__, sums, ceiling)):
            return False
        return all(
            sums[place] + turn <= ceiling[place]
            for place, turn in zip(self._at, turns, strict=True)
        )

    def _not_dominated(self, states: Iterable[_State]) -> list[_State]:
        """Return the states that no other beats in damage and in every need."""
        ordered = sorted(states, key=lambda s: (s.damage, s.sums, s.turns))
        dimensions = len(self._capacity) + len(self._at)
        if dimensions <= 2:
            return _stairs(ordered)
        kept: list[tuple[tuple[int, ...], _State]] = []
        for state in ordered:
            own = state.sums + state.turns
            # Against the latest only: a dominated state that stays costs time, not exactness.
            if not any(all(map(int.__le__, other, own)) for other, _ in kept[-_COMPARED:]):
                kept.append((own, state))
        return [state for _, state in kept]

    def _picked(self, states: Iterable[_State]) -> tuple[Candidate, ...] | None:
        """Return the best combination below the mark, in the order of its models."""
        best = min(states, key=lambda state: (state.damage, state.sums), default=None)
        if best is None or best.damage >= self._mark:
            return None
        by_place = dict(zip(self._order, _in_order(best.picked), strict=True))
        return tuple(by_place[place] for place in sorted(by_place))


def _in_order(link: _Linked | None) -> list[Candidate]:
    """Return what was picked, first things first."""
    found: list[Candidate] = []
    while link is not None:
        found.append(link.candidate)
        link = link.before
    return found[::-1]


def _stairs(ordered: Iterable[_State]) -> list[_State]:
    """Return the states, of those ordered by damage, that none before undercuts in two needs."""
    kept: list[_State] = []
    stairs: list[tuple[int, int]] = []  # first need rising, second falling
    for state in ordered:
        first, second = (*state.sums, *state.turns, 0, 0)[:2]
        place = bisect_right(stairs, (first, 1 << 62))
        if place and stairs[place - 1][1] <= second:
            continue
        end = place
        while end < len(stairs) and stairs[end][1] >= second:
            end += 1
        del stairs[place:end]
        insort(stairs, (first, second))
        kept.append(state)
    return kept
