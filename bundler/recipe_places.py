"""Gives problems that were found after a recipe was read their line and column in it.

Whatever looks at a recipe as a value (the planner, the choice of a target, a source) names keys in
its problems, `target.use`, and knows no file; the command line does. A message then begins with the
key and its value as they stand in the file: figures are said in the units of who wrote them, too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundler.errors import BundlerError, LockError, Problem
from bundler.recipe_file import KeyPath, Place, find_places
from bundler.recipe_words import as_written

_OF_A_MACHINE = ("target", "tiers")
"""Tables whose figures come from the catalogue, by the key `use`, where the recipe gives none."""


def placed(error: BundlerError, recipe: Path) -> BundlerError:
    """Return the error with `file:line:column` where a problem follows from a key of the recipe.

    The error itself comes back when none does, or when the recipe can no longer be read.
    """
    try:
        data = recipe.read_bytes()
        given = _Given(find_places(data), tomllib.loads(data.decode()), str(recipe))
    except (OSError, ValueError):
        return error  # what is wrong is said without the place
    found = [given.placed(problem) for problem in error.problems]
    if isinstance(error, LockError):
        anew = f"look at the change, then: bundler lock {recipe}"
        found = [problem if problem.hint else replace(problem, hint=anew) for problem in found]
    return error if found == list(error.problems) else error.with_problems(found)


@dataclass(frozen=True)
class _Given:
    """A recipe as it stands in its file."""

    places: Mapping[KeyPath, Place]
    values: Mapping[str, Any]
    name: str

    def placed(self, problem: Problem) -> Problem:
        """Return a problem with its place, unless it has one or follows from no key."""
        named, said = self._named(problem)
        path = None if named is None else self._nearest(named)
        if named is None or path is None:
            return problem
        line, column = self.places[path]
        written = as_written(_value_at(self.values, path))
        key = dotted(path if written else named)
        shown = f"{key} = {written}" if written else key
        where = f"{self.name}:{line}:{column}"
        return replace(problem, message=f"{shown}: {said}", where=where, key=key)

    def _named(self, problem: Problem) -> tuple[KeyPath | None, str]:
        """Return the key that a problem names, and what it says of it."""
        whole = problem.message
        if problem.key:
            rest = whole.removeprefix(problem.key).removeprefix(": ")
            return (None if problem.where else _path(problem.key)), rest
        if problem.where:  # some name a table of the recipe as the place
            path = _path(problem.where)
            return (path if path in self.places else None), whole
        head, colon, rest = whole.partition(": ")
        path = _path(head)
        known = colon and " " not in head and any(path[:n] in self.places for n in (1, 2, 3))
        return (path, rest) if known else (None, whole)

    def _nearest(self, path: KeyPath) -> KeyPath | None:
        """Return the key itself, what stands for it, or the table that it would stand in."""
        if path in self.places:
            return path
        instead = (*path[:-1], "use")
        if path[0] in _OF_A_MACHINE and instead in self.places:
            return instead
        return next((path[:n] for n in range(len(path), 0, -1) if path[:n] in self.places), None)


def dotted(path: KeyPath) -> str:
    """Return a key as it is said: `models.chat.quant`."""
    return ".".join(str(part) for part in path)


def _path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values
