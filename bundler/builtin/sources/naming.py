"""Names that a stranger gave to files: which are safe, and which are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from bundler.errors import Problem, SourceError, UnsafeInput
from bundler.value import check_relative_path

MOST_FILES = 100_000
"""A listing with more entries is refused: nothing we bundle comes near it."""
_LISTED = 20


def check_listing(names: Sequence[str], where: str) -> None:
    """Refuse a listing that was made to do harm, also in entries which nobody wants.

    Raises:
        UnsafeInput: too many entries, or names that would leave their folder or split a header.
    """
    if len(names) > MOST_FILES:
        raise UnsafeInput(f"lists {len(names)} files; at most {MOST_FILES} are taken", where=where)
    _raise_first(
        Problem(f"lists a file called {name!r}, which no honest listing does", where)
        for name in names
        if "\\" in name
        or any(ord(c) < 32 or ord(c) == 127 for c in name)
        or {"", ".", ".."} & set(name.split("/"))
    )


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that cannot be paths in a bundle, or of which two would become one.

    Raises:
        UnsafeInput: names the offending entries (the first 20).
    """
    problems = []
    seen: dict[str, str] = {}
    for name in names:
        try:
            check_relative_path(name)
        except ValueError as error:
            problems.append(Problem(str(error), where))
        if name.casefold() in seen:
            other = seen[name.casefold()]
            problems.append(Problem(f"{name!r} and {other!r} are one file on many disks", where))
        seen[name.casefold()] = name
    _raise_first(problems)


def _raise_first(found: Iterable[Problem]) -> None:
    problems = list(found)
    if len(problems) > _LISTED:
        more = Problem(f"{len(problems) - _LISTED} more like these", problems[0].where)
        problems = [*problems[:_LISTED], more]
    if problems:
        raise UnsafeInput(problems)


def included(names: Iterable[str], patterns: Sequence[str], where: str) -> list[str]:
    """Return the names that match a pattern, sorted; all of them when there is no pattern.

    A pattern is matched against the whole path and `*` also stands for `/`, as everywhere with
    the Hub: `*.md` means all Markdown files in all folders.

    Raises:
        SourceError: a pattern matches nothing; all such patterns are named.
    """
    names = sorted(names)
    if not patterns:
        return names
    matches = {p: [name for name in names if fnmatchcase(name, p)] for p in patterns}
    problems = [
        Problem(f"no file matches the pattern {p!r}", where, "look at `include` in the recipe")
        for p, found in matches.items()
        if not found
    ]
    if problems:
        raise SourceError(problems)
    return sorted({name for found in matches.values() for name in found})
