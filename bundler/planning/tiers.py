"""What a bundle says of the machines it is for: what each needs, and which none will ever get. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import zip_longest
from typing import TYPE_CHECKING

from bundler.hardware import Accelerator, Platform, Target
from bundler.plan import Offer, Plan, TierPlan
from bundler.planning.targeting import choose_target
from bundler.recipe import Recipe
from bundler.value import digest

if TYPE_CHECKING:
    from bundler.manifest import BundledTier

Drives = Mapping[Platform, Set[Accelerator]]
"""What a runtime can use beside the processor, by platform."""
# llama.cpp runs the same files on all of these, so the station takes one for another.
_CARDS = frozenset({"cuda", "rocm", "vulkan"})


def tier_targets(recipe: Recipe, catalogue: Mapping[str, Target]) -> dict[str, Target]:
    """Return the machines a recipe is for by tier, best first, each under its title for people.

    Raises:
        RecipeError: one is not in the catalogue, or contradicts it.
    """
    if recipe.target is not None:
        return {"": choose_target(recipe.target, catalogue)}
    found = {}
    for name, request in recipe.tiers.items():
        target = choose_target(request, catalogue, f"tiers.{name}")
        title = request.title or (target.title if request.use else name)
        found[name] = target.model_copy(update={"title": title})
    return found


def recipe_digest(recipe: Recipe) -> str:
    """Return a recipe's digest; the order of its tiers, which canonical JSON does not keep, counts."""
    if not recipe.tiers:
        return digest(recipe)
    return digest({"recipe": recipe.model_dump(mode="json"), "order": list(recipe.tiers)})


# -- needs -----------------------------------------------------------------------------------------


def bundled_tiers(plan: Plan) -> tuple[BundledTier, ...]:
    """Return the machines of a plan with what they need, as manifest and station say it."""
    return tuple(map(_bundled, plan.tiers))


def _bundled(tier: TierPlan) -> BundledTier:
    from bundler.manifest import BundledTier

    ram, *accelerators = together(
        (choice.residency == "resident", device_needs(choice.offer, tier.target))
        for choice in tier.choices
    )
    return BundledTier(
        name=tier.name,
        title=_title(tier),
        target=tier.target,
        vram_bytes=max(accelerators, default=0),
        ram_bytes=ram,
    )


def _title(tier: TierPlan) -> str:
    if not tier.name and tier.target.name == "custom":
        return "a computer as its maker described it"
    return tier.target.title or tier.name or tier.target.name


def device_needs(offer: Offer, target: Target) -> tuple[int, ...]:
    """Return what a model takes of main memory, and of each accelerator."""
    memory = offer.memory
    if target.accelerator == "none" or offer.gpu_layers == 0:
        return (memory.total_bytes,)
    return (memory.host_bytes, *(memory.by_device or (memory.total_bytes,)))


def together(models: Iterable[tuple[bool, Sequence[int]]]) -> list[int]:
    """Return what models take at once: residents add up, of the others the largest has its turn.

    >>> together([(True, (1, 5)), (False, (2,)), (False, (0, 3)), (True, (1, 1))])
    [4, 9]
    """
    listed = list(models)
    stay = zip_longest(*(needs for resident, needs in listed if resident), fillvalue=0)
    turns = zip_longest(*(needs for resident, needs in listed if not resident), fillvalue=0)
    sums = zip_longest(map(sum, stay), (max(sizes) for sizes in turns), fillvalue=0)
    return [a + b for a, b in sums] or [0]


# -- what no machine gets --------------------------------------------------------------------------


def tier_notes(
    plan: Plan, platforms: Sequence[Platform], drives: Sequence[Drives | None]
) -> list[str]:
    """Say what is planned and will not be as it was planned, on any machine.

    Args:
        plan: what was decided.
        platforms: those the bundle is for.
        drives: what each of the recipe's runtimes can use; None where it does not say.
    """
    hidden = [
        f"tiers.{name}: no computer will get it, since what it needs is enough for {other}, which "
        f"stands before it; put it first, leave it out, or name it at start"
        for name, other in never_picked(bundled_tiers(plan) if len(plan.tiers) > 1 else ())
    ]
    idle = [
        (tier, [p for p in platforms if not _may_drive(tier.target.accelerator, p, drives)])
        for tier in plan.tiers
        if any(choice.offer.gpu_layers for choice in tier.choices)
    ]
    return hidden + [_idle(tier, where) for tier, where in idle if where]


def _may_drive(kind: Accelerator, platform: Platform, drives: Sequence[Drives | None]) -> bool:
    if kind == "none" or None in drives:
        return True
    used = {one for known in drives if known is not None for one in known.get(platform, ())}
    return kind in used or bool(kind in _CARDS and used & _CARDS)


def _idle(tier: TierPlan, platforms: Sequence[Platform]) -> str:
    kind = tier.target.accelerator
    where = f"tiers.{tier.name}" if tier.name else "target"
    then = (
        "the station takes another set there"
        if tier.name
        else "models run on the processor there, from main memory, if it has room for them"
    )
    return (
        f"{where}: none of the recipe's runtimes can use {kind} on {' or '.join(platforms)}; {then}"
    )


def never_picked(tiers: Sequence[BundledTier]) -> list[tuple[str, str]]:
    """Return each tier that is hidden behind an earlier one, with the name of that one.

    Whatever machine meets the needs of the hidden one meets those of the other, too.
    """
    found = []
    for index, tier in enumerate(tiers):
        before = next((other for other in tiers[:index] if _also_meets(tier, other)), None)
        if before is not None:
            found.append((tier.name, before.name))
    return found


def _also_meets(tier: BundledTier, other: BundledTier) -> bool:
    """Whether every machine that meets the needs of `tier` meets those of `other`."""
    own, its = tier.target, other.target
    if its.accelerator == "none":
        return other.ram_bytes <= tier.ram_bytes
    same = own.accelerator == its.accelerator or {own.accelerator, its.accelerator} <= _CARDS
    return (
        same
        and its.device_count <= own.device_count
        and other.vram_bytes <= tier.vram_bytes
        and other.ram_bytes <= tier.ram_bytes
    )
