"""The whole program on one screen: each stage turns one frozen value into the next.

::

    Recipe ──resolve──▶ Lock ──plan──▶ Plan ──execute──▶ Results ──seal──▶ bundle ──verify──▶ proved
                                        ▲                    │
                                        └── replan ◀─────────┘  a proof that fails its gate
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundler.advice.advised import plan_with_advice
from bundler.attest.verdicts import check_locked, check_share, verdicts
from bundler.compose import ModelOfTier, compose, licence_files
from bundler.events import Note
from bundler.execute import Results, fetch_inputs
from bundler.lock import Lock
from bundler.locking import ensure_lock
from bundler.manifest import Manifest
from bundler.offering import never_as_planned
from bundler.plan import Plan
from bundler.plugins import Plugins
from bundler.proof import Proof
from bundler.proving import prove_or_replan
from bundler.recipe import Recipe
from bundler.recipe_file import read_recipe
from bundler.resolve import MeasuredFacts, lock_path
from bundler.seal import check_output, seal, unsigned
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
    warnings: tuple[str, ...] = ()
    """What no machine will get as it was planned."""


def build(
    recipe_path: Path, output: Path, plugins: Plugins, world: World,
    *, locked: bool = False, frozen: bool = False, sign: Sign | None = None,
    share: bool = False,
) -> Built:  # fmt: skip
    """Do the main job: a recipe in, a bundle that runs with no network out.

    Args:
        recipe_path: the recipe; its lock lies beside it.
        output: the directory to make (or to bring up to date).
        plugins: what is installed.
        world: store, network, environment, screen.
        locked: fail when there is no lock or it is stale, instead of making one.
        frozen: use the lock as it is, without comparing it to the recipe's local files.
        share: refuse what may not be passed on, or of which that is not known.
        sign: gives the files that sign a manifest; the bundle is unsigned without it.

    Raises:
        BundlerError: the kind says who can act; finished work is kept.
    """
    recipe = read_recipe(recipe_path)
    check_output(output)
    lock = ensure_lock(recipe_path, recipe, plugins, world, locked=locked, frozen=frozen)
    if share:
        check_locked(recipe, lock)
    plan, results, proofs = prove_or_replan(
        recipe, lock, plugins, world,
        planner=lambda known, allows: plan_with_advice(recipe, known, plugins, allows),
        keep=MeasuredFacts(lock_path(recipe_path), lock, world, read_only=locked or frozen).keep,
    )  # fmt: skip
    say_what_was_left_out(recipe, results, world)
    fetch_licences(lock, plan, plugins, world)
    composition = compose(recipe, lock, plan, results, proofs)
    made = composition.manifest
    if share:
        check_share(verdicts(made))
    beside = unsigned if sign is None else functools.partial(sign, made)
    sealed = seal(
        composition.layout, made, output, world, beside, parity_percent=recipe.bundle.parity
    )
    warnings = tuple(never_as_planned(plan, recipe, plugins))
    return Built(output, sealed.manifest_sha256, plan, proofs, warnings)


def say_what_was_left_out(recipe: Recipe, results: Results, world: World) -> None:
    """Warn of every corpus that does not hold all it was given."""
    for name in recipe.corpora:
        skipped = int(results.by_step[f"corpora/{name}"].facts.get("skipped_total", 0))
        if skipped:
            text = f"corpora.{name}: {skipped} of its files were left out; report.html says why"
            world.report(Note(text, "warning"))


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
