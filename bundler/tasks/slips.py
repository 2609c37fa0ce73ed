"""What is wrong with the tasks of a recipe that no single value of it can know. Pure but for the reader
of files that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bundler.errors import Problem, RecipeError, UnsafeInput
from bundler.lock import LockedFile
from bundler.recipe import Recipe
from bundler.tasks.asked import how_asked
from bundler.tasks.evidence import least_items
from bundler.tasks.languages import KNOWN_LANGUAGES

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
        if task.schema_text:
            yield from _schema_slips(task.schema_text, (*path[:-1], "schema"))
        if task.language and task.language not in KNOWN_LANGUAGES:
            hint = near(task.language, list(KNOWN_LANGUAGES)) or "see docs/guide.md, Tasks"
            yield Slip(
                (*path[:-1], "language"), f"{task.language!r} is no language that is told", hint
            )
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


def _schema_slips(text: str, path: tuple[str, ...]) -> Iterator[Slip]:
    from bundler.tasks.schemas import schema_problem

    if wrong := schema_problem(text):
        yield Slip(path, f"is no schema to be used: {wrong}")


def require_questions(
    recipe: Recipe, task: str, file: LockedFile, read: Callable[[LockedFile], bytes]
) -> None:
    """Read a task's file, and hold the recipe's limits against how many questions it has.

    Raises:
        RecipeError: it is no file of questions, or has too few to show a limit that the recipe sets.
        UnsafeInput: it is too large, or no text.
    """
    from bundler.tasks.reading import read_questions
    from bundler.tasks.rows import MOST_FILE_BYTES

    if file.size_bytes > MOST_FILE_BYTES:
        raise UnsafeInput(f"is larger than {MOST_FILE_BYTES >> 20} MiB", where=file.path)
    asked = recipe.verify.tasks[task]
    there = len(read_questions(read(file), file.path, how_asked(asked)))
    problems = [
        Problem(
            f"the file has {there:,} questions, which cannot show so small a loss: not even equal "
            "answers would pass",
            where=file.path,
            hint=f"it takes a file of {least_items(limit):,} questions at least, or a larger limit",
            key=f"models.{model}.gates.max_loss.{task}",
        )
        for model, request in recipe.models.items()
        for name, limit in request.gates.max_loss.items()
        if name == task and there < least_items(limit)
    ]
    if problems:
        raise RecipeError(problems)
