"""Asks every engine what it offers, holds that against what was measured, and plans. No effects."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from bundler.beside import all_beside
from bundler.errors import BundlerError, DoesNotFit, NothingLeft, Problem, RecipeError
from bundler.feedback.measured import informed
from bundler.feedback.measurements import known_of
from bundler.feedback.ruling import Ruling, rule
from bundler.hardware import Target
from bundler.hookspecs import Engine
from bundler.lock import Lock
from bundler.plan import Offer, OfferKey, Plan, place_of
from bundler.planning.filesystems import largest_file_bytes
from bundler.planning.limits import always_there_bytes
from bundler.planning.planner import make_plan
from bundler.planning.targeting import target_notes
from bundler.planning.tiers import tier_notes, tier_targets
from bundler.plugins import Plugins
from bundler.recipe import Recipe
from bundler.recipe_drafts import pairs
from bundler.tasks.asked import asked_tasks, digests_of
from bundler.value import format_size

Allows = Callable[[OfferKey], bool]
Rulings = Mapping[str, Mapping[str, Ruling]]
"""Tier → model → what may be chosen."""
_Offers = Mapping[str, Mapping[str, Sequence[Offer]]]


def every_offer(key: OfferKey) -> bool:
    """Allow whatever is offered."""
    return True


def make_the_plan(
    recipe: Recipe, lock: Lock, plugins: Plugins, allows: Allows = every_offer
) -> Plan:
    """Ask every engine for offers and choose. Needs no network, no GPU and no llama.cpp.

    Args:
        recipe: what is wanted.
        lock: what it is made from, and what was measured.
        plugins: who offers, and who may object.
        allows: tells whether an offer may be taken at all.

    Raises:
        DoesNotFit: nothing fits, or a plugin objects.
        NothingLeft: something would, had it not been measured to fail its gates.
    """
    targets = tier_targets(recipe, plugins.targets)
    warned = target_notes(recipe.targets, plugins.targets)
    check_companions(recipe, plugins)
    ruled = rulings(recipe, lock, plugins, targets, allows)
    formats = frozenset(
        format_
        for name in recipe.runtime.use
        for format_ in plugins.named(plugins.runtimes, name, "runtime").formats
    )
    plan = _best(
        lambda offers: make_plan(
            recipe,
            lock,
            targets,
            offers,
            runtime_formats=formats,
            fixed_bytes=always_there_bytes(lock),
        ),
        ruled,
    )
    objections = plugins.review_plan(plan)
    if objections:
        raise DoesNotFit(objections)
    notes = (*never_as_planned(plan, recipe, plugins), *warned, *plan.notes, *companion_notes(plan))
    notes = (*notes, *draft_notes(plan, recipe), *_notes(ruled))
    return plan.model_copy(update={"notes": notes})


def never_as_planned(plan: Plan, recipe: Recipe, plugins: Plugins) -> list[str]:
    """Say what no machine will get as it was planned; it stands first in a plan's notes."""
    runtimes = [plugins.named(plugins.runtimes, name, "runtime") for name in recipe.runtime.use]
    drives = [getattr(runtime, "accelerators", None) for runtime in runtimes]
    return tier_notes(plan, recipe.bundle.platforms, drives)


def check_companions(recipe: Recipe, plugins: Plugins) -> None:
    """Refuse what goes with a model where one of the recipe's runtimes cannot serve it.

    Raises:
        RecipeError: every such key.
    """
    problems = []
    for place in (*all_beside(recipe), *(f"models.{name}.draft" for name in pairs(recipe))):
        last = place.rpartition(".")[2]
        kind = last if last in ("projector", "draft") else "adapter"
        for name in recipe.runtime.use:
            runtime = plugins.named(plugins.runtimes, name, "runtime")
            if kind not in getattr(runtime, "companions", ()):
                said = f"the runtime {name} cannot serve a model with its {kind}"
                hint = "leave it out, or take another runtime"
                problems.append(Problem(said, hint=hint, key=place.partition("[")[0]))
    if problems:
        raise RecipeError(problems)


def companion_notes(plan: Plan) -> list[str]:
    """Say what models run with, and which are cut."""
    said = []
    for choice in plan.choices:
        kinds = [one.kind for one in choice.offer.companions]
        words = [
            f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 else ''}"
            for kind in dict.fromkeys(kinds)
        ]
        place = place_of(choice.model, choice.tier)
        if words:
            size = format_size(choice.offer.companion_bytes)
            said.append(f"{place} runs with {' and '.join(words)} ({size}), counted in its memory")
        said += [f"{place}: {note}" for note in choice.offer.notes]
        if choice.offer.cut is not None:
            most = format_size(choice.offer.cut.most_bytes)
            said.append(
                f"{place} has {format_size(choice.offer.disk_bytes)}: it is cut into files of at "
                f"most {most}, which open as one model"
            )
    return said


def draft_notes(plan: Plan, recipe: Recipe) -> list[str]:
    """Say which models have a draft, and how both are counted."""
    named, there = pairs(recipe), {(choice.model, choice.tier) for choice in plan.choices}
    said = []
    for choice in plan.choices:
        draft = named.get(choice.model)
        if draft is None:
            continue
        place = place_of(choice.model, choice.tier)
        if (draft, choice.tier) not in there:
            said.append(f"{place} runs without its draft, models.{draft}, which is left out")
        elif choice.residency == "resident":
            said.append(f"{place} has a draft, models.{draft}: both are in memory together")
        else:
            said.append(
                f"{place} has a draft, models.{draft}, which counts as always in memory although "
                "it comes and goes with its model"
            )
    return said


# -- offers ----------------------------------------------------------------------------------------


def rulings(
    recipe: Recipe, lock: Lock, plugins: Plugins, targets: Mapping[str, Target],
    allows: Allows = every_offer,
) -> Rulings:  # fmt: skip
    """Return for each machine and model what may be chosen, with what was measured of it."""
    return {
        tier: {
            name: _ruling(tier, name, recipe, lock, target, plugins, allows)
            for name in recipe.models_of(tier)
        }
        for tier, target in targets.items()
    }


def _ruling(
    tier: str, name: str, recipe: Recipe, lock: Lock, target: Target, plugins: Plugins,
    allows: Allows,
) -> Ruling:  # fmt: skip
    request = recipe.request_of(name)
    engine = plugins.named(plugins.engines, request.engine, "engine")
    known = known_of(lock, name, request.role, asked_tokens=recipe.verify.tokens,
                     tasks=digests_of(asked_tasks(recipe, lock, name)))  # fmt: skip
    with _problems_of(name):
        found = engine.offers(request, lock.models[name], target, lock.texts)
        found = held_by_the_stick(found, engine, largest_file_bytes(recipe))
    ruling = rule(informed(found, known, target), known, request.gates, _tool_here(engine))
    ruling = ruling.of(lambda offer: allows(OfferKey.of(offer, name, tier)))
    if found and not ruling.allowed and not request.optional:
        raise NothingLeft(
            _problems(tier, name, ruling)
            or [Problem("every offer failed its proof", place_of(name, tier))]
        )
    return ruling


def held_by_the_stick(
    offers: Sequence[Offer], engine: Engine, most_bytes: int | None
) -> Sequence[Offer]:
    """Return offers with what is too large for the stick's filesystem cut, where its engine can.

    What cannot be cut is left as it is: the planner says why it is not taken.
    """
    cut = getattr(engine, "cut", None)
    if most_bytes is None or cut is None:
        return offers
    return [
        (offer.largest_file_bytes > most_bytes and cut(offer, most_bytes)) or offer
        for offer in offers
    ]


@contextmanager
def _problems_of(model: str) -> Iterator[None]:
    """Name the model's key in what an engine says of it: an engine knows requests, not their names."""
    try:
        yield
    except BundlerError as error:
        table = f"models.{model}"
        raise error.with_problems(
            replace(p, key=f"{table}.{p.key}" if p.key else table)
            if not p.where and not p.message.startswith("verify.")
            else p
            for p in error.problems
        ) from error


def _tool_here(engine: Engine) -> Callable[[], str]:
    """Return who tells what an engine is made of on this machine; asked at most once."""

    @functools.cache
    def ask() -> str:
        try:
            return engine.tool()
        except BundlerError:
            # Plans are made without llama.cpp too. Where it cannot run, nothing was measured by it.
            return ""

    return ask


# -- the plan --------------------------------------------------------------------------------------


def _best(make: Callable[[_Offers], Plan], ruled: Rulings) -> Plan:
    """Plan with offers that can be hoped to pass; with all that are left where that is too few."""
    hopeful, allowed = hopeful_offers(ruled), allowed_offers(ruled)
    try:
        try:
            return make(hopeful)
        except DoesNotFit:
            if hopeful == allowed:
                raise
            return make(allowed)
    except DoesNotFit as error:
        failures = [
            problem
            for tier, models in ruled.items()
            for name, ruling in models.items()
            for problem in _problems(tier, name, ruling)
        ]
        if not failures:
            raise
        raise NothingLeft([*failures, *error.problems]) from error


def hopeful_offers(ruled: Rulings) -> _Offers:
    """Return the offers that nothing measured speaks against; all that are left where none is so."""
    return {
        tier: {name: ruling.hopeful or ruling.allowed for name, ruling in models.items()}
        for tier, models in ruled.items()
    }


def allowed_offers(ruled: Rulings) -> _Offers:
    """Return all offers that were not ruled out."""
    return {
        tier: {name: ruling.allowed for name, ruling in models.items()}
        for tier, models in ruled.items()
    }


def _problems(tier: str, name: str, ruling: Ruling) -> list[Problem]:
    """Say what was measured to fail, and what would let it in again."""
    return [
        Problem(
            f"{failure} was measured and does not pass",
            place_of(name, tier),
            "loosen the gate, allow other `quant`, or, if the measurement was a fault, remove it "
            "from `measured` in the lock",
        )
        for failure in ruling.failures
    ]


def _notes(ruled: Rulings) -> list[str]:
    """Say which offers the plan leaves out for what was measured."""
    return [
        f"{place_of(name, tier)}: left out, since measured: {failure}"
        for tier, models in ruled.items()
        for name, ruling in models.items()
        for failure in ruling.failures
    ] + [
        f"{place_of(name, tier)}: {ruling.dropped} more left out: they are predicted to do no better"
        for tier, models in ruled.items()
        for name, ruling in models.items()
        if ruling.dropped
    ]
