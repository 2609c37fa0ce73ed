"""Finds the best way to keep all limits at once. Pure.

For each model on each machine exactly one option is taken: an offer of its engine, either always in
memory or taking turns. What is taken must keep every limit, and of all that does, the one with the
least damage is found; `search` proves that it is the least. The order in which plugins answer
cannot matter: everything is sorted first.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from bundler.errors import DoesNotFit
from bundler.solver.decision import (
    DAMAGE_UNITS,
    ROLE_WEIGHT,
    Decision,
    Limit,
    Option,
    Settlement,
    Solution,
    Wanted,
)
from bundler.solver.search import find_best
from bundler.solver.sharing import share

MOST_JOINT_WAYS = 1_000
"""Of one model on all its machines: so many are compared directly, each with each."""


def solve(decision: Decision) -> Solution | None:
    """Return the choice of least damage that keeps every limit; None when there is none."""
    if any(not want.options for want in decision.wanted):
        return None
    tiers = decision.tiers
    if len(tiers) < 2:
        return find_best(decision)
    # Each machine alone first: most often the best of each fit the stick together.
    alone = []
    for tier in tiers:
        found = find_best(decision.of_tier(tier))
        if found is None:
            return None
        alone.append(found)
    together = _together(decision, alone)
    if not decision.broken(decision.used(together.chosen)):
        return together
    return _of_all(decision, together.damage - together.gap)


def _of_all(decision: Decision, floor: int) -> Solution | None:
    """Return the best for machines that compete for what they share."""
    unknown: DoesNotFit | None = None
    few = _ways(decision) <= MOST_JOINT_WAYS
    if few:
        try:
            exact = find_best(decision, floor=floor)
        except DoesNotFit as error:
            unknown = error
        else:
            if exact is None or not exact.gap:
                return exact
            floor = max(floor, exact.damage - exact.gap)
    good, lowest = share(decision, floor)
    if good is None and not few:
        return find_best(decision, floor=lowest)
    if good is None and unknown:
        raise unknown
    return good


def _ways(decision: Decision) -> int:
    """Return in how many ways the model with most of them can be on all its machines."""
    return max(
        prod(len(want.options) for want in decision.wanted if want.name == name)
        for name in {want.name for want in decision.wanted}
    )


def _together(decision: Decision, parts: Iterable[Solution]) -> Solution:
    parts = list(parts)
    found = {key: option for part in parts for key, option in part.chosen.items()}
    return Solution(
        {want.key: found[want.key] for want in decision.wanted},
        sum(part.damage for part in parts),
        sum(part.gap for part in parts),
    )


def settle(decision: Decision) -> Settlement | None:
    """Solve; leave out optional models before giving up, and no more of them than needed.

    Those for which there is no option at all go first, then the last ones of the recipe. A machine
    whose own memory is too small gives up its own; where only what all share is too small, the last
    machine gives up first. What went and turns out to fit beside the rest comes back, in the order
    of the recipe.
    """
    left_out = [want for want in decision.wanted if want.optional and not want.options]
    settled = _without(decision, left_out)
    solution = solve(settled)
    while solution is None:
        loser = _first_to_go(settled)
        if loser is None:
            return None
        left_out.append(loser)
        settled = _without(settled, [loser])
        solution = solve(settled)
    # The last to go did not fit beside those that stayed: that much is known.
    for want in [want for want in decision.wanted if want in left_out[:-1] and want.options]:
        fewer = [other for other in left_out if other is not want]
        trial = _without(decision, fewer)
        found = solve(trial)
        if found is not None:
            left_out, settled, solution = fewer, trial, found
    return Settlement(solution, settled, tuple(want.key for want in left_out))


def _without(decision: Decision, gone: Iterable[Wanted]) -> Decision:
    for want in gone:
        decision = decision.without(want.name, want.tier)
    return decision


def _first_to_go(decision: Decision) -> Wanted | None:
    for tier in decision.tiers:
        optional = [w for w in decision.wanted if w.tier == tier and w.optional]
        if len(decision.tiers) > 1 and solve(decision.of_tier(tier)) is None:
            return optional[-1] if optional else None
    for tier in reversed(decision.tiers):
        optional = [w for w in decision.wanted if w.tier == tier and w.optional]
        if optional:
            return optional[-1]
    return None


__all__ = [
    "DAMAGE_UNITS", "ROLE_WEIGHT", "Decision", "Limit", "Option", "Settlement", "Solution",
    "Wanted", "settle", "solve",
]  # fmt: skip
