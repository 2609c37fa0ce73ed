"""The whole program on one screen: each stage turns one frozen value into the next.

::

    Recipe ──resolve──▶ Lock ──plan──▶ Plan ──execute──▶ Results ──seal──▶ bundle ──verify──▶ proved
                                        ▲                    │
                                        └── replan ◀─────────┘  a proof that fails its gate
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from bundler.advice.advised import plan_with_advice
from bundler.compose import ModelOfTier, compose, licence_files
from bundler.errors import LockError, Problem, RecipeError
from bundler.events import Note
from bundler.execute import Results, fetch_inputs, locked_files
from bundler.feedback.measurements import still_true
from bundler.lock import Lock
from bundler.manifest import Manifest
from bundler.plan import FileInput, Plan
from bundler.plugins import Plugins
from bundler.proof import Proof
from bundler.proving import prove_or_replan
from bundler.recipe import Recipe
from bundler.recipe_file import read_recipe
from bundler.resolve import (
    MeasuredFacts,
    changed_local_files,
    differences,
    lock_path,
    lock_text,
    read_lock,
    report_lock_made,
    resolve,
)  # fmt: skip
from bundler.seal import check_output, seal, unsigned
from bundler.store import write_durably
from bundler.world import World

Sign = Callable[[Manifest, bytes], Mapping[str, bytes]]
"""From a manifest and its bytes to the files that sign it."""


@dataclass(frozen=True)
class Built:
    """What a build leaves."""

    output: Path
    manifest_sha256: str
    plan: Plan
    proofs: Mapping[ModelOfTier, Proof]


def build(
    recipe_path: Path, output: Path, plugins: Plugins, world: World,
    *, locked: bool = False, frozen: bool = False, sign: Sign | None = None,
) -> Built:  # fmt: skip
    """Do the main job: a recipe in, a bundle that runs with no network out.

    Args:
        recipe_path: the recipe; its lock lies beside it.
        output: the directory to make (or to bring up to date).
        plugins: what is installed.
        world: store, network, environment, screen.
        locked: fail when there is no lock or it is stale, instead of making one.
        frozen: use the lock as it is, without comparing it to the recipe's local files.
        sign: gives the files that sign a manifest; the bundle is unsigned without it.

    Raises:
        BundlerError: the kind says who can act; finished work is kept.
    """
    recipe = read_recipe(recipe_path)
    check_output(output)
    lock = ensure_lock(recipe_path, recipe, plugins, world, locked=locked, frozen=frozen)
    plan, results, proofs = prove_or_replan(
        recipe, lock, plugins, world,
        planner=lambda known, allows: plan_with_advice(recipe, known, plugins, allows),
        keep=MeasuredFacts(lock_path(recipe_path), lock, world, read_only=locked or frozen).keep,
    )  # fmt: skip
    say_what_was_left_out(recipe, results, world)
    fetch_licences(lock, plan, plugins, world)
    composition = compose(recipe, lock, plan, results, proofs)
    made = composition.manifest
    beside = unsigned if sign is None else functools.partial(sign, made)
    sealed = seal(
        composition.layout, made, output, world, beside, parity_percent=recipe.bundle.parity
    )
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
    for tier, request in recipe.targets.items():
        if request.use is not None:
            key = f"tiers.{tier}.use" if tier else "target.use"
            asked.append((key, request.use, plugins.targets))
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
    if old is not None:
        lock = lock.model_copy(update={"measured": still_true(old.measured, lock)})
        if old.model_copy(update={"created": created}).inputs_sha256 == lock.inputs_sha256:
            # Nothing changed: neither does the clock in it.
            lock = lock.model_copy(update={"created": old.created})
    write_durably(path, lock_text(lock).encode())
    report_lock_made(path, lock, world)
    return lock


# -- the bundle --------------------------------------------------------------------------------------


def to_fetch(plan: Plan, lock: Lock, plugins: Plugins, world: World) -> tuple[int, int]:
    """Return the bytes of a plan's inputs that the store has, and of those it has not."""
    needed = {
        given.sha256
        for step in plan.steps
        for given in step.inputs.values()
        if isinstance(given, FileInput)
    }
    sizes = {f.sha256: f.size_bytes for _, f in locked_files(lock, plugins) if f.sha256 in needed}
    cached = sum(size for sha256, size in sizes.items() if world.store.has(sha256, size))
    return cached, sum(sizes.values()) - cached


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
