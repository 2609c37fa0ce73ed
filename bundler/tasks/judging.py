"""Whether a written answer is right. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import deque

from bundler.tasks.items import WrittenItem


def is_right(written: str, item: WrittenItem, *, scoring: str, extract: str) -> bool:
    r"""Tell whether what a model wrote is a right answer.

    >>> is_right("It is 42.", WrittenItem(1, "?", ("42",)), scoring="exact", extract=r"\d+")
    True
    """
    answer = extracted(written, extract)
    if scoring == "regex":
        return any(re.search(pattern, answer) for pattern in item.answers)
    return plain(answer) in {plain(one) for one in item.answers}


def extracted(written: str, pattern: str) -> str:
    """Return the last that a pattern finds, its group if it has one; "" where it finds nothing."""
    if not pattern:
        return written
    found = deque(re.finditer(pattern, written), maxlen=1)
    return str(found[0][found[0].re.groups] or "") if found else ""


def plain(text: str) -> str:
    """Return a text without what makes no difference: composed, in small letters, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".")
