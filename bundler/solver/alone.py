"""What each machine takes when it decides alone, at given prices of files or with some on the stick.

Pure. A machine's own memories are kept exactly; what all share is either priced, file by file, or a
limit of which files that others have on the stick already take nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundler.solver.candidates import Field, order
from bundler.solver.decision import Decision, Option, Wanted
from bundler.solver.pricing import Candidate
from bundler.solver.search import Search

File = tuple[str, str]
"""A model and the name of a built file of it."""
MOST_WORK_AT_ONCE = 10_000
"""Combinations that are looked at for one answer of one machine."""


class OutOfTries(Exception):
    """The machines were asked as often as is allowed."""


@dataclass
class Allowance:
    """How many candidates may still be looked at: what bounds the time that all answers take."""

    left: int

    def spend(self, candidates: int) -> None:
        """Count what one answer took.

        Raises:
            OutOfTries: that was the last of it.
        """
        self.left -= candidates
        if self.left < 0:
            raise OutOfTries


@dataclass(frozen=True)
class Answer:
    """What one machine takes."""

    picks: tuple[Option, ...]
    """One option of each of its models, in their order."""
    files: tuple[File, ...]
    lowest: int
    """Damage and prices that no other choice of it goes below."""


@dataclass(frozen=True)
class _Way:
    option: Option
    file: File
    own: tuple[int, ...]
    turn: tuple[int, ...]
    shared: tuple[int, ...]


class Machine:
    """One machine's part of a decision. Holds its options, less what no price makes worth having."""

    def __init__(self, decision: Decision, tier: str, allowance: Allowance) -> None:
        self._wanted = [want for want in decision.wanted if want.tier == tier]
        self.keys = tuple(want.key for want in self._wanted)
        self._memory = [
            kind
            for kind, limit in enumerate(decision.limits)
            if limit.turns and limit.tier == tier and limit.capacity_bytes is not None
        ]
        self._shared = shared_kinds(decision)
        self._room = tuple(int(decision.limits[k].capacity_bytes or 0) for k in self._memory)
        self._ways = [self._ways_of(want) for want in self._wanted]
        self._allowance = allowance

    @property
    def files(self) -> dict[File, tuple[int, ...]]:
        """The files it could take, with what they take of what is shared."""
        found: dict[File, tuple[int, ...]] = {}
        for way in (way for ways in self._ways for way in ways):
            found[way.file] = tuple(map(min, found.get(way.file, way.shared), way.shared))
        return found

    def priced(self, prices: Mapping[File, int]) -> Answer | None:
        """Return what is best where each file has a price; None when nothing fits its memories."""
        groups = []
        for ways in self._ways:
            costs = ((w.option.damage + prices.get(w.file, 0), n) for n, w in enumerate(ways))
            groups.append([_candidate(ways[n], cost, ()) for cost, n in sorted(costs)])
        return self._best([_undercut(group) for group in groups], self._room)

    def within(self, room: Sequence[int], there: frozenset[File]) -> Answer | None:
        """Return what is best within `room` of what is shared, beside files that are there anyway."""
        free = (0,) * len(self._shared)
        groups = [
            _undercut([
                _candidate(way, way.option.damage, free if way.file in there else way.shared)
                for way in ways
            ])
            for ways in self._ways
        ]  # fmt: skip
        return self._best(groups, (*self._room, *room))

    def _best(self, groups: Sequence[Sequence[Candidate]], room: tuple[int, ...]) -> Answer | None:
        self._allowance.spend(sum(map(len, groups)))
        # A limit that cannot be exceeded costs time only.
        tight = [
            kind
            for kind, size in enumerate(room)
            if sum(max(c.sums[kind] + c.turns[kind] for c in group) for group in groups) > size
        ]
        if not tight:
            best: Sequence[Candidate] | None = [min(g, key=lambda c: c.damage) for g in groups]
            lowest = None
        else:
            kept = tuple(tuple(_only(c, tight) for c in group) for group in groups)
            turning = tuple(kind < len(self._room) for kind in tight)
            field = Field(kept, tuple(room[kind] for kind in tight), (), turning, whole=True)
            search = Search(field, 0, MOST_WORK_AT_ONCE)
            best, lowest = search.run()
            self._allowance.spend(search.looked)
        if best is None:
            if lowest is not None:
                raise OutOfTries
            return None
        picks = tuple(option for candidate in best for _, option in candidate.picks)
        files = tuple(
            file_of(want, option) for want, option in zip(self._wanted, picks, strict=True)
        )
        total = sum(candidate.damage for candidate in best)
        return Answer(picks, files, total if lowest is None else lowest)

    def _ways_of(self, want: Wanted) -> list[_Way]:
        found: list[_Way] = []
        latest: dict[tuple[File, tuple[int, ...]], list[_Way]] = {}
        for option in sorted(want.options, key=order):
            needs = tuple(option.needs[kind] for kind in self._memory)
            none = (0,) * len(needs)
            own, turn = (needs, none) if option.resident else (none, needs)
            shared = tuple(option.needs[kind] for kind in self._shared)
            way = _Way(option, file_of(want, option), own, turn, shared)
            before = latest.setdefault((way.file, shared), [])
            if not any(
                all(map(int.__le__, other.own + other.turn, own + turn)) for other in before
            ):
                before.append(way)
                found.append(way)
        return found


def _only(candidate: Candidate, tight: Sequence[int]) -> Candidate:
    return Candidate(
        candidate.damage,
        tuple(candidate.sums[kind] for kind in tight),
        tuple(candidate.turns[kind] for kind in tight),
        candidate.picks,
    )


def _candidate(way: _Way, damage: int, shared: tuple[int, ...]) -> Candidate:
    none = (0,) * len(shared)
    return Candidate(damage, way.own + shared, way.turn + none, ((("", ""), way.option),))


def _undercut(ordered: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates, of those ordered by damage, that none before undercuts in all needs."""
    kept: list[Candidate] = []
    taken: list[tuple[int, ...]] = []
    for one in ordered:
        own = one.sums + one.turns
        if not any(all(map(int.__le__, other, own)) for other in taken):
            kept.append(one)
            taken.append(own)
    return kept


def shared_kinds(decision: Decision) -> list[int]:
    """Return which limits all machines share."""
    return [
        kind
        for kind, limit in enumerate(decision.limits)
        if not limit.turns and limit.capacity_bytes is not None
    ]


def file_of(want: Wanted, option: Option) -> File:
    """Return the file an option takes: shared by its name, or its machine's own."""
    if option.file:
        return want.name, "shared:" + option.file
    sizes = ":".join(map(str, option.needs))
    return want.name, f"own:{want.tier}:{sizes}"
