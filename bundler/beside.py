"""What goes with a model beside its weights: LoRA adapters, a projector, a draft. Named, asked for,
locked; held against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bundler.errors import BundlerError, Problem, RecipeError
from bundler.hookspecs import Engine
from bundler.lock import Lock, LockedAdapter, LockedFile, LockedModel, LockedProjector, Resolution
from bundler.recipe import ModelRequest, Recipe, SourceReference

Ask = Callable[[SourceReference], Resolution]
Read = Callable[[SourceReference, LockedFile, int, int], bytes]


def beside(request: ModelRequest) -> dict[str, SourceReference]:
    """Return what goes with one model, by its key: `adapters[0]`, `projector`."""
    found = {f"adapters[{n}]": adapter.source for n, adapter in enumerate(request.adapters)}
    if request.projector is not None:
        found["projector"] = request.projector
    return found


def all_beside(recipe: Recipe) -> dict[str, SourceReference]:
    """Return what goes with all models of a recipe: `models.chat.adapters[0]` → reference."""
    return {
        f"models.{name}.{key}": reference
        for name, model in recipe.models.items()
        for key, reference in beside(model).items()
    }


def all_locked_beside(lock: Lock) -> dict[str, Resolution]:
    """Return the same of a lock."""
    return {
        f"models.{name}.{key}": resolution
        for name, model in lock.models.items()
        for key, resolution in model.beside.items()
    }


def lock_beside(
    request: ModelRequest, model: LockedModel, engine: Engine, ask: Ask, read: Read
) -> LockedModel:
    """Return a locked model with what the recipe puts beside it.

    Args:
        request: what the recipe says of the model.
        model: its own files and facts, which adapters are held against.
        engine: who reads the headers.
        ask: asks a source what a reference means.
        read: `read(reference, file, start, length)` fetches just those bytes.

    Raises:
        RecipeError: the engine has no such thing.
        BundlerError: a source or a header is wrong; all problems at once, each with its key.
    """
    problems: list[tuple[type[BundlerError], Problem]] = []
    locked: dict[str, Any] = {}
    for key, reference in beside(request).items():
        try:
            locked[key] = _locked(key, reference, model, engine, ask, read)
        except BundlerError as error:
            problems += [(type(error), _named(problem, key)) for problem in error.problems]
    if problems:
        raise problems[0][0]([problem for _, problem in problems])
    if not locked:
        return model
    projector = locked.pop("projector", None)
    return model.model_copy(update={"adapters": tuple(locked.values()), "projector": projector})


def _named(problem: Problem, key: str) -> Problem:
    where = f"{key}: {problem.where}" if problem.where and problem.where != key else key
    return Problem(problem.message, where, problem.hint)


def _locked(
    key: str, reference: SourceReference, model: LockedModel, engine: Engine, ask: Ask, read: Read
) -> LockedAdapter | LockedProjector:
    reader: Callable[..., Any] | None = getattr(engine, _METHODS[key[:8]], None)
    if reader is None:
        raise RecipeError(
            f"the engine {engine.name} takes no {key.partition('[')[0]}",
            hint="leave the key out, or take another engine",
        )
    resolution = ask(reference)

    def read_part(file: LockedFile, start: int, length: int) -> bytes:
        return read(reference, file, start, length)

    facts = reader(resolution, read_part, model.facts)
    if key == "projector":
        return LockedProjector(resolution=resolution, facts=facts)
    return LockedAdapter(resolution=resolution, facts=facts)


_METHODS: Mapping[str, str] = {"adapters": "adapter_facts", "projecto": "projector_facts"}


def check_draft(
    recipe: Recipe, name: str, locked: tuple[LockedModel, LockedModel], engine: Engine, read: Read
) -> None:
    """Hold a model's draft against it: what it guesses must be words of the model's.

    Args:
        recipe: in which `name` names its draft.
        name: of the model.
        locked: the model and its draft.
        engine: who reads the headers.
        read: `read(reference, file, start, length)` fetches just those bytes.

    Raises:
        RecipeError: it does not fit, or the engine drafts for none.
    """
    key = f"models.{name}.draft"
    check: Callable[..., None] | None = getattr(engine, "check_draft", None)
    if check is None:
        problem = Problem(f"the engine {engine.name} takes no draft", hint="leave it out", key=key)
        raise RecipeError(problem)

    def reader(of: str) -> Callable[[LockedFile, int, int], bytes]:
        reference = recipe.models[of].source
        return lambda file, start, length: read(reference, file, start, length)

    model, draft = locked
    try:
        check(model.resolution, reader(name),
              draft.resolution, reader(str(recipe.models[name].draft)))  # fmt: skip
    except RecipeError as error:
        raise error.with_problems(replace(p, key=key) for p in error.problems) from error
