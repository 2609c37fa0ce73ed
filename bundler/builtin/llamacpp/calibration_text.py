"""Whether a text is one to calibrate a model on: long enough, and in a language that it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.divergence import log_softmax
from bundler.builtin.llamacpp.session import Model

LEAST_TOKENS = 16_384
"""Below about thirty windows the sums of rarely used channels, and of experts, are still moving."""
_STRANGE_SHARE = 0.25
"""A perplexity above this share of the vocabulary is nearly that of guessing."""
_STRANGE_BYTES = 1.6
"""Bytes of text for each token, of a tokenizer with many words: English has about four, and a text in
a script that the tokenizer was not made for falls apart into single bytes."""
_MANY_WORDS = 4096
_LOOKED_AT = 4
_ROWS = 32  # at once: a vocabulary of 152k in float64 takes 39 MB


class Listener:
    """Reads the first windows' predictions along with the calibration."""

    def __init__(self) -> None:
        self._losses: list[npt.NDArray[np.float64]] = []

    def wants(self, number: int) -> bool:
        return number < _LOOKED_AT

    def hear(self, logits: npt.NDArray[np.float32], window: Sequence[int]) -> None:
        """Take the logits of a window; its second half is scored."""
        for first in range(len(window) // 2, len(window) - 1, _ROWS):
            last = min(first + _ROWS, len(window) - 1)
            following = np.array(window[first + 1 : last + 1], np.int64)
            rows = log_softmax(logits[first:last])
            self._losses.append(-rows[np.arange(len(following)), following])

    @property
    def perplexity(self) -> float | None:
        """How surprised the model was; None when it heard nothing."""
        if not self._losses:
            return None
        return float(math.exp(min(700.0, float(np.concatenate(self._losses).mean()))))


def warnings_about(
    model: Model, parts: Sequence[Sequence[int]], perplexity: float | None
) -> list[str]:
    """Return what a person should know of the text, with the numbers."""
    tokens = sum(map(len, parts))
    found = []
    if tokens < LEAST_TOKENS:
        found.append(
            f"the calibration text has {tokens:,} tokens; under {LEAST_TOKENS:,} the importance of "
            "rarely used channels is a guess"
        )
    size = sum(len(model.text(part).encode()) for part in parts[:_LOOKED_AT])
    bytes_each = size / max(1, sum(map(len, parts[:_LOOKED_AT])))
    if model.vocabulary >= _MANY_WORDS and bytes_each < _STRANGE_BYTES:
        found.append(
            f"the calibration text takes one token for every {bytes_each:.1f} bytes: the tokenizer "
            "hardly knows its language or script"
        )
    if perplexity is not None and perplexity > _STRANGE_SHARE * model.vocabulary:
        found.append(
            f"the model reads the calibration text with a perplexity of {perplexity:,.0f}, guessing "
            f"among its {model.vocabulary:,} words would be {model.vocabulary:,}: it is in another "
            "language than the model's, or the model is not trained"
        )
    return found
