"""Whether JSON can be a manifest, by its shape alone: told before anything is built of it.

What reads a manifest says of each value what is wrong with it, which is a kilobyte for three bytes
of a file that was made for that. So a manifest has a largest size, a least size for each value in
it, and few values outside its long lists, of which a reader says no more than the first fault.
"""

from __future__ import annotations

import json
from typing import Any

MAX_MANIFEST_BYTES = 32 << 20
"""It lists 7 TiB in large files (72 bytes for each 16 MiB of them), or about 120,000 small ones
(270 bytes each, with their names in parity sets). `seal` makes no larger one."""
LEAST_VALUE_BYTES = 24
"""Written as we write it, a manifest has at least 30 bytes for each value."""
_SPARE_VALUES = 4096
_LONG_LISTS = frozenset({"files", "segments", "slices", "sets"})
_IN_LONG_LISTS = frozenset({
    "path", "size_bytes", "sha256", "executable", "segments", "first", "count", "file", "files",
    "slices", "set_id", "block_bytes", "data_blocks", "recovery_blocks",
})  # fmt: skip
MOST_OTHER_VALUES = 100_000
"""Software components are the most of them: some thousand, with a few values each."""


def misshapen(data: bytes) -> str:
    """Return why the bytes cannot be a manifest, "" when they may be one.

    >>> misshapen(b'{"name": "home", "files": []}')
    ''
    """
    if len(data) > MAX_MANIFEST_BYTES:
        return f"it has more than {MAX_MANIFEST_BYTES >> 20} MiB"
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > _SPARE_VALUES + len(data) // LEAST_VALUE_BYTES:
        return "it has more values than a manifest of its size can have"
    try:
        json.loads(data, object_pairs_hook=_Others())
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""


class _Others:
    """Counts the values that are in no long list, and keeps none of them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            self.count += key not in _IN_LONG_LISTS
            if isinstance(value, list) and key not in _LONG_LISTS:
                self.count += len(value)
        if self.count > MOST_OTHER_VALUES:
            raise ValueError("it has more values than a manifest has beside its files")
