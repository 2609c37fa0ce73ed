"""Chooses among offers and orders the work. Reads nothing, writes nothing.

The choice is exact: of all combinations (one offer for each model on each machine, in memory or
taking turns) that keep every limit, the one with the least expected damage is taken (`choosing`).
"""

from __future__ import annotations

from collections.abc import Mapping

from bundler.errors import DoesNotFit
from bundler.hardware import Target
from bundler.lock import Lock
from bundler.plan import Choice, Offer, Plan, TierPlan, place_of
from bundler.planning.budgets import check_budgets, shared_budgets, tier_budgets
from bundler.planning.options import Offers, prepare, rank
from bundler.planning.ordering import ordered_steps
from bundler.planning.shortfall import missing, shortfall
from bundler.recipe import Recipe
from bundler.solver.choosing import DAMAGE_UNITS, Decision, Option, Settlement, Wanted, settle

_Chosen = Mapping[tuple[str, str], Option]


def make_plan(
    recipe: Recipe, lock: Lock, targets: Mapping[str, Target], offers: Offers,
    *, runtime_formats: frozenset[str], fixed_bytes: int = 0,
) -> Plan:  # fmt: skip
    """Return the plan: one offer for each model on each machine, every step, the budgets held.

    Args:
        recipe: what is wanted.
        lock: what it will be made from.
        targets: the machines it is for, by tier; one named "" in a recipe with one.
        offers: for each tier and each of its models all offers of the model's engine.
        runtime_formats: formats that the recipe's runtimes can load.
        fixed_bytes: size of runtimes and other parts of the bundle that are known beforehand.

    Raises:
        DoesNotFit: no combination fits; says which limit, by how much, and what would help.
    """
    decision = prepare(
        recipe, lock, targets, offers, runtime_formats=runtime_formats, fixed_bytes=fixed_bytes
    )
    settlement = settle(decision)
    if settlement is None:
        raise DoesNotFit(shortfall(decision, targets))
    tiers = tuple(
        _tier_plan(recipe, settlement, tier, target, decision) for tier, target in targets.items()
    )
    choices = tuple(choice for tier in tiers for choice in tier.choices)
    steps = ordered_steps(recipe, lock, choices)
    corpora_bytes = sum(lock.corpora[name].size_bytes for name in recipe.corpora)
    budgets = shared_budgets(
        recipe, lock, choices, steps, _models_bytes(settlement), corpora_bytes + fixed_bytes
    )
    check_budgets(budgets)
    return Plan(
        bundle=recipe.bundle.name,
        tiers=tiers,
        steps=steps,
        budgets=budgets,
        notes=_gap_notes(settlement),
    )


def _models_bytes(settlement: Settlement) -> int:
    """Return the size of all models' files, each once."""
    decision = settlement.decision
    used = decision.used(settlement.solution.chosen)
    sizes = zip(decision.limits, used, strict=True)
    return next(size for limit, size in sizes if limit.name == "disk")


def _gap_notes(settlement: Settlement) -> tuple[str, ...]:
    gap = settlement.solution.gap
    if not gap:
        return ()
    return (
        "it is not proved that this is the best choice: another could do less damage by at most "
        f"{gap / DAMAGE_UNITS:.6f} nats, weighted, over all models",
    )


# -- one machine -------------------------------------------------------------------------------------


def _tier_plan(
    recipe: Recipe, settlement: Settlement, tier: str, target: Target, asked: Decision
) -> TierPlan:
    decision, chosen = settlement.decision, settlement.solution.chosen
    choices = tuple(
        _choice(recipe, want, decision, chosen) for want in decision.wanted if want.tier == tier
    )
    nothing = {want.key for want in asked.wanted if not want.options}
    notes = [
        f"left out, since {'no way to run it is allowed' if key in nothing else 'it does not fit'}: "
        f"{place_of(*key)}"
        for key in settlement.left_out
        if key[1] == tier
    ]
    return TierPlan(
        name=tier,
        target=target,
        choices=choices,
        budgets=tier_budgets(decision, chosen, tier),
        notes=tuple(notes),
    )


def _choice(recipe: Recipe, want: Wanted, decision: Decision, chosen: _Chosen) -> Choice:
    option = chosen[want.key]
    runner_up, reason = _explained(want, decision, chosen)
    return Choice(
        model=want.name,
        role=recipe.models[want.name].role,
        tier=want.tier,
        residency="resident" if option.resident else "on-demand",
        offer=option.offer,
        runner_up=runner_up,
        reason=reason,
    )


def _explained(want: Wanted, decision: Decision, chosen: _Chosen) -> tuple[Offer | None, str]:
    """Return the offer that came closest, and why the chosen one was taken."""
    taken = chosen[want.key]
    others = sorted(
        (option for option in want.options if option.offer != taken.offer),
        key=lambda option: (option.damage, option.resident != taken.resident, rank(option.offer)),
    )
    better = [option for option in others if option.damage < taken.damage]
    turns = _turns(want, decision, chosen)
    if better:
        closest = better[-1]
        short = missing(decision, {**chosen, want.key: closest})
        way = _way(closest.offer, taken.offer)
        return closest.offer, f"the best that fits; {way} {short}{turns}"
    if others:
        return others[0].offer, f"the best that is offered{turns}"
    return None, f"the only one that keeps to the recipe{turns}"


def _way(offer: Offer, taken: Offer) -> str:
    """Name an offer beside the one that was taken; where it would run, where that is the difference."""
    place = ""
    if offer.gpu_layers != taken.gpu_layers:
        place = {-1: " on the accelerator", 0: " on the CPU"}.get(
            offer.gpu_layers, f" with {offer.gpu_layers} layers on the accelerator"
        )
    return f"{offer.quant} with {offer.kv_cache} KV{place}"


def _turns(want: Wanted, decision: Decision, chosen: _Chosen) -> str:
    """Say why a model takes turns, where that was left open."""
    taken = chosen[want.key]
    stays = next((o for o in want.options if o.resident and o.offer == taken.offer), None)
    if taken.resident or stays is None:
        return ""
    return f"; takes turns: always in memory it {missing(decision, {**chosen, want.key: stays})}"
