"""The whole program on one screen: each stage turns one frozen value into the next.

::

    Recipe ──resolve──▶ Lock ──plan──▶ Plan ──execute──▶ Results ──seal──▶ bundle ──verify──▶ proved
                                        ▲                    │
                                        └── replan ◀─────────┘  a proof that fails its gate
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from bundler.compose import compose, licence_files
from bundler.errors import DoesNotFit, LockError, Problem, ProofFailed, RecipeError
from bundler.events import Note
from bundler.execute import Results, execute, fetch_inputs
from bundler.gates import check_gates, gate_problems
from bundler.lock import Lock
from bundler.plan import Offer, Plan
from bundler.planner import choose_target, make_plan
from bundler.plugins import Plugins
from bundler.proof import Proof
from bundler.recipe import Recipe
from bundler.recipe_file import read_recipe
from bundler.resolve import (
    changed_local_files,
    differences,
    lock_path,
    lock_text,
    read_lock,
    report_lock_made,
    resolve,
)  # fmt: skip
from bundler.seal import check_output, seal
from bundler.store import write_durably
from bundler.world import World


class NothingLeft(ProofFailed):
    """All offers for a model are ruled out."""


RuledOut = tuple[str, str, str]
"""Model, quant and KV cache type of an offer that did not pass its proof."""


@dataclass(frozen=True)
class Built:
    """What a build leaves."""

    output: Path
    manifest_sha256: str
    plan: Plan
    proofs: Mapping[str, Proof]


def build(
    recipe_path: Path, output: Path, plugins: Plugins, world: World,
    *, locked: bool = False, frozen: bool = False,
) -> Built:  # fmt: skip
    """Do the main job: a recipe in, a bundle that runs with no network out.

    Args:
        recipe_path: the recipe; its lock lies beside it.
        output: the directory to make (or to bring up to date).
        plugins: what is installed.
        world: store, network, environment, screen.
        locked: fail when there is no lock or it is stale, instead of making one.
        frozen: use the lock as it is, without comparing it to the recipe's local files.

    Raises:
        BundlerError: the kind says who can act; finished work is kept.
    """
    recipe = read_recipe(recipe_path)
    check_output(output)
    lock = ensure_lock(recipe_path, recipe, plugins, world, locked=locked, frozen=frozen)
    plan, results, proofs = prove_or_replan(recipe, lock, plugins, world)
    say_what_was_left_out(recipe, results, world)
    fetch_licences(lock, plan, plugins, world)
    composition = compose(recipe, lock, plan, results, proofs)
    sealed = seal(composition.layout, composition.manifest, output, world)
    return Built(output, sealed.manifest_sha256, plan, proofs)


def check_names(recipe: Recipe, recipe_path: Path, plugins: Plugins) -> None:
    """Refuse a recipe that names what is not installed, before anything is asked of the network.

    Raises:
        RecipeError: every such name, with the nearest one there is.
    """
    asked: list[tuple[str, str, Mapping[str, object]]] = [
        *((f"models.{n}.engine", m.engine, plugins.engines) for n, m in recipe.models.items()),
        *((f"models.{n}.source", m.source.source, plugins.sources) for n, m in recipe.models.items()),
        *((f"corpora.{n}.kind", c.kind, plugins.corpora) for n, c in recipe.corpora.items()),
        *((f"corpora.{n}.source", c.source.source, plugins.sources)
          for n, c in recipe.corpora.items()),
        *(("runtime.use", name, plugins.runtimes) for name in recipe.runtime.use),
    ]  # fmt: skip
    if recipe.target.use is not None:
        asked.append(("target.use", recipe.target.use, plugins.targets))
    problems = []
    for key, name, known in asked:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            guess = f"did you mean {near[0]!r}? " if near else ""
            hint = f"{guess}there is: {', '.join(known)}"
            problems.append(Problem(f"{key}: {name!r} is not installed", str(recipe_path), hint))
    if problems:
        raise RecipeError(problems)


def say_what_was_left_out(recipe: Recipe, results: Results, world: World) -> None:
    """Warn of every corpus that does not hold all it was given."""
    for name in recipe.corpora:
        skipped = int(results.by_step[f"corpora/{name}"].facts.get("skipped_total", 0))
        if skipped:
            text = f"corpora.{name}: {skipped} of its files were left out; report.html says why"
            world.report(Note(text, "warning"))


# -- lock --------------------------------------------------------------------------------------------


def ensure_lock(
    recipe_path: Path, recipe: Recipe, plugins: Plugins, world: World,
    *, locked: bool = False, frozen: bool = False,
) -> Lock:  # fmt: skip
    """Return the recipe's lock; make one only when there is none; never change one.

    Raises:
        LockError: it is missing under `locked`, or stale, or local files have changed.
    """
    check_names(recipe, recipe_path, plugins)
    path = lock_path(recipe_path)
    lock = read_lock(path)
    if lock is None:
        if locked or frozen:
            raise LockError("there is no lock", where=str(path), hint=f"bundler lock {recipe_path}")
        return make_lock(recipe_path, recipe, plugins, world)
    hint = f"look at the change, then: bundler lock {recipe_path}"
    other = differences(lock, recipe)
    if other:
        raise LockError([Problem(p.message, p.where or str(path), hint) for p in other])
    if not frozen:
        changed = changed_local_files(lock, recipe, plugins, world)
        if changed:
            raise LockError([Problem(p.message, p.where, hint) for p in changed])
    return lock


def make_lock(recipe_path: Path, recipe: Recipe, plugins: Plugins, world: World) -> Lock:
    """Turn the recipe's names into a lock and write it beside the recipe."""
    check_names(recipe, recipe_path, plugins)
    stamp = world.environment.get("SOURCE_DATE_EPOCH", "")
    created = int(stamp) if stamp.isdigit() else int(time.time())
    path = lock_path(recipe_path)
    old = read_lock(path)
    lock = resolve(recipe, plugins, world, created=created)
    if old is not None and old.model_copy(update={"created": created}) == lock:
        lock = old  # nothing changed: neither does the clock in it
    write_durably(path, lock_text(lock).encode())
    report_lock_made(path, lock, world)
    return lock


# -- plan --------------------------------------------------------------------------------------------


def make_the_plan(
    recipe: Recipe, lock: Lock, plugins: Plugins,
    ruled_out: Set[RuledOut] = frozenset(),
) -> Plan:  # fmt: skip
    """Ask every engine for offers and choose. Needs no network, no GPU and no llama.cpp.

    Raises:
        DoesNotFit: nothing fits, or a plugin objects.
    """
    target = choose_target(recipe.target, plugins.targets)
    offers: dict[str, Sequence[Offer]] = {}
    for name, request in recipe.models.items():
        engine = plugins.named(plugins.engines, request.engine, "engine")
        found = engine.offers(request, lock.models[name], target, lock.texts)
        offers[name] = [
            offer for offer in found if (name, offer.quant, offer.kv_cache) not in ruled_out
        ]
        if found and not offers[name]:
            raise NothingLeft(f"models.{name}: every offer failed its proof")
    formats = frozenset(
        format_
        for name in recipe.runtime.use
        for format_ in plugins.named(plugins.runtimes, name, "runtime").formats
    )
    fixed = sum(runtime.staged_bytes or runtime.size_bytes for runtime in lock.runtimes.values())
    plan = make_plan(recipe, lock, target, offers, runtime_formats=formats, fixed_bytes=fixed)
    objections = plugins.review_plan(plan)
    if objections:
        raise DoesNotFit(objections)
    return plan


# -- proofs ------------------------------------------------------------------------------------------


def prove_or_replan(
    recipe: Recipe, lock: Lock, plugins: Plugins, world: World
) -> tuple[Plan, Results, dict[str, Proof]]:
    """Plan and execute until every proof passes, at most as often as the recipe says.

    Raises:
        ProofFailed: no offer is left, or no try; names figure and limit.
    """
    ruled_out: set[RuledOut] = set()
    last: list[Problem] = []
    for _ in range(recipe.verify.replans + 1):
        try:
            plan = make_the_plan(recipe, lock, plugins, ruled_out)
        except (DoesNotFit, NothingLeft) as error:
            if not last:
                raise
            raise ProofFailed(last) from error
        results = execute(plan, lock, plugins, world)
        proofs = read_proofs(recipe, plan, results)
        failed = failed_proofs(proofs, plugins)
        if not failed:
            return plan, results, proofs
        last = [
            Problem(p.message, p.where, p.hint or "loosen the gate, or allow more bits in `quant`")
            for found in failed.values()
            for p in found
        ]
        ruled_out |= _rule_out(failed, plan, world)
    raise ProofFailed(last)


def read_proofs(recipe: Recipe, plan: Plan, results: Results) -> dict[str, Proof]:
    """Return each model's proof, with the recipe's gates held against it."""
    proofs = {}
    for choice in plan.choices:
        result = results.by_step.get(f"models/{choice.model}/prove")
        if result is not None:
            proof = Proof.model_validate(result.facts)
            gates = check_gates(proof, recipe.models[choice.model].gates, choice.model)
            proofs[choice.model] = proof.model_copy(update={"gates": gates})
    return proofs


def failed_proofs(proofs: Mapping[str, Proof], plugins: Plugins) -> dict[str, list[Problem]]:
    """Return what speaks against each model: failed gates and objections of plugins."""
    failed: dict[str, list[Problem]] = {}
    for name, proof in proofs.items():
        problems = gate_problems(proof.gates, name) + plugins.review_proof(name, proof)
        if problems:
            failed[name] = problems
    return failed


def _rule_out(failed: Mapping[str, list[Problem]], plan: Plan, world: World) -> set[RuledOut]:
    """Return the offers that did not pass, and say so."""
    out = set()
    for choice in plan.choices:
        if choice.model in failed:
            out.add((choice.model, choice.offer.quant, choice.offer.kv_cache))
            why = "; ".join(problem.message for problem in failed[choice.model])
            world.report(
                Note(
                    f"models.{choice.model}: {choice.offer.quant} did not pass ({why}); "
                    "it is ruled out",
                    "warning",
                )
            )
    return out


# -- the bundle --------------------------------------------------------------------------------------


def fetch_licences(lock: Lock, plan: Plan, plugins: Plugins, world: World) -> None:
    """Fetch the licence texts that ship with models and corpora."""
    from bundler.transfer import fetch

    wanted = [
        (plugins.sources[resolution.source], file)
        for resolution in (*(m.resolution for m in lock.models.values()), *lock.corpora.values())
        for file in licence_files(resolution)
    ]
    if wanted:
        fetch(wanted, world, step="licences")
    fetch_inputs((), plan, lock, plugins, world)
