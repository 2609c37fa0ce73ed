"""Reads files of questions with known answers: strangers' files, so everything is looked at. Pure.

Multiple choice comes as MMLU's CSV (`question,A,B,C,D,answer`, with a header or without one), as JSON
lines (`{"question": …, "choices": […], "answer": …}`; the answer as a number from 0, as a letter or as
the choice's own text), or as Parquet with the same columns, as MMLU lies on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bundler.tasks.items import LETTERS, Asked, ChoiceItem, Item, WrittenItem
from bundler.tasks.reading_code import read_code
from bundler.tasks.reading_forms import read_forms
from bundler.tasks.rows import Form, Wrong, read_rows

_MMLU = ("question", "a", "b", "c", "d", "answer")
_QUESTION_ANSWER = ("question", "answer")
_MOST_PATTERN_CHARACTERS = 1000


def read_questions(data: bytes, path: str, asked: Asked) -> tuple[Item, ...]:
    """Return the questions of a task, read as its answers are judged.

    Raises:
        RecipeError, UnsafeInput: as `rows.read_rows`.
    """
    if asked.kind == "code":
        return read_code(data, path)
    if asked.scoring in ("json", "language"):
        return read_forms(data, path, asked)
    if asked.kind == "written":
        return read_written(data, path, patterns=asked.scoring == "regex")
    return read_choices(data, path)


def read_choices(data: bytes, path: str) -> tuple[ChoiceItem, ...]:
    """Return the questions of a file, each with its choices.

    Raises:
        RecipeError, UnsafeInput: as `rows.read_rows`.
    """
    return read_rows(data, path, _CHOICES)


def read_written(data: bytes, path: str, *, patterns: bool = False) -> tuple[WrittenItem, ...]:
    """Return the questions of a file that are answered freely; `patterns`: by regular expressions.

    Raises:
        RecipeError, UnsafeInput: as `rows.read_rows`.
    """
    form = Form(
        _QUESTION_ANSWER, _QUESTION_ANSWER, partial(_written, patterns=patterns),
        columns_hint="the columns are question,answer",
    )  # fmt: skip
    return read_rows(data, path, form)


def _choice(row: int, given: Mapping[str, Any]) -> ChoiceItem | Wrong:
    """Return a question whose parts have been looked at."""
    question, answer = given["question"], given["answer"]
    choices = given.get("choices")
    if set("abcd") <= given.keys() and not isinstance(choices, list):
        choices = [given[letter] for letter in "abcd"]
    if not isinstance(question, str) or not question.strip():
        return Wrong("has no question")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        return Wrong("has choices that are no list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        return Wrong(f"has {len(choices)} choices; 2 to {len(LETTERS)} can be asked")
    if not all(one.strip() for one in choices):
        return Wrong("has an empty choice")
    try:
        right = _right(answer, choices)
    except Wrong as wrong:
        return wrong
    return ChoiceItem(row, question, tuple(choices), right)


def _right(answer: Any, choices: Sequence[str]) -> int:
    """Return which choice an answer means: a number from 0, the choice's text, or its letter."""
    shown = f"{answer!r:.60}"
    letters = f"A to {LETTERS[len(choices) - 1]}"
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
        raise Wrong(f"its answer {shown} is outside the choices: 0 to {len(choices) - 1}")
    if not isinstance(answer, str) or not answer.strip():
        raise Wrong(f"its answer {shown} is neither a number, a letter nor a choice")
    wanted = answer.strip()
    meant = {number for number, one in enumerate(choices) if one.strip() == wanted}
    if len(wanted) == 1 and wanted.upper() in LETTERS[: len(choices)]:
        meant.add(LETTERS.index(wanted.upper()))
    if len(meant) > 1:
        raise Wrong(f"its answer {shown} means more than one choice", "give its number, from 0")
    if not meant:
        raise Wrong(f"its answer {shown} is outside the choices: {letters}, or the text of one")
    return meant.pop()


def _written(row: int, given: Mapping[str, Any], *, patterns: bool) -> WrittenItem | Wrong:
    """Return a question that is answered freely, whose parts have been looked at."""
    question, answer = given["question"], given["answer"]
    if not isinstance(question, str) or not question.strip():
        return Wrong("has no question")
    several = answer if isinstance(answer, list) else [answer]
    answers = [str(one) if _is_number(one) else one for one in several]
    if not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        return Wrong(f"its answer {answer!r:.60} is neither a text, a number nor a list of them")
    for pattern in answers if patterns else ():
        if len(pattern) > _MOST_PATTERN_CHARACTERS:
            return Wrong(f"has a pattern of more than {_MOST_PATTERN_CHARACTERS:,} characters")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return Wrong(f"its answer {pattern!r:.60} is no regular expression: {error}")
    return WrittenItem(row, question, tuple(answers))


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


_CHOICES = Form(
    _MMLU, ("question", "choices", "answer"), _choice,
    columns_hint="MMLU's columns are question,A,B,C,D,answer (in JSON lines and Parquet question, "
    "choices, answer); other numbers of choices go in those",
)  # fmt: skip
