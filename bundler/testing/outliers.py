"""A model with outliers that it did not have, and the same function: a hard case on demand.

Some channels behind each norm are made larger by a power of two and the matrices that read them
smaller by the same, which changes no result (not by one bit, short of the smallest numbers there
are). Rounding then meets what large models grow by themselves: a few channels that dwarf the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bundler.builtin.llamacpp.allocation.matrices import Weights
from bundler.builtin.llamacpp.reshaping.changes import Change, Floats, Reshaping
from bundler.builtin.llamacpp.reshaping.rewriting import rewrite
from bundler.builtin.llamacpp.reshaping.wiring import Wiring, wiring_of

CHANNELS = 4
FACTOR = 32.0


def inject_outliers(
    model: Path, output: Path, *, channels: int = CHANNELS, factor: float = FACTOR, seed: int = 3
) -> tuple[int, ...]:
    """Write a copy of a GGUF model with outlier channels; return which they are.

    Args:
        model: of a known architecture, its weights stored as floats.
        output: the copy, in single precision.
        channels: how many of the residual stream, the same in every layer.
        factor: how much larger they become; a power of two keeps every product exact.
        seed: of the choice of channels.

    Raises:
        RecipeError: the model's wiring is not known.
    """
    weights = Weights(model)
    wiring = wiring_of(weights.header)
    chosen = np.sort(np.random.default_rng(seed).choice(wiring.hidden, channels, replace=False))
    rewrite(weights, _injection(wiring, chosen, factor), output, lambda *_: None)
    return tuple(int(channel) for channel in chosen)


def _injection(
    wiring: Wiring, chosen: np.ndarray[tuple[int], np.dtype[np.int64]], factor: float
) -> Reshaping:
    larger: Floats = np.ones(wiring.hidden, np.float32)
    larger[chosen] = factor
    smaller: Floats = np.float32(1) / larger
    changes = {}
    for norm, readers in wiring.norms.items():
        if norm.startswith("blk."):
            changes[norm] = Change(rows=larger, upright=True)
            changes |= {name: Change(columns=smaller) for name in readers}
    return Reshaping(changes, title=f"outliers injected: {len(chosen)} channels x {factor:g}")
