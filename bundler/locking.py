"""The lock beside a recipe: read, held against the recipe, made. What every command begins with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from bundler.errors import LockError, Problem, RecipeError, SourceError
from bundler.feedback.measurements import still_true
from bundler.lock import Lock
from bundler.plan import FileInput, Plan
from bundler.plugins import Plugins
from bundler.recipe import Recipe
from bundler.recipe_places import placed
from bundler.resolve import (
    changed_local_files,
    differences,
    lock_path,
    lock_text,
    read_lock,
    report_lock_made,
    resolve,
)
from bundler.sourcing import locked_files
from bundler.store import write_durably
from bundler.world import World


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
            said = "is not installed"
            if known is plugins.targets:
                said, hint = "is in no catalogue", f"{guess}`bundler targets` lists them all"
            problems.append(Problem(f"{key}: {name!r} {said}", hint=hint, key=key))
    if problems:
        raise placed(RecipeError(problems), recipe_path)


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
            raise LockError([replace(p, hint=hint) for p in changed])
    return lock


def make_lock(recipe_path: Path, recipe: Recipe, plugins: Plugins, world: World) -> Lock:
    """Turn the recipe's names into a lock and write it beside the recipe."""
    check_names(recipe, recipe_path, plugins)
    stamp = world.environment.get("SOURCE_DATE_EPOCH", "")
    created = int(stamp) if stamp.isdigit() else int(time.time())
    path = lock_path(recipe_path)
    old = read_lock(path)
    same = False
    with _offline_has_a_way_out(recipe_path, world):
        lock = resolve(recipe, plugins, world, created=created)
    if old is not None:
        lock = lock.model_copy(update={"measured": still_true(old.measured, lock)})
        if old.model_copy(update={"created": created}).inputs_sha256 == lock.inputs_sha256:
            # Nothing changed: neither does the clock in it.
            same = True
            lock = lock.model_copy(update={"created": old.created})
    write_durably(path, lock_text(lock).encode())
    report_lock_made(path, lock, world, same=same)
    return lock


@contextmanager
def _offline_has_a_way_out(recipe_path: Path, world: World) -> Iterator[None]:
    """Say with which command a lock is made that could not be made without a network."""
    try:
        yield
    except SourceError as error:
        if not world.offline:
            raise
        hint = f"with a network, once, without --offline (or HF_HUB_OFFLINE): bundler lock {recipe_path}"
        raise error.with_problems(replace(p, hint=hint) for p in error.problems) from error


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
