"""Reads files of questions with known answers: strangers' files, so everything is bounded. Pure.

Multiple choice comes as MMLU's CSV (`question,A,B,C,D,answer`, with a header or without one) or as
JSON lines (`{"question": …, "choices": […], "answer": …}`; the answer as a number from 0, as a
letter or as the choice's own text).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

from bundler.errors import Problem, RecipeError, UnsafeInput
from bundler.tasks.items import LETTERS, ChoiceItem, Item, WrittenItem

MOST_FILE_BYTES = 64 << 20
"""MMLU whole is 7 MB."""
MOST_LINE_BYTES = 1 << 17
"""Python's csv has the same limit for a field; a question of 128 KiB fits no context."""
MOST_ROWS = 200_000
_SHOWN_PROBLEMS = 20
_MMLU = ("question", "a", "b", "c", "d", "answer")
_QUESTION_ANSWER = ("question", "answer")
_MOST_PATTERN_CHARACTERS = 1000
_FORMATS = "CSV (.csv) or JSON lines (.jsonl)"


class _Wrong(Exception):
    """What is wrong with one row, and what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


_Item = TypeVar("_Item", ChoiceItem, WrittenItem)
_Rows = Iterator[tuple[int, _Item | _Wrong]]


@dataclass(frozen=True)
class _Form(Generic[_Item]):
    """What a row must have, and how a question is made of it: (row, question, choices, answer)."""

    columns: tuple[str, ...]
    item: Callable[[int, Any, Any, Any], _Item | _Wrong]


def read_questions(data: bytes, path: str, kind: str, scoring: str) -> tuple[Item, ...]:
    """Return the questions of a task of this kind; as `read_choices` and `read_written`."""
    if kind == "written":
        return read_written(data, path, patterns=scoring == "regex")
    return read_choices(data, path)


def read_choices(data: bytes, path: str) -> tuple[ChoiceItem, ...]:
    """Return the questions of a file, each with its choices.

    Raises:
        RecipeError, UnsafeInput: as `_read`.
    """
    return _read(data, path, _CHOICES)


def read_written(data: bytes, path: str, *, patterns: bool = False) -> tuple[WrittenItem, ...]:
    """Return the questions of a file that are answered freely; `patterns`: by regular expressions.

    Raises:
        RecipeError, UnsafeInput: as `_read`.
    """
    return _read(data, path, _Form(_QUESTION_ANSWER, partial(_written, patterns=patterns)))


def _read(data: bytes, path: str, form: _Form[_Item]) -> tuple[_Item, ...]:
    """Return the questions of a file; `path` is its name, whose suffix tells the format.

    Raises:
        RecipeError: another format, wrong columns, no questions, answers outside the choices; with
            the file and the row of each (the first twenty).
        UnsafeInput: it is too large, has a line that is, or is not UTF-8.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise RecipeError(f"is no file of questions: {_FORMATS}", where=path, hint=_other(suffix))
    text = _text(data, path)
    items: list[_Item] = []
    problems: list[Problem] = []
    rows = _csv_rows(text, path, form) if suffix == ".csv" else _json_rows(text, form)
    for row, made in rows:
        if isinstance(made, _Wrong):
            problems.append(Problem(made.message, f"{path}:{row}", made.hint))
            if len(problems) == _SHOWN_PROBLEMS:
                problems.append(Problem("there may be more: reading stopped here", path))
                break
        elif len(items) == MOST_ROWS:
            raise UnsafeInput(f"has more than {MOST_ROWS:,} questions", where=path)
        else:
            items.append(made)
    if problems:
        raise RecipeError(problems)
    if not items:
        raise RecipeError("holds no questions", where=path, hint="give a file with some")
    return tuple(items)


def _other(suffix: str) -> str:
    if suffix != ".parquet":
        return "convert it; the suffix of its name tells the format"
    return (
        'Parquet needs a reader that bundler does not bring; convert it once: python -c "import '
        "pandas; pandas.read_parquet('x.parquet').to_json('x.jsonl', orient='records', lines=True)\""
    )


def _text(data: bytes, path: str) -> str:
    if len(data) > MOST_FILE_BYTES:
        raise UnsafeInput(f"is larger than {MOST_FILE_BYTES >> 20} MiB", where=path)
    for number, line in enumerate(io.BytesIO(data), 1):
        if len(line) > MOST_LINE_BYTES:
            raise UnsafeInput(
                f"has a line of more than {MOST_LINE_BYTES >> 10} KiB", where=f"{path}:{number}"
            )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = data.count(b"\n", 0, error.start) + 1
        raise UnsafeInput(
            "is not UTF-8 text", where=f"{path}:{line_number}", hint="convert it to UTF-8"
        ) from error


# -- CSV -------------------------------------------------------------------------------------------


def _csv_rows(text: str, path: str, form: _Form[_Item]) -> _Rows[_Item]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: Sequence[str] | None = None
    row = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                if columns is None:
                    columns, is_header = _columns(fields, form.columns, f"{path}:{row}")
                    if is_header:
                        row = reader.line_num + 1
                        continue
                yield row, _of_csv(fields, columns, row, form)
            row = reader.line_num + 1
    except csv.Error as error:
        yield row, _Wrong(f"is no CSV: {error}", "a quote may be missing")


def _columns(
    fields: Sequence[str], wanted: Sequence[str], where: str
) -> tuple[Sequence[str], bool]:
    """Return the names of the columns, and whether the first row has them."""
    names = [field.strip().casefold() for field in fields]
    if set(wanted) <= set(names):
        return names, True
    if len(fields) == len(wanted) and not set(names) & {"question", "answer"}:
        return wanted, False
    missing = [name for name in wanted if name not in names]
    raise RecipeError(
        f"has wrong columns: {', '.join(f.strip()[:40] for f in fields[:12])}; missing: "
        f"{', '.join(n.upper() if len(n) == 1 else n for n in missing)}",
        where=where,
        hint=(
            "MMLU's columns are question,A,B,C,D,answer; other numbers of choices go in JSON lines"
            if wanted == _MMLU
            else "the columns are question,answer"
        ),
    )


def _of_csv(
    fields: Sequence[str], columns: Sequence[str], row: int, form: _Form[_Item]
) -> _Item | _Wrong:
    if len(fields) != len(columns):
        return _Wrong(f"has {len(fields)} columns, the first row has {len(columns)}")
    given = dict(zip(columns, fields, strict=True))
    choices = [given[letter] for letter in "abcd" if letter in form.columns]
    return form.item(row, given["question"], choices, given["answer"].strip())


# -- JSON lines --------------------------------------------------------------------------------------


def _json_rows(text: str, form: _Form[_Item]) -> _Rows[_Item]:
    for row, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            yield row, _of_json(line, row, form)


def _of_json(line: str, row: int, form: _Form[_Item]) -> _Item | _Wrong:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _Wrong(f"is no JSON: {str(error)[:200]}", "one object a line")
    if not isinstance(given, Mapping):
        return _Wrong("is no JSON object", "one object a line")
    wanted = ("question", "choices", "answer") if form.columns == _MMLU else form.columns
    missing = [name for name in wanted if name not in given]
    if missing:
        found = ", ".join(str(key)[:40] for key in list(given)[:12])
        return _Wrong(f"lacks {', '.join(missing)}; it has: {found or 'nothing'}")
    return form.item(row, given["question"], given.get("choices"), given["answer"])


# -- what a row holds --------------------------------------------------------------------------------


def _choice(row: int, question: Any, choices: Any, answer: Any) -> ChoiceItem | _Wrong:
    """Return a question whose parts have been looked at."""
    if not isinstance(question, str) or not question.strip():
        return _Wrong("has no question")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        return _Wrong("has choices that are no list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        return _Wrong(f"has {len(choices)} choices; 2 to {len(LETTERS)} can be asked")
    if not all(one.strip() for one in choices):
        return _Wrong("has an empty choice")
    try:
        right = _right(answer, choices)
    except _Wrong as wrong:
        return wrong
    return ChoiceItem(row, question, tuple(choices), right)


def _right(answer: Any, choices: Sequence[str]) -> int:
    """Return which choice an answer means: a number from 0, the choice's text, or its letter."""
    shown = f"{answer!r:.60}"
    letters = f"A to {LETTERS[len(choices) - 1]}"
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
        raise _Wrong(f"its answer {shown} is outside the choices: 0 to {len(choices) - 1}")
    if not isinstance(answer, str) or not answer.strip():
        raise _Wrong(f"its answer {shown} is neither a number, a letter nor a choice")
    wanted = answer.strip()
    meant = {number for number, one in enumerate(choices) if one.strip() == wanted}
    if len(wanted) == 1 and wanted.upper() in LETTERS[: len(choices)]:
        meant.add(LETTERS.index(wanted.upper()))
    if len(meant) > 1:
        raise _Wrong(f"its answer {shown} means more than one choice", "give its number, from 0")
    if not meant:
        raise _Wrong(f"its answer {shown} is outside the choices: {letters}, or the text of one")
    return meant.pop()


def _written(
    row: int, question: Any, _choices: Any, answer: Any, *, patterns: bool
) -> WrittenItem | _Wrong:
    """Return a question that is answered freely, whose parts have been looked at."""
    if not isinstance(question, str) or not question.strip():
        return _Wrong("has no question")
    given = answer if isinstance(answer, list) else [answer]
    answers = [str(one) if _is_number(one) else one for one in given]
    if not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        return _Wrong(f"its answer {answer!r:.60} is neither a text, a number nor a list of them")
    for pattern in answers if patterns else ():
        if len(pattern) > _MOST_PATTERN_CHARACTERS:
            return _Wrong(f"has a pattern of more than {_MOST_PATTERN_CHARACTERS:,} characters")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return _Wrong(f"its answer {pattern!r:.60} is no regular expression: {error}")
    return WrittenItem(row, question, tuple(answers))


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


_CHOICES = _Form(_MMLU, _choice)
