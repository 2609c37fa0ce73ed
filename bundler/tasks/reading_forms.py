"""Reads tasks that ask for a form: an answer in JSON, or in a language. Pure.

Each has `question`, and if it likes its own `schema` (an object) or `language` (ISO 639-3); the rest
goes by what the recipe says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from bundler.tasks.items import Asked, FormItem
from bundler.tasks.languages import KNOWN_LANGUAGES
from bundler.tasks.rows import Form, Wrong, read_rows
from bundler.tasks.schemas import schema_problem


def read_forms(data: bytes, path: str, asked: Asked) -> tuple[FormItem, ...]:
    """Return the questions of a file whose answers have to have a form.

    Raises:
        RecipeError, UnsafeInput: as `rows.read_rows`.
    """
    item = _in_json if asked.scoring == "json" else _in_language
    form = Form(
        ("question",), ("question",), partial(item, asked=asked),
        optional=("schema", "language"), columns_hint="the column is question",
    )  # fmt: skip
    return read_rows(data, path, form)


def _in_json(row: int, given: Mapping[str, Any], *, asked: Asked) -> FormItem | Wrong:
    if wrong := _no_question(given):
        return wrong
    own = given.get("schema")
    if own is None or own == "":
        return FormItem(row, given["question"], asked.schema, "")
    text = own if isinstance(own, str) else json.dumps(own, sort_keys=True)
    if problem := schema_problem(text):
        return Wrong(f"its schema cannot be used: {problem}")
    return FormItem(row, given["question"], text, "")


def _in_language(row: int, given: Mapping[str, Any], *, asked: Asked) -> FormItem | Wrong:
    if wrong := _no_question(given):
        return wrong
    language = given.get("language") or asked.language
    if not language:
        return Wrong(
            "says no language, and neither does the recipe",
            "give the row a `language`, or the task: language = 'deu'",
        )
    if language not in KNOWN_LANGUAGES:
        return Wrong(
            f"its language {language!r:.40} is none that is told",
            "ISO 639-3 codes, as 'deu'; docs/guide.md, Tasks, says which",
        )
    return FormItem(row, given["question"], "", language)


def _no_question(given: Mapping[str, Any]) -> Wrong | None:
    question = given["question"]
    if isinstance(question, str) and question.strip():
        return None
    return Wrong("has no question")
