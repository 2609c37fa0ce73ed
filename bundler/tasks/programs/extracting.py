"""The program in what a model wrote. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bundler.tasks.items import CodeItem

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_AFTER = (
    "\ndef ",
    "\nclass ",
    "\nif ",
    "\nprint",
    "\nassert",
    "\n#",
    "\n@",
    '\n"""',
    "\n'''",
    "\n```",
)
"""Where a completion of a function has gone past its end, as HumanEval's authors cut it."""
_AFTER_PROGRAM = ("\nif ", "\nprint", "\nassert", '\n"""', "\n'''", "\n```")


def program_in(written: str, item: CodeItem) -> str:
    """Return the program that an answer holds, whole: with its beginning, if the question has one.

    Of several blocks of code the first one that defines what is asked for is taken, of none the
    answer itself, cut where it goes on with something else.
    """
    defines = _defining(item.defines)
    blocks = list(blocks_of(written))
    code = next((one for one in blocks if defines.search(one)), blocks[0] if blocks else None)
    if code is None:
        whole = defines.search(written) is not None
        code = _cut(written, _AFTER_PROGRAM if whole or not item.begins_program else _AFTER)
    if not item.begins_program:
        return code
    # Its helpers and imports stand in the question; what is defined again, the later one wins.
    return f"{item.question}\n{code}" if defines.search(code) else item.question + code


def blocks_of(written: str) -> Iterator[str]:
    """Yield the blocks of code between fences; the last one may have no end."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(written):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]):
            yield written[opened.end() + 1 : fence.start()]
            opened = None
    if opened is not None:
        yield written[opened.end() + 1 :]


def _defining(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"^(?:(?:async\s+)?def\s+|class\s+)?{re.escape(name)}(?=\s*[(:=])", re.MULTILINE
    )


def _cut(written: str, marks: tuple[str, ...]) -> str:
    ends = (written.find(mark, 1) for mark in marks)
    return written[: min((end for end in ends if end >= 0), default=len(written))]
