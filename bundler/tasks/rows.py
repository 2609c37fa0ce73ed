"""Rows of a stranger's file of questions: CSV, JSON lines or Parquet; everything is bounded. Pure, but
for Parquet, which a child process reads.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

from bundler.errors import Problem, RecipeError, UnsafeInput
from bundler.tasks.items import ChoiceItem, CodeItem, FormItem, WrittenItem

MOST_FILE_BYTES = 64 << 20
"""MMLU whole is 7 MB."""
MOST_LINE_BYTES = 1 << 17
"""Python's csv has the same limit for a field; a question of 128 KiB fits no context."""
MOST_ROWS = 200_000
_SHOWN_PROBLEMS = 20
_SHOWN_COLUMNS = 12


class Wrong(Exception):
    """What is wrong with one row, and what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


_Item = TypeVar("_Item", ChoiceItem, WrittenItem, FormItem, CodeItem)
_Rows = Iterator[tuple[int, _Item | Wrong]]


@dataclass(frozen=True)
class Form(Generic[_Item]):
    """What a row must have, and how a question is made of it."""

    columns: tuple[str, ...]
    """Of a CSV; none where such questions do not come as one."""
    needed: tuple[str, ...]
    """Keys of an object of JSON lines."""
    item: Callable[[int, Mapping[str, Any]], _Item | Wrong]
    """Of the row's number, from 1, and what it holds."""
    optional: tuple[str, ...] = ()
    """Keys that are looked at, too."""
    columns_hint: str = ""
    same: Callable[[_Item], str] | None = None
    """What no two questions may have in common, where there is such a thing."""


def read_rows(data: bytes, path: str, form: Form[_Item]) -> tuple[_Item, ...]:
    """Return the questions of a file; `path` is its name, whose suffix tells the format.

    Raises:
        RecipeError: another format, wrong columns, no questions, or what the form says of a row; with
            the file and the row of each (the first twenty).
        UnsafeInput: it is too large, has a line that is, or is not UTF-8.
    """
    items: list[_Item] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for row, made in _rows(data, path, form):
        if not isinstance(made, Wrong) and form.same is not None:
            made = _told_apart(row, made, form.same(made), seen)
        if isinstance(made, Wrong):
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


def _told_apart(row: int, made: _Item, mark: str, seen: dict[str, int]) -> _Item | Wrong:
    first = seen.setdefault(mark, row)
    if first == row:
        return made
    return Wrong(
        f"is the task of row {first} again: {mark[:60]!r}", "each counts once: leave it out"
    )


def _rows(data: bytes, path: str, form: Form[_Item]) -> _Rows[_Item]:
    suffix = PurePosixPath(path).suffix.lower()
    if len(data) > MOST_FILE_BYTES:
        raise UnsafeInput(f"is larger than {MOST_FILE_BYTES >> 20} MiB", where=path)
    if suffix == ".csv" and form.columns:
        return _csv_rows(_text(data, path), path, form)
    if suffix == ".jsonl":
        return _json_rows(_text(data, path), form)
    if suffix == ".parquet":
        return _parquet_rows(data, path, form)
    known = "JSON lines (.jsonl) or Parquet (.parquet)"
    raise RecipeError(
        f"is no file of such questions: {'CSV (.csv), ' * bool(form.columns)}{known}",
        where=path,
        hint="convert it; the suffix of its name tells the format",
    )


def _text(data: bytes, path: str) -> str:
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


def _csv_rows(text: str, path: str, form: Form[_Item]) -> _Rows[_Item]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: Sequence[str] | None = None
    row = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                if columns is None:
                    columns, is_header = _columns(fields, form, f"{path}:{row}")
                    if is_header:
                        row = reader.line_num + 1
                        continue
                yield row, _of_csv(fields, columns, row, form)
            row = reader.line_num + 1
    except csv.Error as error:
        yield row, Wrong(f"is no CSV: {error}", "a quote may be missing")


def _columns(fields: Sequence[str], form: Form[_Item], where: str) -> tuple[Sequence[str], bool]:
    """Return the names of the columns, and whether the first row has them."""
    wanted = form.columns
    names = [field.strip().casefold() for field in fields]
    if set(wanted) <= set(names):
        return names, True
    if len(fields) == len(wanted) and not set(names) & {"question", "answer"}:
        return wanted, False
    missing = [name for name in wanted if name not in names]
    raise _wrong_columns([f.strip() for f in fields], missing, where, form.columns_hint)


def _wrong_columns(
    there: Sequence[str], missing: Sequence[str], where: str, hint: str
) -> RecipeError:
    return RecipeError(
        f"has wrong columns: {', '.join(one[:40] for one in there[:_SHOWN_COLUMNS])}; missing: "
        f"{', '.join(n.upper() if len(n) == 1 else n for n in missing)}",
        where=where,
        hint=hint,
    )


def _of_csv(
    fields: Sequence[str], columns: Sequence[str], row: int, form: Form[_Item]
) -> _Item | Wrong:
    if len(fields) != len(columns):
        return Wrong(f"has {len(fields)} columns, the first row has {len(columns)}")
    given = dict(zip(columns, fields, strict=True))
    return form.item(
        row, given | {"answer": given["answer"].strip()} if "answer" in given else given
    )


# -- JSON lines --------------------------------------------------------------------------------------


def _json_rows(text: str, form: Form[_Item]) -> _Rows[_Item]:
    for row, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            yield row, _of_json(line, row, form)


def _of_json(line: str, row: int, form: Form[_Item]) -> _Item | Wrong:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Wrong(f"is no JSON: {str(error)[:200]}", "one object a line")
    if not isinstance(given, Mapping):
        return Wrong("is no JSON object", "one object a line")
    missing = [name for name in form.needed if name not in given]
    if missing:
        found = ", ".join(str(key)[:40] for key in list(given)[:_SHOWN_COLUMNS])
        return Wrong(f"lacks {', '.join(missing)}; it has: {found or 'nothing'}")
    return form.item(row, given)


# -- Parquet -----------------------------------------------------------------------------------------


def _parquet_rows(data: bytes, path: str, form: Form[_Item]) -> _Rows[_Item]:
    from bundler.tasks.parquet import read_table

    there, text = read_table(data, path, (*form.needed, *form.optional), MOST_FILE_BYTES)
    if missing := [name for name in form.needed if name not in there]:
        raise _wrong_columns(there, missing, path, form.columns_hint)
    return _json_rows(text, form)
