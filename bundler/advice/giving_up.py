"""What a recipe could do without, and what the others would gain: each is planned anew. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bundler.advice.case import Case, changes, is_better, less_damage, memory_bytes, settled
from bundler.advice.explanation import GiveUp
from bundler.planning.options import TAKES_TURNS
from bundler.recipe import ModelRequest
from bundler.solver.choosing import settle
from bundler.solver.decision import Settlement

MOST_ASKED = 6
"""Models that are asked to give something up; each question is a plan of its own."""


def what_to_give_up(case: Case, plan: Settlement) -> tuple[GiveUp, ...]:
    """Return what would help the other models, most helpful first."""
    endless = replace(
        case.decision,
        limits=tuple(replace(limit, capacity_bytes=None) for limit in case.decision.limits),
    )
    best = settle(endless)
    if best is None or not is_better(best, plan):
        return ()  # all models are as good as they can be
    found = [
        give_up
        for model in _asked_models(case)
        for give_up in _give_ups(case, plan, model, case.recipe.models[model])
        if give_up.less_damage > 0 or any(c.before is None for c in give_up.changes)
    ]
    return tuple(sorted(found, key=lambda g: (-g.less_damage, g.edit)))


def _asked_models(case: Case) -> list[str]:
    """Return the models that are asked to give something up: those that could free most memory."""
    most: dict[str, int] = {}
    for want in case.decision.wanted:
        sizes = (memory_bytes(option, case.decision) for option in want.options)
        most[want.name] = max(most.get(want.name, 0), min(sizes, default=0))
    return sorted(most, key=lambda model: (-most[model], model))[:MOST_ASKED]


def unasked(case: Case) -> tuple[str, ...]:
    """Return the models that are not asked."""
    asked = _asked_models(case)
    return tuple(model for model in case.recipe.models if model not in asked)


def _give_ups(case: Case, plan: Settlement, model: str, request: ModelRequest) -> Iterator[GiveUp]:
    if request.optional and any(name == model for name, _ in plan.solution.chosen):
        without = settle(case.decision.without(model))
        if without is not None:
            rest = tuple(c for c in changes(plan, without) if c.model != model)
            yield GiveUp(kind="leave-out", model=model, edit=f"without models.{model}",
                         changes=rest, less_damage=round(less_damage(plan, without), 6))  # fmt: skip
    if request.parallel > 1:
        half = request.parallel // 2
        yield from _edit(case, plan, "fewer-users", model, parallel=half)
    if request.kv_cache == "f16":
        yield from _edit(case, plan, "kv-cache", model, kv_cache="q8_0")
    if request.residency == "resident" and request.role in TAKES_TURNS:
        yield from _edit(case, plan, "take-turns", model, residency="on-demand")
    if request.role in ("chat", "code") and request.context_tokens >= 2048:
        half = request.context_tokens // 2
        yield from _edit(case, plan, "shorter-context", model, context_tokens=half)


def _edit(
    case: Case, plan: Settlement, kind: str, model: str, **update: object
) -> Iterator[GiveUp]:
    """Give what an edit of one model gains; nothing where it is refused or does not help."""
    after = settled(case.edited(model, **update))
    if after is None or len(after.left_out) > len(plan.left_out):
        return
    ((key, value),) = update.items()
    written = f'"{value}"' if isinstance(value, str) else value
    yield GiveUp.model_validate(
        {
            "kind": kind, "model": model, "edit": f"models.{model}.{key} = {written}",
            "changes": changes(plan, after), "less_damage": round(less_damage(plan, after), 6),
        }
    )  # fmt: skip
