"""A recipe with what was decided about it, and the means to decide anew. Pure: effects come in.

Questions of the kind "what if" change the recipe or a limit and solve again; nothing is answered by
arithmetic on the old answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bundler.advice.explanation import Changed, LimitUse, Taken
from bundler.errors import BundlerError
from bundler.recipe import Recipe
from bundler.solver.choosing import settle, solve
from bundler.solver.decision import DAMAGE_UNITS, Decision, Limit, Option, Settlement

Key = tuple[str, str]
"""A model and its machine."""
Decide = Callable[[Recipe], Decision]
"""Asks the engines for offers to a recipe and says what is to be decided."""


@dataclass(frozen=True)
class Case:
    """One recipe, and what there is to decide about it."""

    recipe: Recipe
    decision: Decision
    decide: Decide
    """For a changed recipe. Raises BundlerError where an engine refuses it."""

    def edited(self, model: str, **update: object) -> Decision | None:
        """Return the decision with some keys of one model changed; None where that is refused."""
        request = self.recipe.models[model].model_copy(update=update)
        models = {**self.recipe.models, model: request}
        return self.decide_again(self.recipe.model_copy(update={"models": models}))

    def of_tier(self, tier: str) -> Case:
        """Return the case of one machine alone, without what all machines share."""

        def decide(recipe: Recipe) -> Decision:
            return self.decide(recipe).of_tier(tier)

        return Case(self.recipe, self.decision.of_tier(tier), decide)

    def decide_again(self, recipe: Recipe) -> Decision | None:
        """Return the decision about a changed recipe; None where an engine refuses it."""
        try:
            return self.decide(recipe)
        except BundlerError:
            return None  # a question that has no answer is not asked of the reader


@dataclass(frozen=True)
class Raisable:
    """A limit, or those of several accelerators of one machine, which are all alike."""

    name: str
    tier: str
    capacity_bytes: int
    """Of each."""
    indices: tuple[int, ...]
    """In the decision's limits."""

    def raised(self, decision: Decision, capacity_bytes: int | None) -> Decision:
        """Return a decision with another capacity of it; None is no limit."""
        limits = tuple(
            replace(limit, capacity_bytes=capacity_bytes) if index in self.indices else limit
            for index, limit in enumerate(decision.limits)
        )
        return replace(decision, limits=limits)


def raisables(decision: Decision) -> list[Raisable]:
    """Return what can be raised: every limit with a capacity, alike accelerators as one."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, limit in enumerate(decision.limits):
        kind = "VRAM" if limit.turns and limit.name.startswith("VRAM") else limit.name
        if limit.capacity_bytes is not None:
            groups.setdefault((kind, limit.tier), []).append(index)
    return [
        Raisable(
            name if len(indices) == 1 else f"{name} on each accelerator", tier,
            max(decision.limits[index].capacity_bytes or 0 for index in indices), tuple(indices),
        )
        for (name, tier), indices in groups.items()
    ]  # fmt: skip


def taken(option: Option, limits: tuple[Limit, ...]) -> Taken:
    """Return an option as an explanation shows it."""
    offer = option.offer
    memory = sum(n for n, limit in zip(option.needs, limits, strict=True) if limit.turns)
    return Taken(
        quant=offer.quant, kv_cache=offer.kv_cache, gpu_layers=offer.gpu_layers,
        residency="resident" if option.resident else "on-demand",
        context_tokens=offer.context_tokens, parallel=offer.parallel, damage=offer.quality,
        memory_bytes=memory, disk_bytes=offer.disk_bytes,
        tokens_per_second=offer.tokens_per_second,
    )  # fmt: skip


def memory_bytes(option: Option, decision: Decision) -> int:
    """Return what an option takes of all memories of its machine."""
    return sum(n for n, limit in zip(option.needs, decision.limits, strict=True) if limit.turns)


def changes(before: Settlement, after: Settlement) -> tuple[Changed, ...]:
    """Return for which models two settlements differ in what a person would notice."""
    old, new = before.solution.chosen, after.solution.chosen
    found = []
    for model, tier in dict.fromkeys((*old, *new)):
        one, other = (
            taken(side[model, tier], settled.decision.limits) if (model, tier) in side else None
            for side, settled in ((old, before), (new, after))
        )
        if one != other:
            found.append(Changed(model=model, tier=tier, before=one, after=other))
    return tuple(found)


def less_damage(before: Settlement, after: Settlement) -> float:
    """Return the weighted damage that `after` saves over the models that both have, in nats."""
    old, new = before.solution.chosen, after.solution.chosen
    both = [key for key in old if key in new]
    return sum(old[key].damage - new[key].damage for key in both) / DAMAGE_UNITS


def is_better(after: Settlement, before: Settlement) -> bool:
    """Tell whether fewer models are left out, or as few with less damage."""
    return (len(after.left_out), after.solution.damage) < (
        len(before.left_out), before.solution.damage,
    )  # fmt: skip


def limit_uses(
    decision: Decision, chosen: Mapping[Key, Option], tier: str | None
) -> tuple[LimitUse, ...]:
    """Return the memories of one machine, or (None) what all machines share, with what is used."""
    return tuple(
        LimitUse(
            limit=limit.name, tier=limit.tier, used_bytes=used, capacity_bytes=limit.capacity_bytes
        )
        for limit, used in zip(decision.limits, decision.used(chosen), strict=True)
        if (limit.turns and limit.tier == tier) or (tier is None and not limit.turns)
    )


def settled(decision: Decision | None) -> Settlement | None:
    """Settle a decision that may have been refused."""
    return None if decision is None else settle(decision)


def fits(decision: Decision | None) -> bool:
    """Tell whether a decision has a solution, with optional models left out if need be.

    One that was refused has none. Damage does not matter here: without it the solver need not
    look for the best, only for any.
    """
    if decision is None:
        return False
    wanted = tuple(
        replace(want, options=tuple(replace(option, damage=0) for option in want.options))
        for want in decision.wanted
        if not want.optional
    )
    return solve(replace(decision, wanted=wanted)) is not None
