"""How the next token is drawn: llama.cpp's order of samplers, with our own random numbers.

llama.cpp's own chain (common/sampling.cpp) cuts to the `top_k` likeliest, then to the fewest that
make up `top_p`, then to those at least `min_p` times as likely as the first, then flattens or
sharpens by the temperature, and draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of the samplers; the defaults are llama.cpp's (common/common.h)."""

    temperature: float = 0.8
    top_k: int = 40
    """0 or less: all."""
    top_p: float = 0.95
    min_p: float = 0.05
    source: str = "llama.cpp's defaults"


_FIELDS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_KEY = "general.sampling."
_BOUNDS = {
    "temperature": (0.0, 10.0),
    "top_k": (0, 1 << 20),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
}


def recommended(read: Callable[[str], str | None]) -> Sampling:
    """Return what a model recommends in its GGUF header; llama.cpp's defaults for the rest.

    Args:
        read: returns the value of a key of the header as text, None when it has none. What is no
            number, or none that can be meant, is passed over.
    """
    found: dict[str, float | int] = {}
    for key, name in _FIELDS.items():
        given = read(_KEY + key)
        try:
            value = float(given) if given is not None else None
        except ValueError:
            continue
        low, high = _BOUNDS[name]
        if value is not None and low <= value <= high:
            found[name] = int(value) if name == "top_k" else value
    if not found:
        return Sampling()
    return Sampling(**found, source="the model's own header")  # type: ignore[arg-type]


def pick(logits: npt.NDArray[np.float32], sampling: Sampling, chance: float) -> int:
    """Return the token drawn by `chance` (0 to 1); the likeliest where the temperature is 0."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    count = logits.size if sampling.top_k <= 0 else min(sampling.top_k, logits.size)
    kept = np.argpartition(-logits, count - 1)[:count]
    # Stable among equals, so that two machines draw the same.
    kept = kept[np.lexsort((kept, -logits[kept]))]
    wide = logits[kept].astype(np.float64)
    likely = _softmax(wide)
    before = np.cumsum(likely) - likely
    allowed = (before < sampling.top_p) & (likely >= sampling.min_p * likely[0])
    allowed[0] = True
    weights = _softmax(wide[allowed] / sampling.temperature)
    place = int(np.searchsorted(np.cumsum(weights), chance, side="right"))
    return int(kept[allowed][min(place, weights.size - 1)])


def entropy(logits: npt.NDArray[np.float32]) -> float:
    """Return the entropy of the whole distribution, in nats."""
    likely = _softmax(logits.astype(np.float64))
    some = likely[likely > 0]
    return float(-(some * np.log(some)).sum())


def _softmax(values: Floats) -> Floats:
    exact: Floats = np.exp(values - values.max())
    exact /= exact.sum()
    return exact
