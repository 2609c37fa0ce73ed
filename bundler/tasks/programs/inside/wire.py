"""How two sandboxes talk: one JSON line each, plain values only, so that no object crosses over.

A value arrives as what it is made of: an integer is an `int`, whatever class it had over there, and
what is no plain value becomes a number by which it can be handed back. So nothing that one side
defines, an `__eq__` that is always true least of all, runs on the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

MOST_MESSAGE_BYTES = 4 << 20
_PLAIN_INTEGER = 1 << 53
"""Larger ones go as hexadecimal, which takes no time that grows with the square of the digits."""


class Unsendable(Exception):
    """What came is no message, or one that is too large."""


def encoded(value: Any, other: Callable[[Any], int]) -> Any:
    """Return a value as JSON types; `other` gives a number for what is none of the plain ones."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < _PLAIN_INTEGER else ["i", hex(number)]
    if isinstance(value, float):
        return ["n", float.hex(float(value))]
    if isinstance(value, str):
        return str(value)
    if isinstance(value, complex):
        return ["c", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex()]
    if isinstance(value, dict):
        pairs = [[encoded(k, other), encoded(v, other)] for k, v in dict.items(value)]
        return ["d", pairs]
    for tag, kind in _GROUPS.items():
        if isinstance(value, kind):
            return [tag, [encoded(one, other) for one in kind.__iter__(value)]]
    return ["r", other(value)]


def decoded(given: Any, other: Callable[[int], Any]) -> Any:
    """Return the value; `other` gives what stands for a number. Raises what a wrong message does."""
    if not isinstance(given, list):
        return given
    tag, *rest = given
    if tag in _GROUPS:
        return _GROUPS[tag](decoded(one, other) for one in rest[0])
    if tag == "d":
        return {decoded(k, other): decoded(v, other) for k, v in rest[0]}
    return _SINGLE[tag](*rest) if tag in _SINGLE else other(int(rest[0]))


_GROUPS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_SINGLE: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "n": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "b": bytes.fromhex,
}


class Line:
    """One end of a line between two processes."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self._read_from, self._write_to = read_from, write_to
        self._before = b""

    def say(self, message: Any) -> None:
        """Write one message. Raises Unsendable where it is too large."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MOST_MESSAGE_BYTES:
            raise Unsendable("a value is too large to be looked at")
        while data:
            data = data[os.write(self._write_to, data) :]

    def hear(self) -> Any:
        """Return the next message. Raises EOFError at the end, Unsendable where it is too large."""
        parts, size = [self._before], len(self._before)
        while b"\n" not in parts[-1]:
            part = os.read(self._read_from, 1 << 16)
            if not part:
                raise EOFError
            parts.append(part)
            size += len(part)
            if size > 2 * MOST_MESSAGE_BYTES:
                raise Unsendable("a message without end")
        line, _, self._before = b"".join(parts).partition(b"\n")
        return json.loads(line)
