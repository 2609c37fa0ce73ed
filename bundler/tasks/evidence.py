"""What paired answers show of a loss, and how many questions a limit asks for. Pure.

Both models answer the same questions, so only those count on which they differ: `lost` (only the
unquantized one is right) and `gained` (only the quantized one is).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bundler.proof import TaskResult

CERTAINTY = 0.95
_Z_CERTAIN = 1.6448536269514722  # 95 % of a normal distribution lie below
_Z_POWER = 0.8416212335729143  # 80 %
_STEPS = 60
"""Halvings of [-1, 1]: below what a float can tell apart."""


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    >>> mcnemar_p(0, 0), mcnemar_p(5, 0)
    (1.0, 0.0625)
    """
    count = lost + gained
    tail = sum(math.comb(count, k) for k in range(min(lost, gained) + 1))
    return float(min(1.0, 2 * tail / 2**count))


def loss_at_most(lost: int, gained: int, items: int) -> float:
    """Return the one-sided upper bound of 95 % of the share that was lost.

    It is the score bound of Tango (Statistics in Medicine 17, 1998, 891-908), which unlike a
    bootstrap keeps its width where no question or few tell the models apart.

    >>> round(loss_at_most(0, 0, 100), 4)
    0.0263
    """
    low, high = (lost - gained) / items, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _score(lost, gained, items, middle) > -_Z_CERTAIN:
            low = middle
        else:
            high = middle
    return high


def _score(lost: int, gained: int, items: int, difference: float) -> float:
    """Return Tango's statistic for a true difference: how many standard errors it is away."""
    a = 2 * items
    b = -lost - gained + (2 * items - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    other = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = items * (2 * other + difference * (1 - difference))
    apart = lost - gained - items * difference
    if variance <= 0:
        return 0.0 if apart == 0 else math.copysign(math.inf, apart)
    return apart / math.sqrt(variance)


def least_items(limit: float) -> int:
    """Return how many questions it takes at least: with fewer not even equal answers show the limit.

    `loss_at_most(0, 0, n)` is z²/(n + z²).

    >>> least_items(0.02)
    133
    """
    return math.ceil(_Z_CERTAIN**2 * (1 / limit - 1))


def items_needed(result: TaskResult, limit: float) -> int:
    """Return how many questions would show with 80 % power that nothing is lost beyond the limit.

    For a model that in truth loses nothing and differs from the other as often as it did here:
    (z₀.₉₅ + z₀.₈₀)² · share that differs / limit² (Liu et al., Statistics in Medicine 21, 2002,
    231-245, with a true difference of 0).
    """
    differs = (result.lost + result.gained) / result.items
    return max(least_items(limit), math.ceil((_Z_CERTAIN + _Z_POWER) ** 2 * differs / limit**2))


def detail_of(result: TaskResult, limit: float) -> str:
    """Say what stands behind the figure of a gate: both scores, and whether there was enough to see."""
    said = (
        f"{result.model_right} of {result.items} right, the unquantized model {result.control_right}: "
        f"{100 * result.loss:+.1f} % lost, with {CERTAINTY:.0%} certainty at most "
        f"{100 * result.loss_at_most:.1f} %"
    )
    needed = items_needed(result, limit)
    if needed <= result.items:
        return said
    return f"{said}; to judge by a limit of {limit:g} reliably takes about {needed:,} questions"
