"""Whether JSON can be the list of a delta, by its shape alone: told before anything is built of it."""

from __future__ import annotations

import json
from typing import Any

MAX_DELTA_BYTES = 64 << 20
"""A span takes about 150 bytes: this is a terabyte in pieces of 8 MiB, several times over."""
_LEAST_VALUE_BYTES = 12
"""Written as we write it, a list has a line for each value."""
_SPARE_VALUES = 4096
_MOST_KEYS = 16
_KEYS = frozenset({
    "schema_version", "before", "after", "name", "version", "created", "manifest_sha256", "builder",
    "zstd", "makers", "moved", "path", "source", "rebuilt", "spans", "kind", "offset", "size_bytes",
    "pack", "piece", "packed", "near", "plain", "packs", "pieces", "sha256", "files",
})  # fmt: skip


def misshapen(data: bytes) -> str:
    """Return why the bytes cannot be the list of a delta, "" when they may be one.

    >>> misshapen(b'{"run": 1}')
    "it says 'run', which no list of an update does"
    """
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > _SPARE_VALUES + len(data) // _LEAST_VALUE_BYTES:
        return "it has more values than a list of its size can have"
    try:
        json.loads(data, object_pairs_hook=_known)
    except (ValueError, RecursionError) as error:
        return str(error)[:200]
    return ""


def _known(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object that no list has; keep nothing of it."""
    for key, _ in pairs:
        if key not in _KEYS:
            raise ValueError(f"it says {key[:40]!r}, which no list of an update does")
    if len(pairs) > _MOST_KEYS:
        raise ValueError("it says something twice")
