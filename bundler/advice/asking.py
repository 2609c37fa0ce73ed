"""Asks "what if" of a real recipe: engines answer for changed recipes, each model's once. No effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bundler.advice.advised import NothingFits
from bundler.advice.case import Case, fits
from bundler.advice.explain import explain
from bundler.advice.explanation import Explanation
from bundler.advice.frontier import Frontier, find_frontier
from bundler.advice.remedies import of_the_stick, remedies_by_machine, suggestion
from bundler.errors import BundlerError, DoesNotFit
from bundler.feedback.ruling import Ruling
from bundler.lock import Lock
from bundler.offering import allowed_offers, hopeful_offers, rulings
from bundler.plan import Choice, Plan, TierPlan
from bundler.planning.limits import always_there_bytes
from bundler.planning.options import prepare
from bundler.planning.tiers import tier_targets
from bundler.plugins import Plugins
from bundler.recipe import Recipe
from bundler.solver.decision import Decision, Option
from bundler.value import canonical_json


class Asking:
    """Decides about a recipe and about changed ones, asking engines only about what changed."""

    def __init__(self, recipe: Recipe, lock: Lock, plugins: Plugins) -> None:
        self._recipe, self._lock, self._plugins = recipe, lock, plugins
        self.targets = dict(tier_targets(recipe, plugins.targets))
        self._ruled: dict[tuple[str, str, bytes], Ruling] = {}
        self._formats = frozenset(
            format_
            for name in recipe.runtime.use
            for format_ in plugins.named(plugins.runtimes, name, "runtime").formats
        )
        self._fixed_bytes = always_there_bytes(lock)

    def case(self) -> Case:
        """Return the recipe's case, with the offers that its plan is made of.

        Raises:
            BundlerError: an engine refuses the recipe, or its corpora alone are too large.
        """
        hopeful = self._decide(self._recipe, hopeful=True)
        if fits(hopeful):
            return Case(self._recipe, hopeful, lambda recipe: self._decide(recipe, hopeful=True))
        return Case(
            self._recipe,
            self._decide(self._recipe, hopeful=False),
            lambda recipe: self._decide(recipe, hopeful=False),
        )

    def unsettled(self) -> Case:
        """Return the case of a recipe about which nothing can be decided before it is changed."""
        return Case(
            self._recipe, Decision((), ()), lambda recipe: self._decide(recipe, hopeful=False)
        )

    def _decide(self, recipe: Recipe, *, hopeful: bool) -> Decision:
        ruled = {
            tier: {name: self._ruling(recipe, tier, name) for name in recipe.models_of(tier)}
            for tier in self.targets
        }
        offers = hopeful_offers(ruled) if hopeful else allowed_offers(ruled)
        return prepare(
            recipe, self._lock, self.targets, offers,
            runtime_formats=self._formats, fixed_bytes=self._fixed_bytes,
        )  # fmt: skip

    def _ruling(self, recipe: Recipe, tier: str, name: str) -> Ruling:
        """Return what may be chosen for one model; an engine is asked once for each request."""
        request = recipe.request_of(name)
        key = (tier, name, canonical_json(request))
        if key not in self._ruled:
            alone = recipe.model_copy(update={"models": {name: request}})
            found = rulings(alone, self._lock, self._plugins, {tier: self.targets[tier]})
            self._ruled[key] = found[tier][name]
        return self._ruled[key]


def explanation_of(recipe: Recipe, lock: Lock, plugins: Plugins) -> Explanation | None:
    """Return why the recipe's plan is as it is; None when nothing fits."""
    asking = Asking(recipe, lock, plugins)
    return explain(asking.case(), asking.targets)


def with_remedies(error: DoesNotFit, recipe: Recipe, lock: Lock, plugins: Plugins) -> DoesNotFit:
    """Return the error with the smallest changes that help as its hint, each of them solved.

    The error itself comes back where something else is wrong than that nothing fits.
    """
    asking = Asking(recipe, lock, plugins)
    try:
        case = asking.case()
    except DoesNotFit:  # corpora alone are too large, or a model is for its filesystem
        remedies = {"": of_the_stick(asking.unsettled())}
    except BundlerError:
        return error  # what is wrong is no choice, and has its own hint
    else:
        remedies = {} if fits(case.decision) else dict(remedies_by_machine(case))
    remedies = {tier: found for tier, found in remedies.items() if found}
    hint = "; ".join(
        f"tiers.{tier}: {suggestion(found)}" if tier else suggestion(found)
        for tier, found in remedies.items()
    )
    if not hint:
        return error
    better = NothingFits([replace(p, hint=hint) for p in error.problems])
    better.remedies = remedies
    return better


# -- the frontier ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Room:
    """The memory that a model's frontier is drawn over."""

    name: str
    indices: tuple[int, ...]
    """Of the limits that are added up."""
    same_place: Callable[[Option], bool]


def frontiers_of(plan: Plan, recipe: Recipe, lock: Lock, plugins: Plugins) -> list[Frontier]:
    """Return the frontier of each model on each machine."""
    case = Asking(recipe, lock, plugins).case()
    return [
        _frontier(case, tier, choice, lock.models[choice.model].facts.context_tokens)
        for tier in plan.tiers
        for choice in tier.choices
    ]


def _frontier(case: Case, tier: TierPlan, choice: Choice, longest: int) -> Frontier:
    key = (choice.model, tier.name)
    room = _room(case.decision, tier, choice)
    left, whole = _room_bytes(case.decision, room, tier, choice)

    def options_at(tokens: int) -> list[Option]:
        decision = case.edited(choice.model, context_tokens=tokens)
        found = [w.options for w in decision.wanted if w.key == key] if decision else []
        return [option for options in found for option in options if room.same_place(option)]

    return find_frontier(
        choice, longest, options_at, lambda option: sum(option.needs[i] for i in room.indices),
        limit=room.name, limit_bytes=whole, left_bytes=left, tier=tier.name,
    )  # fmt: skip


def _room(decision: Decision, tier: TierPlan, choice: Choice) -> _Room:
    """Return the memory a choice lies in: the accelerators', the main one, or both together."""
    own = [(i, limit.name) for i, limit in enumerate(decision.limits)
           if limit.turns and limit.tier == tier.name]  # fmt: skip
    vram = tuple(i for i, name in own if name != "RAM")
    layers = choice.offer.gpu_layers
    if tier.target.accelerator == "none" or layers == 0:
        ram = tuple(i for i, name in own if name == "RAM")
        on_cpu = tier.target.accelerator != "none"
        return _Room("RAM", ram, lambda option: not on_cpu or option.offer.gpu_layers == 0)
    if layers < 0:
        return _Room("VRAM", vram, lambda option: option.offer.gpu_layers < 0)
    return _Room("VRAM and RAM", tuple(i for i, _ in own), lambda option: True)


def _room_bytes(decision: Decision, room: _Room, tier: TierPlan, choice: Choice) -> tuple[int, int]:
    """Return what the plan's other models leave of a memory, and all of it."""
    whole = sum(decision.limits[i].capacity_bytes or 0 for i in room.indices)
    here = [c for c in tier.choices if c.model != choice.model]
    found = {(c.model, tier.name): _taken(decision, c, tier.name) for c in here}
    others = {key: option for key, option in found.items() if option is not None}
    if choice.residency != "resident":  # those that take turns have the same room after it
        others = {key: option for key, option in others.items() if option.resident}
    used = decision.used(others)
    return max(0, whole - sum(used[i] for i in room.indices)), whole


def _taken(decision: Decision, choice: Choice, tier: str) -> Option | None:
    """Return the option that a choice was made of."""
    resident = choice.residency == "resident"
    options = next(w.options for w in decision.wanted if w.key == (choice.model, tier))
    same = [o for o in options if o.offer == choice.offer and o.resident == resident]
    return same[0] if same else None
