"""The steps of a plan, in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from bundler.lock import Lock, LockedFile, Resolution
from bundler.plan import Choice, FileInput, Step, StepInput
from bundler.planning.drafts import draft_steps
from bundler.recipe import Recipe
from bundler.tasks.asked import asked_tasks, with_tasks


def ordered_steps(recipe: Recipe, lock: Lock, choices: Iterable[Choice]) -> tuple[Step, ...]:
    """Return every step: models of all machines, those with drafts, then corpora, then runtimes."""
    choices = tuple(choices)
    return (
        *_model_steps(choices, recipe, lock),
        *draft_steps(recipe, choices),
        *_corpus_steps(recipe, lock),
        *_runtime_steps(lock),
    )


def _model_steps(choices: Iterable[Choice], recipe: Recipe, lock: Lock) -> list[Step]:
    """Return the steps of all models with full names; proofs get what `[verify]` says of them.

    A model of several machines has steps for each; equal ones have equal keys and are done once.
    """
    verify = recipe.verify
    asked = {
        "require": verify.require, "tokens": verify.tokens, "depth_tokens": verify.depth_tokens,
        "long_tokens": verify.long_tokens, "long_minutes": verify.long_minutes,
    }  # fmt: skip
    steps: list[Step] = []
    for choice in choices:
        prefix, tasks = choice.step_prefix, asked_tasks(recipe, lock, choice.model)
        for step in choice.offer.steps:
            inputs = {
                name: given.model_copy(update={"step": prefix + given.step})
                if isinstance(given, StepInput)
                else given
                for name, given in step.inputs.items()
            }
            parameters = {**step.parameters, **(asked if step.action == "prove" else {})}
            update = {"name": prefix + step.name, "inputs": inputs, "parameters": parameters}
            full = step.model_copy(update=update)
            steps.append(with_tasks(full, tasks) if step.action == "prove" else full)
    return steps


def file_inputs(files: Iterable[LockedFile]) -> dict[str, FileInput]:
    """Return locked files as inputs of a step, under their own paths."""
    return {f.path: FileInput(sha256=f.sha256, size_bytes=f.size_bytes) for f in files}


def _corpus_steps(recipe: Recipe, lock: Lock) -> list[Step]:
    return [
        Step(
            name=f"corpora/{name}",
            plugin=f"corpus:{corpus.kind}",
            action="build",
            inputs=file_inputs(lock.corpora[name].files),
            parameters={
                "name": name,
                "title": corpus.title or name,
                "language": corpus.language,
                "creator": corpus.creator,
                "description": corpus.description,
                "licence": corpus.licence or lock.corpora[name].licence,
                "date": datetime.fromtimestamp(lock.created, UTC).date().isoformat(),
            },
        )
        for name, corpus in sorted(recipe.corpora.items())
    ]


def _runtime_steps(lock: Lock) -> list[Step]:
    def step(label: str, resolution: Resolution) -> Step:
        name, _, platform = label.rpartition("/")
        return Step(
            name=f"runtimes/{label}",
            plugin=f"runtime:{name}",
            action="stage",
            inputs=file_inputs(resolution.files),
            parameters={"platform": platform, "revision": resolution.revision},
        )

    return [step(label, resolution) for label, resolution in sorted(lock.runtimes.items())]
