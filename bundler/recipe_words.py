"""Values of a recipe as they are written in one: people find their own words again. Pure."""

from __future__ import annotations

from typing import Any

LONGEST_SHOWN = 120


def as_written(value: Any) -> str:
    """Return a value as it is written in TOML; nothing for tables, and for what is too long.

    >>> as_written("23.5 GB"), as_written(True), as_written(["Q8_0", "Q6_K"]), as_written({"a": 1})
    ('"23.5 GB"', 'true', '["Q8_0", "Q6_K"]', '')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    text = ""
    if isinstance(value, str) and value.isprintable():
        text = f'"{value}"'
    elif isinstance(value, list) and value:
        parts = [as_written(one) for one in value]
        text = f"[{', '.join(parts)}]" if all(parts) else ""
    return text if len(text) <= LONGEST_SHOWN else ""
