"""JSON Schemas of strangers: whether one can be used, and whether a value follows it. Pure.

Nothing is fetched: a schema may point into itself only. A regular expression in one may take for
ever over a value: who asks `follows` limits the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_MOST_PATTERN_CHARACTERS = 1000
_POINTERS = ("$ref", "$dynamicRef", "$recursiveRef")


def schema_problem(text: str) -> str:
    """Return what is wrong with a schema, given as JSON text; "" when it can be used."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            return "it is no JSON object"
        # Of these first: a schema of schemas is asked nothing of a stranger's address.
        found = next(_refused(schema), "")
        kind = validator_for(schema, default=None if "$schema" in schema else _latest())
        if found or kind is None:
            return found or f"its $schema {schema['$schema']!r:.80} is no known draft"
        kind.check_schema(schema)
    except SchemaError as error:
        return f"{error.message:.200}"
    except ValueError as error:
        return f"it is no JSON: {error!s:.200}"
    except RecursionError:
        return "it is too deep"
    return ""


def _latest() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator


def _refused(schema: Any) -> Iterator[str]:
    """Yield what a schema must not have."""
    for key, value in _pairs(schema):
        if key in _POINTERS and isinstance(value, str) and not value.startswith("#"):
            yield f"{key} {value[:80]!r} points elsewhere, and nothing is fetched"
        patterns = [value] if key == "pattern" else []
        if key == "patternProperties" and isinstance(value, dict):
            patterns = list(value)
        for pattern in patterns:
            if isinstance(pattern, str) and (wrong := _pattern_problem(pattern)):
                yield wrong


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield str(key), one
            yield from _pairs(one)
    elif isinstance(value, list):
        for one in value:
            yield from _pairs(one)


def _pattern_problem(pattern: str) -> str:
    if len(pattern) > _MOST_PATTERN_CHARACTERS:
        return f"it has a pattern of more than {_MOST_PATTERN_CHARACTERS:,} characters"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"its pattern {pattern[:60]!r} is no regular expression: {error}"
    return ""


def follows(value: Any, schema_text: str) -> bool:
    """Tell whether a value follows a schema in which `schema_problem` found nothing.

    Raises:
        ValueError: the schema points to what is not in it, or into itself without end.
    """
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    schema = json.loads(schema_text)
    try:
        # An empty registry has nothing and fetches nothing.
        checker = validator_for(schema, default=_latest())(schema, registry=Registry())
        return bool(checker.is_valid(value))
    except Unresolvable as error:
        raise ValueError(f"its schema points to what it does not have: {error!s:.200}") from error
    except RecursionError as error:
        raise ValueError("its schema points into itself without end") from error
