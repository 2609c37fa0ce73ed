"""What parity will take of a bundle whose files are not known yet: plans know sums. Pure."""

from __future__ import annotations

import math

_SAID_SHARE = 0.001  # names and checksums, in proportion to large files
_ROUNDED = 1.02  # whole blocks
_SMALL_FILES_BYTES = 3 << 19  # what a runtime's thousand small files cost


def planned_parity_bytes(size_bytes: int, percent: float) -> int:
    """Return what parity will take of a bundle whose files are not known yet; rather too much."""
    if not percent:
        return 0
    return math.ceil(size_bytes * _planned_share(percent)) + _SMALL_FILES_BYTES


def room_without_parity(capacity_bytes: int, percent: float) -> int:
    """Return how large a bundle may be so that it fits with its parity."""
    if not percent:
        return capacity_bytes
    return max(0, int((capacity_bytes - _SMALL_FILES_BYTES) / (1 + _planned_share(percent))) - 1)


def _planned_share(percent: float) -> float:
    return percent / 100 * _ROUNDED + _SAID_SHARE
