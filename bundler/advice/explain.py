"""Answers why a plan is as it is: by putting other questions to the solver. Pure.

What more of a limit would buy, what a runner-up would cost the others, what giving something up
would gain: each is a decision of its own, solved like the plan itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bundler.advice.case import (
    Case,
    Key,
    changes,
    is_better,
    less_damage,
    limit_uses,
    memory_bytes,
    raisables,
    taken,
)
from bundler.advice.explanation import (
    EVERY_LIMIT,
    Bought,
    Changed,
    Explanation,
    LimitUse,
    ModelExplanation,
    More,
    RunnerUp,
    Shortage,
    TierExplanation,
)
from bundler.advice.giving_up import unasked, what_to_give_up
from bundler.hardware import Target
from bundler.solver.choosing import settle, solve
from bundler.solver.decision import DAMAGE_UNITS, Decision, Option, Settlement

GIB = 1 << 30
STEPS_BYTES = (1 * GIB, 2 * GIB, 4 * GIB)
"""What is asked of each limit: what would so much more of it buy?"""


def explain(case: Case, targets: dict[str, Target]) -> Explanation | None:
    """Return why the best choice for a recipe is what it is; None when nothing fits.

    Args:
        case: the recipe, what there is to decide, and how to decide about a changed one.
        targets: the machines by the names of their tiers, best first.
    """
    plan = settle(case.decision)
    if plan is None:
        return None
    more = tuple(_what_more_buys(case.decision, plan))
    if not any(one.changes for one in more):
        more += tuple(_what_more_of_all_buys(case.decision, plan))
    shared = limit_uses(plan.decision, plan.solution.chosen, None)
    own = {tier: limit_uses(plan.decision, plan.solution.chosen, tier) for tier in targets}
    tightest = _tightest([*(use for uses in own.values() for use in uses), *shared], more)
    tiers = tuple(
        TierExplanation(
            tier=tier, machine=target.title or target.name, limits=own[tier],
            models=tuple(_explain_model(plan, key, case, _yardstick(plan, tightest, tier))
                         for key in _of_tier(plan, tier)),
        )
        for tier, target in targets.items()
    )  # fmt: skip
    return Explanation(
        tiers=tiers, shared=shared, tightest=tightest, more=more,
        give_up=what_to_give_up(case, plan), unasked=unasked(case), left_out=_left_out(case.decision, plan),
        proved_best=plan.solution.gap == 0,
    )  # fmt: skip


def _of_tier(plan: Settlement, tier: str) -> list[Key]:
    return [key for key in plan.solution.chosen if key[1] == tier]


def _left_out(decision: Decision, plan: Settlement) -> tuple[Changed, ...]:
    """Return the models the plan does without, with the best that each could have been."""
    best = {want.key: min(want.options, key=lambda o: o.damage) for want in decision.wanted
            if want.key in plan.left_out}  # fmt: skip
    return tuple(
        Changed(
            model=model, tier=tier, before=taken(best[model, tier], decision.limits), after=None
        )
        for model, tier in plan.left_out
    )


# -- one model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Yardstick:
    """What the steps between offers are measured in."""

    name: str
    indices: tuple[int, ...]
    """Of the limits that are added up."""

    def bytes(self, option: Option) -> int:
        """Return what an option takes of it."""
        return sum(option.needs[index] for index in self.indices)


def _yardstick(plan: Settlement, tightest: LimitUse | None, tier: str) -> _Yardstick:
    """Return the tightest limit where it is one of this machine, else all its memory."""
    limits = plan.decision.limits
    if tightest is not None and tightest.tier in ("", tier):
        names = [(limit.name, limit.tier) for limit in limits]
        return _Yardstick(tightest.limit, (names.index((tightest.limit, tightest.tier)),))
    own = tuple(i for i, limit in enumerate(limits) if limit.turns and limit.tier == tier)
    return _Yardstick("memory", own)


def _explain_model(
    plan: Settlement, key: Key, case: Case, yardstick: _Yardstick
) -> ModelExplanation:
    model, tier = key
    worse, better = _neighbours(plan, key, yardstick)
    own = plan.solution.chosen[key]
    return ModelExplanation(
        model=model, tier=tier, role=case.recipe.models[model].role,
        taken=taken(own, plan.decision.limits),
        runner_up=_runner_up(plan, key),
        last_step=_step(worse, own, plan.decision, yardstick) if worse else None,
        next_step=_step(own, better, plan.decision, yardstick) if better else None,
    )  # fmt: skip


def _options(plan: Settlement, key: Key) -> tuple[Option, ...]:
    return next(want.options for want in plan.decision.wanted if want.key == key)


def _neighbours(
    plan: Settlement, key: Key, yardstick: _Yardstick
) -> tuple[Option | None, Option | None]:
    """Return the step below the way that was taken, and the one above that is worth most.

    Steps of quality only: neighbours lie in the same place and stay or take turns alike.
    """
    own = plan.solution.chosen[key]
    size = yardstick.bytes(own)
    others = [
        option
        for option in _options(plan, key)
        if (option.resident, option.offer.gpu_layers) == (own.resident, own.offer.gpu_layers)
    ]
    quality = own.offer.quality
    worse = [o for o in others if o.offer.quality > quality and yardstick.bytes(o) < size]
    better = [o for o in others if o.offer.quality < quality and yardstick.bytes(o) > size]
    # The least bad of the worse ones; of the better ones that which saves most for its bytes.
    below = min(worse, key=lambda o: (o.offer.quality, -yardstick.bytes(o)), default=None)
    above = max(
        better,
        key=lambda o: ((quality - o.offer.quality) / (yardstick.bytes(o) - size), -o.offer.quality),
        default=None,
    )
    return below, above


def _step(worse: Option, better: Option, decision: Decision, yardstick: _Yardstick) -> Bought:
    more = yardstick.bytes(better) - yardstick.bytes(worse)
    less = worse.offer.quality - better.offer.quality
    return Bought(
        limit=yardstick.name, worse=taken(worse, decision.limits),
        better=taken(better, decision.limits), more_bytes=more, less_damage=round(less, 6),
        less_damage_per_gib=round(less / (more / GIB), 6),
    )  # fmt: skip


def _runner_up(plan: Settlement, key: Key) -> RunnerUp | None:
    """Return the nearest better way with what stands against it, else the nearest worse one."""
    own, decision = plan.solution.chosen[key], plan.decision
    others = [o for o in _options(plan, key) if o != own]
    better = max((o for o in others if o.damage < own.damage),
                 key=lambda o: (o.damage, -memory_bytes(o, decision)), default=None)  # fmt: skip
    worse = min((o for o in others if o.damage >= own.damage),
                key=lambda o: (o.damage, memory_bytes(o, decision)), default=None)  # fmt: skip
    other = better or worse
    if other is None:
        return None
    swapped = {**plan.solution.chosen, key: other}
    missing = tuple(
        Shortage(limit=limit.name, tier=limit.tier, missing_bytes=excess)
        for limit, excess in decision.broken(decision.used(swapped))
    )
    instead, costs = _forced(plan, key, other) if missing else ((), None)
    if not missing:
        costs = (other.damage - own.damage) / DAMAGE_UNITS
    return RunnerUp(
        taken=taken(other, decision.limits), better=better is not None, missing=missing,
        instead=instead, costs=costs,
    )  # fmt: skip


def _forced(plan: Settlement, key: Key, option: Option) -> tuple[tuple[Changed, ...], float | None]:
    """Return what the other models would give up if one had its way, and what that would cost."""
    wanted = tuple(
        replace(want, options=(option,)) if want.key == key else want
        for want in plan.decision.wanted
    )
    solution = solve(replace(plan.decision, wanted=wanted))
    if solution is None:
        return (), None
    forced = replace(plan, solution=solution)
    others = tuple(c for c in changes(plan, forced) if (c.model, c.tier) != key)
    return others, (solution.damage - plan.solution.damage) / DAMAGE_UNITS


# -- limits ----------------------------------------------------------------------------------------


def _what_more_buys(decision: Decision, plan: Settlement) -> Iterator[More]:
    """Give what each limit would buy if it were higher; nothing is solved twice for nothing."""
    for limit in raisables(decision):
        endless = settle(limit.raised(decision, None))
        helps = endless is not None and is_better(endless, plan)
        for more_bytes in STEPS_BYTES:
            higher = limit.raised(decision, limit.capacity_bytes + more_bytes)
            after = settle(higher) if helps else None
            yield _bought(plan, after, limit.name, limit.tier, more_bytes)


def _what_more_of_all_buys(decision: Decision, plan: Settlement) -> Iterator[More]:
    """Give what all limits together would buy: two may bind at once, so that neither helps alone."""
    for more_bytes in STEPS_BYTES:
        limits = tuple(
            replace(limit, capacity_bytes=limit.capacity_bytes + more_bytes)
            if limit.capacity_bytes is not None
            else limit
            for limit in decision.limits
        )
        yield _bought(plan, settle(replace(decision, limits=limits)), EVERY_LIMIT, "", more_bytes)


def _bought(
    plan: Settlement, after: Settlement | None, limit: str, tier: str, more_bytes: int
) -> More:
    """Return what a higher limit changed; nothing where it made nothing better."""
    if after is None or not is_better(after, plan):
        return More(limit=limit, tier=tier, more_bytes=more_bytes, changes=(), less_damage=0.0)
    return More(
        limit=limit, tier=tier, more_bytes=more_bytes, changes=changes(plan, after),
        less_damage=round(less_damage(plan, after), 6),
    )  # fmt: skip


def _tightest(uses: list[LimitUse], more: tuple[More, ...]) -> LimitUse | None:
    """Return the limit whose next GiB buys most; where no step buys anything, the fullest."""
    limited = [use for use in uses if use.capacity_bytes]

    def gain(use: LimitUse) -> tuple[tuple[int, float], ...]:
        own = [one for one in more if one.tier == use.tier and _is_of(one.limit, use.limit)]
        return tuple((len(_returned(one)), one.less_damage) for one in own)

    def share(use: LimitUse) -> float:
        return use.used_bytes / (use.capacity_bytes or 1)

    return max(limited, key=lambda use: (gain(use), share(use)), default=None)


def _is_of(raised: str, limit: str) -> bool:
    """Tell whether what was raised is this limit, or holds it: `VRAM on each …` has `VRAM 2`."""
    return raised == limit or (raised.startswith("VRAM on") and limit.startswith("VRAM"))


def _returned(more: More) -> list[Changed]:
    return [changed for changed in more.changes if changed.before is None]
