"""Reads a recipe and its lock and holds them against this machine. Makes no lock, fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bundler.doctor.findings import Finding
from bundler.doctor.needs import budget_bytes, needs
from bundler.doctor.software import EngineAnswers
from bundler.doctor.storage import storage
from bundler.errors import BundlerError
from bundler.lock import Lock
from bundler.machine.values import Machine
from bundler.offering import make_the_plan
from bundler.plan import Plan
from bundler.plugins import Plugins
from bundler.recipe import Recipe
from bundler.recipe_file import read_recipe
from bundler.recipe_places import placed
from bundler.resolve import differences, lock_path, read_lock
from bundler.sourcing import locked_files
from bundler.store import Store
from bundler.world import World


def recipe_findings(
    path: Path | None, output: Path | None, store: Path, plugins: Plugins, machine: Machine,
    answers: EngineAnswers, *, environment: Mapping[str, str], online: bool = False,
    free_bytes: int | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """Yield what disks and machine have for a recipe; of the disks alone when there is none.

    `free_bytes` stands for what is free on the disks, to ask about others.
    """
    if path is None:
        yield from storage(store, output or Path("dist"), free_bytes=free_bytes)
        return
    recipe = read_recipe(path)
    place = output or Path("dist") / recipe.bundle.name
    lock = read_lock(lock_path(path))
    wrong = ["there is none"] if lock is None else [str(p) for p in differences(lock, recipe)]
    if lock is None or wrong:
        yield from storage(store, place, free_bytes=free_bytes)
        yield Finding(
            topic="recipe", name="lock", state="warning",
            said=f"{'; '.join(wrong)}: so nothing is known of its models yet",
            remedy=f"make it with `bundler lock {path}` (reads headers only), then ask again",
        )  # fmt: skip
        return
    try:
        plan = make_the_plan(recipe, lock, plugins)
    except BundlerError as error:
        yield from storage(store, place, free_bytes=free_bytes)
        yield from _no_plan(placed(error, path))
        return
    largest = max((choice.offer.largest_file_bytes for choice in plan.choices), default=0)
    yield from storage(
        store, place, build_bytes=max(0, budget_bytes(plan, "peak build disk") - _held(lock, store)),
        bundle_bytes=budget_bytes(plan, "bundle on disk"),
        largest_file_bytes=max([largest, *_corpus_sizes(lock)]), free_bytes=free_bytes,
    )  # fmt: skip
    yield from needs(recipe, lock, plan, machine, answers)
    if online:
        yield from _reachable(recipe, lock, plan, plugins, store, environment, path.parent)


def _no_plan(error: BundlerError) -> Iterator[Finding]:
    for problem in error.problems:
        yield Finding(
            topic="recipe", name="plan", state="missing", said=str(problem),
            remedy=problem.hint or "see `bundler plan`", exit_code=error.exit_code,
        )  # fmt: skip


def _corpus_sizes(lock: Lock) -> Iterator[int]:
    for resolution in lock.corpora.values():
        yield from (file.size_bytes for file in resolution.files)


def _held(lock: Lock, store: Path) -> int:
    """Return how much of what is locked the store holds already."""
    if not store.is_dir():
        return 0
    sizes = {
        file.sha256: file.size_bytes
        for resolution in (
            *(model.resolution for model in lock.models.values()), *lock.corpora.values(),
            *lock.texts.values(), *lock.runtimes.values(),
        )
        for file in resolution.files
    }  # fmt: skip
    objects = store / "objects"
    return sum(size for sha256, size in sizes.items() if (objects / sha256[:2] / sha256).is_file())


def _reachable(
    recipe: Recipe, lock: Lock, plan: Plan, plugins: Plugins, store: Path,
    environment: Mapping[str, str], folder: Path,
) -> Iterator[Finding]:  # fmt: skip
    """Open the first file of every place that something is locked from, and read one byte."""
    world = World(store=Store(store), environment=environment, folder=folder)
    asked: set[str] = set()
    for source, file in locked_files(lock, plugins):
        place = "/".join(file.addresses[0].split("/")[:3])
        if place in asked:
            continue
        asked.add(place)
        try:
            with source.open(
                file.addresses[0], start=0, end=1, validator=None, world=world
            ) as stream:
                next(iter(stream.chunks), b"")
        except (BundlerError, OSError) as error:
            yield Finding(
                topic="network", name=source.name, state="warning",
                said=f"{place} does not answer: {error}",
                remedy="look at the connection; what is in the store already needs none",
            )  # fmt: skip
        else:
            yield Finding(topic="network", name=source.name, state="good", said=f"{place} answers")
