"""The JSON Schema of recipes, for editors. What a key means is said once: in its docstring."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from bundler.recipe import Recipe
from bundler.value import Value


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of recipes, as `bundler schema` prints it."""
    schema = Recipe.model_json_schema(by_alias=True)
    _describe(schema, Recipe)
    for kind in _kinds(Value):
        if kind.__name__ in schema["$defs"]:
            _describe(schema["$defs"][kind.__name__], kind)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bundler recipe",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _kinds(base: type[Value]) -> Iterator[type[Value]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _describe(schema: dict[str, Any], kind: type[Value]) -> None:
    """Put the docstrings of a value's attributes into its JSON Schema."""
    tables = [schema, *schema.get("anyOf", ())]
    properties = {k: v for table in tables for k, v in table.get("properties", {}).items()}
    for parent in reversed(kind.__mro__):
        if issubclass(parent, Value) and parent is not Value:
            for name, text in _attribute_docstrings(parent).items():
                key = kind.model_fields[name].alias or name
                properties[key].setdefault("description", text)


def _attribute_docstrings(kind: type[Value]) -> dict[str, str]:
    """Return attribute → docstring (the string behind its annotation), from the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
