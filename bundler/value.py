"""Frozen values, their canonical form, and the units people write them in.

Every stage of a build hands one frozen value to the next. A value's digest is the SHA-256 of its
canonical JSON: sorted keys, no insignificant whitespace, UTF-8 (RFC 8785 in spirit; floats appear
only where they were written by a person and are printed by `repr`, so they are stable too).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

Json = dict[str, Any] | list[Any] | str | int | float | bool | None


class Value(BaseModel):
    """Base of all values: frozen, strict about unknown keys, documented by attribute docstrings.

    Pydantic would read those docstrings from the source at every start, and build every validator,
    which takes longer than a plan; `documented` reads them when somebody asks.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="constants", defer_build=True
    )


def canonical_json(value: Any) -> bytes:
    """Return `value` (JSON types or a `Value`) as its one canonical byte string.

    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def pretty_json(value: Any) -> str:
    """Return `value` as JSON for people and diffs: sorted, one space per level, final newline."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
MAX_BYTES = 2**60
"""An exbibyte: above it a size is a slip of the pen."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """Turn a size as a person writes it into bytes: `"23.5 GB"`, `"512MiB"`, `4096`.

    GB is 10^9 and GiB is 2^30 (IEC 80000-13), as everywhere in this program.

    >>> parse_bytes("1.5 GiB")
    1610612736
    """
    if isinstance(text, int) and not isinstance(text, bool):
        count: float = text
    else:
        match = _SIZE.fullmatch(text) if isinstance(text, str) and len(text) < 64 else None
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"{text!r:.60} is not a size; write for example '24 GB' or '512 MiB'")
        count = float(match[1]) * _UNITS[match[2].lower()]
    if not 0 <= count <= MAX_BYTES:
        raise ValueError(f"{text!r:.60} is not a size that a machine of today can have")
    return int(count)


def format_bytes(count: int) -> str:
    """Write an amount of memory for people, in binary units with three significant digits.

    >>> format_bytes(0), format_bytes(1610612736)
    ('0 B', '1.50 GiB')
    """
    if abs(count) < 1024:
        return f"{count} B"
    amount, power = count / 1024, 0
    while abs(amount) >= 1024 and power < 3:
        amount, power = amount / 1024, power + 1
    decimals = 2 if abs(amount) < 10 else 1 if abs(amount) < 100 else 0
    return f"{amount:.{decimals}f} {('KiB', 'MiB', 'GiB', 'TiB')[power]}"


def format_size(count: int) -> str:
    """Write the size of a file, a stick or a download as their makers do: in decimal units.

    >>> format_size(999), format_size(1_610_612_736), format_size(60_220_000_000)
    ('999 B', '1.61 GB', '60.2 GB')
    """
    if abs(count) < 1000:
        return f"{count} B"
    amount, power = count / 1000, 0
    while abs(amount) >= 999.5 and power < 3:
        amount, power = amount / 1000, power + 1
    decimals = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{decimals}f} {('kB', 'MB', 'GB', 'TB')[power]}"


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"},
            ],
            "examples": ["24 GB", "512 MiB"],
        },
        mode="validation",
    ),
]
"""A number of bytes; a recipe may write it as `"24 GB"`."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
# Names that Windows reserves whatever their extension (learn.microsoft.com, "Naming Files").
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}


def check_name(text: str) -> str:
    """Return `text` if it can be a file name on every filesystem a bundle meets, else ValueError."""
    if not _NAME.fullmatch(text) or text.split(".", maxsplit=1)[0] in _RESERVED or ".." in text:
        raise ValueError(
            f"{text!r} cannot be a name: use 1-64 of a-z 0-9 . _ - (no '..', first and last a "
            "letter or digit, none that Windows reserves such as 'con')"
        )
    return text


def check_relative_path(text: str) -> str:
    """Return `text` if it is a safe relative POSIX path, else raise ValueError.

    Refuses absolute paths, `..`, empty parts, backslashes, drive letters, control characters,
    parts of more than 255 bytes, trailing dots or spaces and names that Windows reserves: all of
    them either escape their folder or cannot be written to a FAT or NTFS stick.
    """
    if not text or len(text.encode("utf-8", "surrogatepass")) > 1024:
        raise ValueError("an empty or overlong path")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise ValueError(f"{text!r} has a control or invalid character")
    if any(c in '\\<>:"|?*' for c in text):
        raise ValueError(f"{text!r} has a character that Windows filesystems cannot hold")
    for part in text.split("/"):
        if part in ("", ".", "..") or part[-1] in " ." or len(part.encode()) > 255:
            raise ValueError(f"{text!r} is not a plain relative path")
        if part.split(".")[0].lower() in _RESERVED:
            raise ValueError(f"{text!r} uses a name that Windows reserves")
    return str(PurePosixPath(text))


Name = Annotated[str, AfterValidator(check_name)]
"""A name chosen by a person that becomes a file name: lower case, safe on every filesystem."""

RelativePath = Annotated[str, AfterValidator(check_relative_path)]
"""A path inside a bundle, a repository or a folder: relative, with `/`, safe on every filesystem."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_sha256(text: str) -> str:
    """Return `text` if it is 64 lower-case hexadecimal digits, else raise ValueError."""
    if not _SHA256.fullmatch(text):
        raise ValueError("expected a SHA-256: 64 hexadecimal digits in lower case")
    return text


Sha256 = Annotated[str, AfterValidator(check_sha256)]
"""A SHA-256 digest as 64 lower-case hexadecimal digits."""
