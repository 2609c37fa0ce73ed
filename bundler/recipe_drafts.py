"""Which model of a recipe drafts for which, and what is wrong with that. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from bundler.recipe import FOLLOWED, Recipe

_DraftProblem = tuple[tuple[str, ...], str, str]
"""The key's path, what is wrong, what to do."""


def pairs(recipe: Recipe) -> dict[str, str]:
    """Return the name of each model that has a draft, with the draft's."""
    return {name: model.draft for name, model in recipe.models.items() if model.draft}


def draft_problems(recipe: Recipe) -> Iterator[_DraftProblem]:
    """Yield everything that is wrong with the drafts a recipe names."""
    found = pairs(recipe)
    for name, draft in found.items():
        path = ("models", name, "draft")
        wrong = _wrong_choice(recipe, name, draft)
        if wrong is not None:
            yield (path, *wrong)
            continue
        first = next(main for main, other in found.items() if other == draft)
        if first != name:
            yield (
                path, f"{draft!r} drafts for models.{first} already",
                "each model loads a draft of its own: name another one, or the same source twice",
            )  # fmt: skip
            continue
        yield from _followed(recipe, name, draft)


def _wrong_choice(recipe: Recipe, name: str, draft: str) -> tuple[str, str] | None:
    """Return what speaks against a model as a draft, and what would help; None for nothing."""
    if draft == name:
        return "a model cannot draft for itself", 'name a smaller model with role = "draft"'
    other = recipe.models.get(draft)
    if other is None:
        near = difflib.get_close_matches(draft, list(recipe.models), n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"add a table [models.{draft}]"
        return f"there is no model called {draft!r}", hint
    if other.role != "draft":
        says = f"models.{draft} has role = {other.role!r}"
        return f"{draft!r} is not a draft: {says}", f'models.{draft}.role = "draft"'
    if other.engine != recipe.models[name].engine:
        return (
            f"{draft!r} is made by another engine ({other.engine})",
            f'models.{draft}.engine = "{recipe.models[name].engine}"',
        )
    return None


def _followed(recipe: Recipe, name: str, draft: str) -> Iterator[_DraftProblem]:
    """Yield a problem for each thing that a draft says and has from its model."""
    said = recipe.models[draft].model_fields_set
    for key in FOLLOWED:
        if key in said:
            yield (
                ("models", draft, key), f"a draft has it from the model it drafts for, models.{name}",
                "leave it out",
            )  # fmt: skip
