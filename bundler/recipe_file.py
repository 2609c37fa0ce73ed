"""Reads a recipe's TOML and says everything that is wrong with it at once, by line and column.

`tomllib` gives the values, tree-sitter the places (tomllib forgets them), pydantic the problems.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from bundler.errors import Problem, RecipeError
from bundler.recipe import Recipe
from bundler.recipe_drafts import draft_problems
from bundler.recipe_words import as_written
from bundler.tasks.slips import Slip, task_slips

# A recipe is written by a person; this is a hundred times the longest of ours.
MAX_RECIPE_BYTES = 1 << 20

KeyPath = tuple[str | int, ...]
Place = tuple[int, int]


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in the file at `path`.

    Raises:
        RecipeError: with every problem found, each with `file:line:column` and a suggestion.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            hint="give the path of a recipe, or make one with `bundler init`",
        ) from error
    if path.suffix == ".lock":
        beside = path.with_suffix(".toml")
        raise RecipeError(
            "is a lock, which a recipe has beside it",
            where=str(path),
            hint=f"give the recipe{f': {beside}' if beside.is_file() else ''}",
        )
    return parse_recipe(data, str(path))


def parse_recipe(data: bytes, name: str = "recipe.toml") -> Recipe:
    """Return the recipe in `data`; `name` stands for its file in problems. See `read_recipe`."""
    if len(data) > MAX_RECIPE_BYTES:
        raise RecipeError(f"is larger than {MAX_RECIPE_BYTES} bytes", where=name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError("is not UTF-8 text", where=f"{name}:{line}") from error
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_syntax_problem(str(error), name, text)) from error
    except RecursionError as error:
        raise RecipeError("is nested too deeply", where=name) from error
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        places = find_places(data)
        raise RecipeError(sorted_problems(error, given, places, name)) from error
    # Places are looked up only where there is something to say: parsing again takes a while.
    if _own_problems(recipe, {}, name):
        problems = _own_problems(recipe, find_places(data), name)
        raise RecipeError(sorted(problems, key=_line_and_column))
    return recipe


def _own_problems(recipe: Recipe, places: Mapping[KeyPath, Place], name: str) -> list[Problem]:
    """Return what no single value of a recipe can know is wrong with it."""
    slips = [
        *task_slips(recipe, _did_you_mean),
        *(Slip(*found) for found in draft_problems(recipe)),
    ]
    return [
        *_path_problems(recipe, places, name), *_tier_problems(recipe, places, name),
        *(_placed_problem(slip, places, name) for slip in slips),
    ]  # fmt: skip


def _placed_problem(slip: Slip, places: Mapping[KeyPath, Place], name: str) -> Problem:
    line, column = _nearest(slip.path, places)
    return Problem(f"{'.'.join(slip.path)}: {slip.message}", f"{name}:{line}:{column}", slip.hint)


def _syntax_problem(message: str, name: str, text: str) -> Problem:
    match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if match is None:
        lines = text.count("\n") + 1
        return Problem(message.removesuffix(" (at end of document)"), f"{name}:{lines}")
    return Problem(
        f"TOML syntax: {_in_words(message[: match.start()])}",
        f"{name}:{match[1]}:{match[2]}",
        "strings need quotes, tables are written [name], and no key may stand twice",
    )


def _in_words(message: str) -> str:
    """Say what Python's reader says, without Python's notation: `('target',)` is [target]."""
    twice = re.fullmatch(r"Cannot declare \((.*)\) twice", message)
    if twice is not None:
        keys = re.findall(r"'([^']*)'|\"([^\"]*)\"", twice[1])
        return f"the table [{'.'.join(one or other for one, other in keys)}] stands twice"
    return "this key stands twice" if message == "Cannot overwrite a value" else message


# -- where things stand -----------------------------------------------------------------------------


def find_places(data: bytes) -> dict[KeyPath, Place]:
    """Return line and column (from 1) of every key in a TOML document, by its path."""
    import tree_sitter_toml
    from tree_sitter import Language, Node, Parser

    places: dict[KeyPath, Place] = {}
    counts: dict[KeyPath, int] = {}

    def place(node: Node) -> Place:
        row, byte_column = node.start_point
        start = node.start_byte - byte_column
        return row + 1, len(data[start : node.start_byte].decode(errors="replace")) + 1

    def parts(node: Node) -> list[str]:
        if node.type == "dotted_key":
            return [part for child in node.named_children for part in parts(child)]
        text = (node.text or b"").decode(errors="replace")
        if node.type == "quoted_key":
            return [str(next(iter(tomllib.loads(f"{text} = 0"))))]
        return [text]

    def value(node: Node, path: KeyPath) -> None:
        if node.type == "array":
            items = [n for n in node.named_children if n.type != "comment"]
            for index, item in enumerate(items):
                places[(*path, index)] = place(item)
                value(item, (*path, index))
        elif node.type == "inline_table":
            pairs(node, path)

    def pairs(node: Node, path: KeyPath) -> None:
        for child in node.named_children:
            if child.type == "pair":
                key = child.named_children[0]
                full = path
                for part in parts(key):
                    full = (*full, part)
                    places.setdefault(full, place(key))
                value(child.named_children[-1], full)

    for node in Parser(Language(tree_sitter_toml.language())).parse(data).root_node.named_children:
        if node.type in ("table", "table_array_element"):
            key = node.named_children[0]
            path: KeyPath = ()
            for part in parts(key):
                path = (*path, part)
                places.setdefault(path, place(key))
            if node.type == "table_array_element":
                index = counts[path] = counts.get(path, -1) + 1
                path = (*path, index)
                places[path] = place(key)
            pairs(node, path)
    for node in Parser(Language(tree_sitter_toml.language())).parse(data).root_node.named_children:
        if node.type == "pair":
            full: KeyPath = ()
            for part in parts(node.named_children[0]):
                full = (*full, part)
                places.setdefault(full, place(node.named_children[0]))
            value(node.named_children[-1], full)
    return places


def _line_and_column(problem: Problem) -> tuple[int, int]:
    line, column = problem.where.rsplit(":", 2)[1:]
    return int(line), int(column)


def _nearest(path: KeyPath, places: Mapping[KeyPath, Place]) -> Place:
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return (1, 1)


# -- what is wrong -----------------------------------------------------------------------------------


def sorted_problems(
    error: ValidationError, given: Any, places: Mapping[KeyPath, Place], name: str
) -> list[Problem]:
    """Return pydantic's findings as problems in the order in which they stand in the file."""
    found: dict[tuple[Place, str], Problem] = {}
    for detail in error.errors(include_url=False):
        path = tuple(part for part in detail["loc"] if part != "[key]")
        line, column = _nearest(path, places)
        dotted = ".".join(str(part) for part in path)
        message, hint = _explain(detail, path)
        written = as_written(detail["input"]) if detail["type"] == "value_error" else ""
        if written and repr(detail["input"]) not in message:
            dotted += f" = {written}"
        text = f"{dotted}: {message}" if dotted else message
        found[(line, column), text] = Problem(text, f"{name}:{line}:{column}", hint)
    return [found[key] for key in sorted(found)]


def _explain(detail: Any, path: KeyPath) -> tuple[str, str]:
    """Return what is wrong and what to do, in words for the person who wrote the recipe."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        keys = _known_keys(path[:-1])
        return "unknown key", _did_you_mean(str(path[-1]), keys) or f"known here: {', '.join(keys)}"
    if kind == "missing":
        if len(path) == 1:
            return "is missing", f"add a table [{path[0]}] (see docs/recipes.md)"
        return "is missing", f"add it to [{'.'.join(map(str, path[:-1]))}]"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        wrong = str(detail["input"])
        if not allowed:
            return f"{wrong} is not known here", f"write {context.get('expected')}"
        near = _did_you_mean(wrong, allowed)
        return f"{wrong!r} is not one of them", near or f"allowed: {', '.join(allowed)}"
    if kind == "value_error":
        error = context.get("error", detail["msg"])
        return str(error), getattr(error, "hint", "")
    for part, words in _PLAIN_WORDS.items():
        if part in kind:
            return words, f"it is {detail['input']!r:.60}"
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        bound = context[limit]
        bound = int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        return f"{words} {bound}", f"it is {detail['input']!r:.60}"
    message = str(detail["msg"])
    return message[0].lower() + message[1:], f"it is {detail['input']!r:.60}"


_LIMITS = {
    "greater_than_equal": ("must be at least", "ge"), "greater_than": ("must be more than", "gt"),
    "less_than_equal": ("must be at most", "le"), "less_than": ("must be less than", "lt"),
}  # fmt: skip
# pydantic's own words are for programmers; its error types: docs, "Validation Errors".
_PLAIN_WORDS = {
    "finite_number": "must be a finite number",
    "int_": "should be a whole number",
    "float_": "should be a number",
    "bool_": "should be true or false",
    "string_type": "should be a string in quotes",
    "tuple_type": "should be a list in brackets",
    "mapping_type": "should be a table",
    "model_type": "should be a string or a table",
}


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=len(known) or 1, cutoff=0.5)
    if not close:
        return ""

    # Of equally near ones the first that is declared: the commoner one stands first.
    def nearness(name: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, name, word).ratio(), -known.index(name)

    return f"did you mean `{max(close, key=nearness)}`?"


def _known_keys(path: KeyPath) -> list[str]:
    """Return the keys that may stand in the table at `path`, found in the recipe's own types."""
    kind: Any = Recipe
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = next((f for n, f in kind.model_fields.items() if part in (n, f.alias)), None)
            kind = field.annotation if field is not None else None
        else:
            kind = get_args(kind)[-1] if get_args(kind) else None
        options = [a for a in get_args(kind) if isinstance(a, type) and issubclass(a, BaseModel)]
        if options and not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            mapping = getattr(kind, "__origin__", None) is Mapping
            kind = kind if mapping else options[0]
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return []
    return [field.alias or name for name, field in kind.model_fields.items()]


def _path_problems(recipe: Recipe, places: Mapping[KeyPath, Place], name: str) -> Iterator[Problem]:
    """Yield a problem for each `path:` that would mean another thing on another machine."""
    references = [
        *((("models", key, "source"), model.source) for key, model in recipe.models.items()),
        *((("corpora", key, "source"), corpus.source) for key, corpus in recipe.corpora.items()),
        (("verify", "heldout"), recipe.verify.heldout),
        (("verify", "calibration"), recipe.verify.calibration),
        *(
            (("verify", "tasks", key, "source"), task.source)
            for key, task in recipe.verify.tasks.items()
        ),
    ]
    for path, reference in references:
        if reference is None or reference.source != "path":
            continue
        text = reference.locator
        absolute = text.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:", text)
        if absolute or any(ord(c) < 32 for c in text) or "\\" in text:
            line, column = _nearest(path, places)
            yield Problem(
                f"{'.'.join(path)}: {text!r} is not a path relative to the recipe",
                f"{name}:{line}:{column}",
                "write it relative to the recipe's folder, with '/': 'path:../documents'",
            )


def _tier_problems(recipe: Recipe, places: Mapping[KeyPath, Place], name: str) -> Iterator[Problem]:
    """Yield a problem for each tier that a model names in vain, and for each that holds nothing."""

    def problem(path: KeyPath, message: str, hint: str) -> Problem:
        line, column = _nearest(path, places)
        return Problem(f"{'.'.join(map(str, path))}: {message}", f"{name}:{line}:{column}", hint)

    known = list(recipe.tiers)
    for key, model in recipe.models.items():
        for index, tier in enumerate(model.tiers):
            path = ("models", key, "tiers", index)
            if tier not in known:
                near = _did_you_mean(tier, known)
                hint = near or f"there is: {', '.join(known)}" if known else _NO_TIERS
                yield problem(path, f"there is no tier called {tier!r}", hint)
            elif tier in model.tiers[:index]:
                yield problem(path, f"{tier!r} stands here twice", "name each tier once")
    for tier in known:
        if not recipe.models_of(tier) and not recipe.corpora:
            hint = "leave the tier out, or give it a model"
            yield problem(("tiers", tier), "a bundle would hold nothing for it", hint)


_NO_TIERS = "this recipe is for one machine; for several, write [tiers.<name>] in place of [target]"


# -- for people who write one ------------------------------------------------------------------------


def starter_recipe(name: str, target: str) -> str:
    """Return the text of a small recipe that `bundler init` writes."""
    safe = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "bundle"
    return _STARTER.format(name=safe, target=target)


_STARTER = """\
# A bundle is a directory that you put on a stick: it runs with no network and nothing installed.
# What would be built, and whether it fits:   bundler plan {name}.toml
# Build it:                                   bundler build {name}.toml
schema = 1

[bundle]
name = "{name}"
title = "My offline library"
platforms = ["linux-x86_64"]

[target]
use = "{target}"                 # the machine it is for; see `bundler targets`

# One bundle for several machines, best first, in place of [target]; the station picks at start:
# [tiers.big]
# use = "rtx-4090"
# [tiers.small]
# use = "cpu-16gb"

[models.chat]
role = "chat"
source = "hf:Qwen/Qwen2.5-1.5B-Instruct"
quant = "auto"                   # the best that fits
context_tokens = 8192            # never cut in silence

# Your own documents (Markdown, HTML, text, PDF), searchable and cited in answers:
# [corpora.documents]
# kind = "folder"
# source = "path:documents"
# title = "My documents"
"""
