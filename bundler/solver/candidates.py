"""What each model may take on all of its machines at once, less what can never be best. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundler.solver.decision import Decision, Option, Wanted
from bundler.solver.pricing import Candidate

MOST_CANDIDATES = 4096
"""Of one model over several machines. With more, the least promising are dropped, and the solution
says by how much it may miss the best."""
_COMPARED = 64


@dataclass(frozen=True)
class Field:
    """The question without what cannot matter: tight limits only, models by name."""

    groups: tuple[tuple[Candidate, ...], ...]
    room: tuple[int, ...]
    """What there is of each tight limit."""
    kinds: tuple[int, ...]
    """Which limits of the decision these are."""
    turning: tuple[bool, ...]
    """Whether a limit is memory, which models can take turns in."""
    whole: bool
    """Whether every candidate is there that could be part of the best combination."""


def field_of(decision: Decision) -> Field:
    """Return what has to be searched."""
    tight = _tight(decision)
    room = tuple(int(decision.limits[kind].capacity_bytes or 0) for kind in tight)
    turning = tuple(decision.limits[kind].turns for kind in tight)
    names = sorted({want.name for want in decision.wanted})
    whole = True
    groups = []
    for name in names:
        parts = [want for want in decision.wanted if want.name == name]
        found, complete = _joint(parts, tight, turning)
        groups.append(tuple(found))
        whole = whole and complete
    return Field(tuple(groups), room, tuple(tight), turning, whole)


def _tight(decision: Decision) -> list[int]:
    """Return the limits that could be exceeded at all."""
    found = []
    for index, limit in enumerate(decision.limits):
        most = sum(max(option.needs[index] for option in want.options) for want in decision.wanted)
        if limit.capacity_bytes is not None and most > limit.capacity_bytes:
            found.append(index)
    return found


def order(option: Option) -> tuple[int, int, str, str, int, bool, str]:
    """Return a key without ties between options that a person could tell apart."""
    offer = option.offer
    return (
        option.damage, offer.memory.total_bytes, offer.quant, offer.kv_cache, -offer.gpu_layers,
        not option.resident, option.file,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Partial:
    candidate: Candidate
    files: frozenset[str]


def _joint(
    parts: Sequence[Wanted], tight: Sequence[int], turning: Sequence[bool]
) -> tuple[list[Candidate], bool]:
    """Combine one model's options on all its machines; files that they share count once."""
    nothing = (0,) * len(tight)
    found = [_Partial(Candidate(0, nothing, nothing, ()), frozenset())]
    complete = True
    for index, want in enumerate(parts):
        options = _front([_alone(want, o, tight, turning) for o in sorted(want.options, key=order)])
        last = index == len(parts) - 1
        both = [_with(partial, one, turning) for partial in found for one in options]
        both.sort(key=lambda partial: partial.candidate.damage)
        found = _front(both, files_matter=not last)
        complete = complete and len(found) <= MOST_CANDIDATES
        found = found[:MOST_CANDIDATES] if last or complete else _spread(found)
    return [partial.candidate for partial in found], complete


def _spread(found: list[_Partial]) -> list[_Partial]:
    """Keep some of too many: evenly from the best to the smallest, so that something fits."""
    step = len(found) / MOST_CANDIDATES
    return [found[int(number * step)] for number in range(MOST_CANDIDATES)]


def _alone(want: Wanted, option: Option, tight: Sequence[int], turning: Sequence[bool]) -> _Partial:
    needs = tuple(option.needs[kind] for kind in tight)
    own = tuple(
        0 if turns and not option.resident else need
        for need, turns in zip(needs, turning, strict=True)
    )
    turn = tuple(need - alone for need, alone in zip(needs, own, strict=True))
    candidate = Candidate(option.damage, own, turn, ((want.key, option),))
    return _Partial(candidate, frozenset((option.file,)) - {""})


def _with(partial: _Partial, one: _Partial, turning: Sequence[bool]) -> _Partial:
    """Return both together. Machines have memories of their own, so turns never meet."""
    first, second = partial.candidate, one.candidate
    known = bool(one.files) and one.files <= partial.files
    sums = tuple(
        a + (b if turns or not known else 0)
        for a, b, turns in zip(first.sums, second.sums, turning, strict=True)
    )
    turns = tuple(map(max, first.turns, second.turns))
    joint = Candidate(first.damage + second.damage, sums, turns, first.picks + second.picks)
    return _Partial(joint, partial.files | one.files)


def _front(partials: Sequence[_Partial], *, files_matter: bool = True) -> list[_Partial]:
    """Return those that no earlier (and so no worse) one undercuts in every need.

    A file that another machine may share is worth something: it must be there in the other, too.
    Only some are compared; one that stays although it is beaten costs time, not exactness.
    """
    kept: list[_Partial] = []
    for one in partials:
        own = one.candidate.sums + one.candidate.turns
        if not any(
            (not files_matter or one.files <= other.files)
            and all(map(int.__le__, other.candidate.sums + other.candidate.turns, own))
            for other in kept[-_COMPARED:]
        ):
            kept.append(one)
    return kept
