"""How far one model's predictions are from another's, summed up window by window. Pure numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bundler.errors import StepFailed

Floats = npt.NDArray[np.float64]
_ROWS = 32
"""Rows in work at once: 32 rows of 152k words in float64 are 39 MB."""


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """Return log-probabilities of each row, in float64: float32 shows at a KLD of 1e-6."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


@dataclass
class Scores:
    """What is kept of each scored token."""

    losses: list[Floats] = field(default_factory=list)
    """Negative log-likelihood of the token that came, under the model."""
    reference_losses: list[Floats] = field(default_factory=list)
    divergences: list[Floats] = field(default_factory=list)
    agreements: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(
        self,
        reference: npt.NDArray[np.float32] | None,
        logits: npt.NDArray[np.float32],
        following: npt.NDArray[np.int64],
    ) -> None:
        """Score rows of logits; `following` are the tokens that really came next."""
        for first in range(0, len(following), _ROWS):
            rows = slice(first, first + _ROWS)
            base = None if reference is None else reference[rows]
            self._add_rows(base, logits[rows], following[rows])

    def _add_rows(
        self,
        reference: npt.NDArray[np.float32] | None,
        logits: npt.NDArray[np.float32],
        following: npt.NDArray[np.int64],
    ) -> None:
        for figures, whose in ((logits, "the model"), (reference, "the reference model")):
            if figures is not None and not np.isfinite(figures).all():
                raise StepFailed(
                    f"{whose} gives logits that are not finite: it overflows or is damaged",
                    hint="choose another quantization, or check the published weights",
                )
        index = np.arange(len(following))
        model = log_softmax(logits)
        self.losses.append(-model[index, following])
        if reference is None:
            return
        base = log_softmax(reference)
        self.reference_losses.append(-base[index, following])
        # Below zero only by rounding: the divergence of two distributions cannot be.
        self.divergences.append(np.maximum((np.exp(base) * (base - model)).sum(axis=-1), 0.0))
        self.agreements.append(base.argmax(axis=-1) == model.argmax(axis=-1))

    def summary(self) -> dict[str, float | int]:
        """Return the figures of a `proof.Quality`, as far as they can be had."""
        losses = np.concatenate(self.losses)
        perplexity = math.exp(losses.mean())
        out: dict[str, float | int] = {
            "tokens": int(losses.size),
            "perplexity": perplexity,
            # First order: the derivative of exp is itself (as llama-perplexity reports it).
            "perplexity_standard_error": perplexity * _standard_error(losses),
        }
        if self.divergences:
            divergences = np.concatenate(self.divergences)
            out |= {
                "reference_perplexity": math.exp(np.concatenate(self.reference_losses).mean()),
                "kld_mean": float(divergences.mean()),
                "kld_standard_error": _standard_error(divergences),
                "kld_median": float(np.median(divergences)),
                "kld_p99": float(np.quantile(divergences, 0.99)),
                "kld_max": float(divergences.max()),
                "top1_agreement": float(np.concatenate(self.agreements).mean()),
            }
        return out


def _standard_error(values: Floats) -> float:
    if values.size < 2:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(values.size))
