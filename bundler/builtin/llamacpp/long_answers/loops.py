"""How repetitive an answer is: pure figures over its token ids."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WINDOW_TOKENS = 512
"""Over which repeated word groups are counted (arXiv 2310.10226 has this window)."""
GROUP_TOKENS = 4
LONGEST_PERIOD = 256
LEAST_TURNS = 3
LEAST_LOOP_TOKENS = 64
"""A loop is a tail that says one thing at least three times over, and for at least this long."""
_LEVEL = 6  # zlib's own default: ratios are comparable only at one level


@dataclass(frozen=True, slots=True)
class Repetition:
    """How much of an answer was there before."""

    loop_period_tokens: int
    """Length of what the answer repeats without end at its tail; 0 when it does not."""
    repeated_share: float
    """Share of groups of 4 tokens that were in the same 512 before: 1 - unique / all, averaged."""
    distinct_pairs: float
    """Unique pairs of neighbours by all pairs (distinct-2)."""
    compression_ratio: float
    """Bytes of the tokens' numbers (32 bits each) by those of their zlib form."""


def repetition(tokens: Sequence[int]) -> Repetition:
    """Measure an answer of at least one token.

    >>> repetition([1, 2] * 100).loop_period_tokens
    2
    >>> repetition(range(100)).repeated_share
    0.0
    """
    ids = np.asarray(tokens, np.int64)
    raw = ids.astype("<i4").tobytes()
    return Repetition(
        loop_period(ids),
        _repeated_share(ids),
        _unique_share(ids, 2),
        len(raw) / len(zlib.compress(raw, _LEVEL)),
    )


def loop_period(ids: npt.NDArray[np.int64], least_tokens: int = LEAST_LOOP_TOKENS) -> int:
    """Return the shortest period that the tail has kept for long enough; 0 when there is none.

    For each period the tokens are held against those one period earlier: a run of equal ones at the
    end, and the period itself, is what repeats.
    """
    for period in range(1, min(LONGEST_PERIOD, ids.size // LEAST_TURNS) + 1):
        least = max(LEAST_TURNS * period, least_tokens)
        if ids.size < least:
            continue
        tail = ids[ids.size - least :]
        if (tail[period:] == tail[:-period]).all():
            return period
    return 0


def _repeated_share(ids: npt.NDArray[np.int64]) -> float:
    windows = [
        ids[first : first + WINDOW_TOKENS]
        for first in range(0, max(1, ids.size - GROUP_TOKENS + 1), WINDOW_TOKENS)
    ]
    shares = [
        1.0 - _unique_share(window, GROUP_TOKENS)
        for window in windows
        if window.size >= GROUP_TOKENS
    ]
    return float(np.mean(shares)) if shares else 0.0


def _unique_share(ids: npt.NDArray[np.int64], length: int) -> float:
    if ids.size < length:
        return 1.0
    groups = np.lib.stride_tricks.sliding_window_view(ids, length)
    return len(np.unique(groups, axis=0)) / len(groups)
