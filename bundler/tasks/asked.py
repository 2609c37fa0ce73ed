"""Which tasks a recipe asks of a model, as parameters and inputs of its proof. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bundler.errors import RecipeError
from bundler.lock import Lock, LockedFile, Resolution
from bundler.plan import FileInput, Step
from bundler.recipe import Recipe, TaskRequest
from bundler.value import digest

if TYPE_CHECKING:
    from bundler.tasks.items import Asked

PREFIX = "tasks."
"""Of a task's name among a lock's texts."""


def asked_tasks(
    recipe: Recipe, lock: Lock, model: str
) -> dict[str, tuple[dict[str, Any], FileInput]]:
    """Return each task of a model: what its proof is told, and the file.

    Raises:
        RecipeError: a source holds several files.
    """
    role = recipe.models[model].role
    if role not in ("chat", "code"):
        return {}
    found = {}
    for name, request in sorted(recipe.verify.tasks.items()):
        if request.models and model not in request.models:
            continue
        file = only_file(lock.texts[PREFIX + name], f"verify.tasks.{name}")
        told = {
            "name": name, "kind": request.kind, "file": file.path, "scoring": request.scoring,
            "prompt": request.prompt, "items": request.items, "seed": request.seed,
            "minutes": request.minutes,
        }  # fmt: skip
        told |= _of_kind(request)
        found[name] = told, FileInput(sha256=file.sha256, size_bytes=file.size_bytes)
    return found


def _of_kind(request: TaskRequest) -> dict[str, Any]:
    """Return what a proof is told of this kind of task only."""
    if request.kind == "code":
        return {"scoring": "tests", "tokens": request.most_tokens, "seconds": request.seconds}
    if request.kind == "choice":
        return {}
    given = {"scoring": request.match, "extract": request.extract, "tokens": request.most_tokens}
    own = {"schema": request.schema_text, "language": request.language}
    return given | {key: value for key, value in own.items() if value}


def how_asked(request: TaskRequest) -> Asked:
    """Return what decides how the file of a task is read."""
    from bundler.tasks.items import Asked

    return Asked.of({"kind": request.kind, "scoring": request.scoring, **_of_kind(request)})


def only_file(found: Resolution, task: str) -> LockedFile:
    """Return the one file of a task. Raises RecipeError where there are several."""
    if len(found.files) != 1:
        raise RecipeError(
            f"should be one file of questions, {found.reference} has {len(found.files)}",
            where=task,
            hint="name the file itself, or pick it with `include`",
        )
    return found.files[0]


def with_tasks(step: Step, tasks: Mapping[str, tuple[dict[str, Any], FileInput]]) -> Step:
    """Return a proof that asks these tasks, too; the same step where there are none."""
    if not tasks:
        return step
    files = {f"tasks/{name}": given for name, (_, given) in tasks.items()}
    told = [told for told, _ in tasks.values()]
    return step.model_copy(
        update={
            "inputs": {**step.inputs, **files},
            "parameters": {**step.parameters, "tasks": told},
        }
    )


def asked_digest(told: Mapping[str, Any], sha256: str) -> str:
    """Return the digest of what decides a task's figures; its name does not."""
    return digest([{k: v for k, v in told.items() if k not in ("name", "file")}, sha256])


def digests_of(tasks: Mapping[str, tuple[dict[str, Any], FileInput]]) -> dict[str, str]:
    """Return the digest of each task, by its name."""
    return {name: asked_digest(told, given.sha256) for name, (told, given) in tasks.items()}


def digests_of_step(step: Step) -> dict[str, str]:
    """Return the digest of each task that a proof asked, by its name."""
    found = {}
    for told in step.parameters.get("tasks", ()):
        given = step.inputs[f"tasks/{told['name']}"]
        if isinstance(given, FileInput):
            found[str(told["name"])] = asked_digest(told, given.sha256)
    return found
