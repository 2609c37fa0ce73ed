"""What is wrong with the tasks of a recipe that no single value of it can know. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bundler.recipe import Recipe
from bundler.tasks.evidence import least_items

_ANSWERING = ("chat", "code")


@dataclass(frozen=True)
class Slip:
    """One thing that is wrong, at a key."""

    path: tuple[str, ...]
    message: str
    hint: str = ""


def task_slips(recipe: Recipe, near: Callable[[str, list[str]], str]) -> Iterator[Slip]:
    """Yield what does not fit together; `near` says which of some names was perhaps meant."""
    tasks, models = recipe.verify.tasks, recipe.models
    for name, task in tasks.items():
        path = ("verify", "tasks", name, "models")
        for model in task.models:
            if model not in models:
                hint = near(model, list(models)) or f"there is: {', '.join(models)}"
                yield Slip(path, f"there is no model called {model!r}", hint)
            elif models[model].role not in _ANSWERING:
                role = models[model].role
                yield Slip(path, f"{model!r} answers nobody: its role is {role!r}", "leave it out")
        if not task.models and not any(m.role in _ANSWERING for m in models.values()):
            hint = "leave the task out, or add a model with role = 'chat'"
            yield Slip(path[:-1], "no model of this recipe answers questions", hint)
    for model, request in models.items():
        for name, limit in request.gates.max_loss.items():
            key = ("models", model, "gates", "max_loss", name)
            if name not in tasks:
                hint = near(name, list(tasks)) or f"write a table [verify.tasks.{name}]"
                yield Slip(key, f"there is no task called {name!r}", hint)
            elif request.role not in _ANSWERING or (
                tasks[name].models and model not in tasks[name].models
            ):
                yield Slip(key, f"the task {name!r} is not asked of this model", "remove the limit")
            elif tasks[name].items < least_items(limit):
                yield Slip(
                    key,
                    f"{tasks[name].items} questions cannot show so small a loss: not even equal "
                    "answers would pass",
                    f"set verify.tasks.{name}.items to {least_items(limit)} at least, or raise the "
                    "limit",
                )
