"""What a plan takes of each limit, and what it may not exceed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bundler.errors import DoesNotFit, Problem
from bundler.lock import Lock, Resolution
from bundler.plan import Budget, Choice, FileInput, Step
from bundler.planning.parity_room import planned_parity_bytes
from bundler.recipe import Recipe
from bundler.solver.choosing import Decision, Option
from bundler.value import format_size


def tier_budgets(
    decision: Decision, chosen: Mapping[tuple[str, str], Option], tier: str
) -> tuple[Budget, ...]:
    """Return what one machine's models take of its memory."""
    return tuple(
        Budget(name=limit.name, used_bytes=used, limit_bytes=limit.capacity_bytes)
        for limit, used in zip(decision.limits, decision.used(chosen), strict=True)
        if limit.turns and limit.tier == tier
    )


def shared_budgets(
    recipe: Recipe, lock: Lock, choices: Sequence[Choice], steps: Sequence[Step],
    models_bytes: int, other_bytes: int,
) -> tuple[Budget, ...]:  # fmt: skip
    """Return the bundle's size, what is fetched for it, and the disk that building it takes.

    Args:
        recipe: what is wanted.
        lock: what it is made from.
        choices: what was chosen for every machine.
        steps: what will be done.
        models_bytes: size of the models' files, each once.
        other_bytes: corpora, runtimes and what else is in the bundle.
    """
    downloads = {
        given.sha256: given.size_bytes
        for step in steps
        for given in step.inputs.values()
        if isinstance(given, FileInput)
    }
    fetched = sum(downloads.values())
    # What is neither a locked file nor a model is made too: unpacked runtimes, ZIMs of documents.
    ready = {resolution.files[0].sha256 for resolution in _ready_corpora(recipe, lock)}
    unmade = sum(size for sha256, size in downloads.items() if sha256 in ready)
    scratch = max((choice.offer.scratch_bytes for choice in choices), default=0)
    taken = {
        choice.offer.output.sha256: choice.offer.disk_bytes
        for choice in choices
        if isinstance(choice.offer.output, FileInput)
    }
    for choice in choices:
        taken |= {one.file.sha256: one.file.size_bytes for one in choice.offer.companions}
    made = models_bytes - sum(taken.values())
    peak = fetched + max(0, made) + scratch + other_bytes - unmade
    bundle_bytes = models_bytes + other_bytes
    return (
        Budget(
            name="bundle on disk",
            used_bytes=bundle_bytes + planned_parity_bytes(bundle_bytes, recipe.bundle.parity),
            limit_bytes=recipe.bundle.max_size,
        ),
        Budget(name="download", used_bytes=fetched, limit_bytes=recipe.bundle.max_download),
        Budget(name="peak build disk", used_bytes=peak, limit_bytes=None),
    )


def _ready_corpora(recipe: Recipe, lock: Lock) -> list[Resolution]:
    """Return the corpora that go into the bundle as they are fetched: the store holds them once."""
    return [lock.corpora[name] for name, corpus in recipe.corpora.items() if corpus.kind == "zim"]


def check_budgets(budgets: Iterable[Budget]) -> None:
    """Refuse what exceeds a limit although nothing was left to choose about it.

    Raises:
        DoesNotFit: every such limit.
    """
    problems = [
        Problem(
            f"does not fit: {budget.name} needs {format_size(budget.used_bytes)}, "
            f"the limit is {format_size(budget.limit_bytes or 0)}",
            hint="leave out a corpus, take a smaller edition of it, or a larger stick",
            key="bundle.max_download" if budget.name == "download" else "bundle.max_size",
        )
        for budget in budgets
        if not budget.fits
    ]
    if problems:
        raise DoesNotFit(problems)
