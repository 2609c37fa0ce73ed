"""What a recipe asks for when it asks for a mix: `mixed`, `mixed@4.6bpw`, `mixed@6.2GB`. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from bundler.errors import Problem, RecipeError
from bundler.value import parse_bytes

PREFIX = "gguf:"
"""May stand before the name of any quantization: all of them are GGUF."""
_BITS = re.compile(r"(\d{1,2}(?:\.\d{1,4})?)bpw", re.IGNORECASE)
_HINT = "write quant = 'mixed@4.6bpw', 'mixed@6.2GB', or 'mixed' alone for all that fits"
_MOST_BITS = 32.0


class Asked(NamedTuple):
    """A budget as it was written; all that is left where both are None."""

    bits_per_weight: float | None = None
    """Of the whole file's weights."""
    file_bytes: int | None = None
    """Size of the file."""


def is_mix(name: str) -> bool:
    """Tell whether a quantization's name asks for a mix, well or badly written."""
    return name.partition("@")[0] == "mixed"


def asked(name: str) -> Asked:
    """Read the name of a mix. Raises RecipeError."""
    _, at, budget = name.partition("@")
    if not at:
        return Asked()
    match = _BITS.fullmatch(budget.strip())
    if match is not None:
        bits = float(match[1])
        if 0 < bits <= _MOST_BITS:
            return Asked(bits_per_weight=bits)
        raise _wrong(name, "is no number of bits that a weight can have")
    try:
        size = parse_bytes(budget)
    except ValueError as error:
        raise _wrong(name, f"has no budget that can be read: {error}") from error
    if not re.search("[a-z]", budget, re.IGNORECASE) or size == 0:
        raise _wrong(name, "says neither bits per weight (bpw) nor a size (GB, GiB)")
    return Asked(file_bytes=size)


def _wrong(name: str, why: str) -> RecipeError:
    return RecipeError(Problem(f"{name!r:.60} {why}", hint=_HINT, key="quant"))


def written(bits_per_weight: float) -> str:
    """Return the name of a mix of so many bits per weight.

    >>> written(4.5999)
    'mixed@4.6bpw'
    """
    return f"mixed@{bits_per_weight:.2f}".rstrip("0").rstrip(".") + "bpw"
