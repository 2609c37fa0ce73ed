"""Whether a written answer is right. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import deque
from typing import Any, NoReturn

from bundler.tasks.items import FormItem, WrittenItem
from bundler.tasks.languages import is_in
from bundler.tasks.schemas import follows

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL | re.IGNORECASE)


def is_right(written: str, item: WrittenItem | FormItem, *, scoring: str, extract: str) -> bool:
    r"""Tell whether what a model wrote is a right answer, or one in the right form.

    Raises:
        ValueError: the schema that it has to follow cannot be used.

    >>> is_right("It is 42.", WrittenItem(1, "?", ("42",)), scoring="exact", extract=r"\d+")
    True
    """
    answer = extracted(written, extract)
    if isinstance(item, FormItem):
        return is_in(answer, item.language) if item.language else _is_json(answer, item.schema)
    if scoring == "regex":
        return any(re.search(pattern, answer) for pattern in item.answers)
    return plain(answer) in {plain(one) for one in item.answers}


def _is_json(answer: str, schema: str) -> bool:
    """Tell whether an answer, without a fence around the whole, is JSON and follows a schema."""
    fenced = _FENCED.fullmatch(answer)
    try:
        value: Any = json.loads(fenced[1] if fenced else answer, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return False
    return follows(value, schema) if schema else True


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is Python's, not JSON")


def extracted(written: str, pattern: str) -> str:
    """Return the last that a pattern finds, its group if it has one; "" where it finds nothing."""
    if not pattern:
        return written
    found = deque(re.finditer(pattern, written), maxlen=1)
    return str(found[0][found[0].re.groups] or "") if found else ""


def plain(text: str) -> str:
    """Return a text without what makes no difference: composed, in small letters, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".")
