"""What strangers wrote (names of files above all), made fit for a terminal and for JSON.

A name on a stick may hold anything but `/` and a zero byte: bytes that are no text, and sequences
that clear a screen, colour it or write over the line above. They are shown as what they are.
"""

from __future__ import annotations

import re

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters of C0 and C1, those that turn the direction of writing (Unicode TR 36, 3.1),
and halves of characters: so Python reads bytes that are no UTF-8."""
_IN_TEXT = re.compile(f"[{_CONTROL}]")
_IN_NAME = re.compile(f"[{_CONTROL}\t\n]")


def printable(text: str) -> str:
    r"""Return lines of text without anything that a terminal would obey.

    >>> printable("two\nlines\x1b[2J")
    'two\nlines\\x1b[2J'
    """
    return _IN_TEXT.sub(_shown, text)


def printable_name(text: str) -> str:
    r"""Return a name in one line: what would end the line is shown, too.

    >>> printable_name("start\nerror: none"), printable_name("caf\udce9")
    ('start\\nerror: none', 'caf\\xe9')
    """
    return _IN_NAME.sub(_shown, text)


def printable_json(text: str) -> str:
    r"""Return JSON that says the same, all of which can be encoded and shown.

    >>> printable_json('{"path": "caf\udce9"}')
    '{"path": "caf\\udce9"}'
    """
    return _IN_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] in "\t\n":
        return {"\t": "\\t", "\n": "\\n"}[match[0]]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text, as Python reads names
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
