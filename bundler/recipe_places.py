"""Gives problems that were found after a recipe was read their line and column in it.

Whatever looks at a recipe as a value (the planner, the choice of a target) names keys in its
problems, `target.use: …`, and knows no file; the command line does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bundler.errors import BundlerError, Problem
from bundler.recipe_file import KeyPath, Place, find_places


def placed(error: BundlerError, recipe: Path) -> BundlerError:
    """Return the error with `file:line:column` where a problem begins with a key of the recipe.

    The error itself comes back when none does, or when the recipe can no longer be read.
    """
    if all(problem.where for problem in error.problems):
        return error
    try:
        places = find_places(recipe.read_bytes())
    except OSError:
        return error  # what is wrong is said without the place
    found = [_placed(problem, places, str(recipe)) for problem in error.problems]
    return error if found == list(error.problems) else type(error)(found)


def _placed(problem: Problem, places: Mapping[KeyPath, Place], name: str) -> Problem:
    if problem.where:
        return problem
    named = [path for path in places if _begins_with(problem.message, path)]
    if not named:
        return problem
    line, column = places[max(named, key=len)]
    return replace(problem, where=f"{name}:{line}:{column}")


def _begins_with(message: str, path: KeyPath) -> bool:
    """Tell whether a message begins with this key or with one inside it."""
    dotted = ".".join(str(part) for part in path)
    return message.startswith((f"{dotted}: ", f"{dotted}."))
