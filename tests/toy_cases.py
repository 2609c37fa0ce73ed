"""Cases whose engine is a formula: small enough to look through, rich enough for every question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundler.advice.case import Case
from bundler.errors import DoesNotFit
from bundler.hardware import Target
from bundler.plan import Budget, Choice, FileInput, Memory, Offer, Plan, TierPlan
from bundler.recipe import ModelRequest, Recipe
from bundler.solver.choosing import settle
from bundler.solver.decision import DAMAGE_UNITS, Decision, Limit, Option, Wanted

MIB = 1 << 20
GIB = 1 << 30
QUANTS = {"Q8_0": (8, 0.001), "Q6_K": (6, 0.005), "Q4_K_M": (4, 0.03), "Q2_K": (3, 0.3)}
"""Quant → bytes of eight weights, damage."""
CACHES = {"f16": (8, 0.0), "q8_0": (4, 0.0008), "q4_0": (2, 0.004)}
"""KV cache → sixteenth of a KiB for a token, damage."""
LONGEST = 32768


def recipe_of(models: Mapping[str, Mapping[str, Any]], **bundle: Any) -> Recipe:
    """Return a recipe for one box with these models."""
    return Recipe.model_validate(
        {
            "schema": 1,
            "bundle": {"name": "toy", **bundle},
            "target": {"ram": "64 GiB"},
            "models": {
                name: {"role": "chat", "source": "path:x", **keys} for name, keys in models.items()
            },
        }
    )


def offers_to(request: ModelRequest, weights_mib: int) -> list[Offer]:
    """Return what the formula offers; as a real engine, it refuses a context that is too long."""
    if request.context_tokens > LONGEST:
        raise DoesNotFit("too long a context")
    quants = QUANTS if request.quant == ("auto",) else request.quant
    caches = ("f16", "q8_0") if request.kv_cache == "auto" else (request.kv_cache,)
    return [_offer(request, weights_mib, quant, cache) for quant in quants for cache in caches]


def _offer(request: ModelRequest, weights_mib: int, quant: str, cache: str) -> Offer:
    size = weights_mib * MIB * QUANTS[quant][0] // 8
    kv = request.context_tokens * request.parallel * CACHES[cache][0] * 64 * 16
    return Offer(
        engine="toy", quant=quant, format="gguf", kv_cache=cache,
        context_tokens=request.context_tokens, parallel=request.parallel,
        memory=Memory(weights_bytes=size, kv_cache_bytes=kv, compute_bytes=50 * MIB,
                      host_bytes=100 * MIB),
        disk_bytes=size, scratch_bytes=0, bits_per_weight=QUANTS[quant][0],
        quality=round(QUANTS[quant][1] + CACHES[cache][1], 6), steps=(),
        tokens_per_second=40.0, output=FileInput(sha256="0" * 64, size_bytes=size),
    )  # fmt: skip


def toy_case(
    recipe: Recipe, weights_mib: Mapping[str, int], *, vram_mib: int | None, ram_mib: int = 65536,
    disk_mib: int | None = None,
) -> Case:  # fmt: skip
    """Return the case of a recipe on one machine with these limits."""
    if disk_mib is not None:
        bundle = recipe.bundle.model_copy(update={"max_size": disk_mib * MIB})
        recipe = recipe.model_copy(update={"bundle": bundle})

    def decide(recipe: Recipe) -> Decision:
        limits = [Limit("RAM", ram_mib * MIB, turns=True)]
        if vram_mib is not None:
            limits.insert(0, Limit("VRAM", vram_mib * MIB, turns=True))
        limits.append(Limit("disk", recipe.bundle.max_size, turns=False))
        wanted = []
        for name, request in sorted(recipe.models.items()):
            options = []
            for offer in offers_to(request, weights_mib[name]):
                total, host = offer.memory.total_bytes, offer.memory.host_bytes
                memory = (total,) if vram_mib is None else (total, host)
                resident = request.residency != "on-demand"
                damage = round(offer.quality * request.weight * DAMAGE_UNITS)
                options.append(
                    Option(offer, damage, (*memory, offer.disk_bytes), resident, offer.quant)
                )
            wanted.append(Wanted(name, "", tuple(options), request.optional))
        return Decision(tuple(wanted), tuple(limits))

    return Case(recipe, decide(recipe), decide)


def toy_target(vram_mib: int | None, ram_mib: int = 65536) -> Target:
    """Return the machine that belongs to such a case."""
    if vram_mib is None:
        return Target(name="box", title="a box", ram_bytes=ram_mib * MIB)
    return Target(
        name="box", title="a box with a card", accelerator="cuda",
        usable_vram_bytes=vram_mib * MIB, ram_bytes=ram_mib * MIB,
    )  # fmt: skip


def plan_of(case: Case, target: Target) -> Plan:
    """Return the plan of a case as the planner would put it, without steps."""
    settlement = settle(case.decision)
    assert settlement is not None
    choices = tuple(
        Choice(
            model=model, role=case.recipe.models[model].role, tier=tier, offer=option.offer,
            residency="resident" if option.resident else "on-demand", runner_up=None,
            reason="the best that fits",
        )
        for (model, tier), option in settlement.solution.chosen.items()
    )  # fmt: skip
    tier = TierPlan(name="", target=target, choices=choices, budgets=())
    disk = Budget(
        name="bundle on disk", used_bytes=sum(c.offer.disk_bytes for c in choices), limit_bytes=None
    )
    return Plan(bundle="toy", tiers=(tier,), steps=(), budgets=(disk,), notes=("a note",))
