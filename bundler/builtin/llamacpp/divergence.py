"""How far one model's predictions are from another's, summed up window by window. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bundler.errors import StepFailed

Floats = npt.NDArray[np.float64]
ROWS = 32
"""Rows in work at once: 32 rows of 152k words in float64 are 39 MB."""
LIKELIEST = 5
"""Tokens whose agreement is counted beside that of the likeliest one."""
PARTS = 4
"""Neighbouring parts of a window whose figures are told apart."""
LEAST_PART_TOKENS = 64
"""Tokens of such a part: its mean says something."""


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """Return log-probabilities of each row, in float64: float32 shows at a KLD of 1e-6."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def checked(logits: npt.NDArray[np.float32], whose: str) -> npt.NDArray[np.float32]:
    """Return logits. Raises StepFailed when some are not finite."""
    if not np.isfinite(logits).all():
        raise StepFailed(
            f"{whose} gives logits that are not finite: it overflows or is damaged",
            hint="choose another quantization, or check the published weights",
        )
    return logits


def likeliest(logits: npt.NDArray[Any], count: int = LIKELIEST) -> npt.NDArray[np.intp]:
    """Return the likeliest tokens of each row, likeliest first; of equals the lower number first."""
    count = min(count, logits.shape[-1])
    if count == 1:
        best: npt.NDArray[np.intp] = logits.argmax(axis=-1)[:, None]
        return best
    # The partition finds the last value that is in; sorting the few above it settles the order.
    some = np.sort(np.argpartition(logits, -count, axis=-1)[:, -count:], axis=-1)
    order = np.argsort(-np.take_along_axis(logits, some, -1), axis=-1, kind="stable")
    found = np.take_along_axis(some, order, -1)
    found[:, 0] = logits.argmax(axis=-1)
    return found


class KeptRows(Protocol):
    """What was kept of a reference's rows: see `kept_scores.Kept`."""

    @property
    def losses(self) -> Floats: ...

    @property
    def top(self) -> npt.NDArray[np.int32]: ...

    def log_probabilities(self) -> Floats: ...

    def part(self, rows: slice) -> KeptRows: ...


@dataclass
class Scores:
    """What is kept of each scored token."""

    losses: list[Floats] = field(default_factory=list)
    """Negative log-likelihood of the token that came, under the model."""
    reference_losses: list[Floats] = field(default_factory=list)
    divergences: list[Floats] = field(default_factory=list)
    agreements: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    shared: list[Floats] = field(default_factory=list)
    """Of the likeliest tokens of both, the share that is the same."""
    watch: Callable[[Floats, Floats], None] | None = None
    """Is shown the log-probabilities of reference and model, some rows at a time."""

    def add(
        self,
        reference: npt.NDArray[np.float32] | None,
        logits: npt.NDArray[np.float32],
        following: npt.NDArray[np.int64],
    ) -> None:
        """Score rows of logits; `following` are the tokens that really came next."""
        for first in range(0, len(following), ROWS):
            rows = slice(first, first + ROWS)
            model = self._model_rows(logits[rows], following[rows])
            if reference is not None:
                mine = reference[rows]
                base = log_softmax(checked(mine, "the reference model"))
                came = base[np.arange(len(mine)), following[rows]]
                self._compare(base, -came, likeliest(mine), model, logits[rows])

    def add_kept(
        self, reference: KeptRows, logits: npt.NDArray[np.float32],
        following: npt.NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Do the same against what was kept of the reference."""
        for first in range(0, len(following), ROWS):
            rows = slice(first, first + ROWS)
            model, part = self._model_rows(logits[rows], following[rows]), reference.part(rows)
            self._compare(part.log_probabilities(), part.losses, part.top, model, logits[rows])

    def _model_rows(
        self, logits: npt.NDArray[np.float32], following: npt.NDArray[np.int64]
    ) -> Floats:
        model = log_softmax(checked(logits, "the model"))
        self.losses.append(-model[np.arange(len(following)), following])
        return model

    def _compare(
        self, base: Floats, losses: Floats, top: npt.NDArray[Any], model: Floats,
        logits: npt.NDArray[np.float32],
    ) -> None:  # fmt: skip
        self.reference_losses.append(losses)
        if self.watch is not None:
            self.watch(base, model)
        # Below zero only by rounding: the divergence of two distributions cannot be.
        self.divergences.append(np.maximum((np.exp(base) * (base - model)).sum(axis=-1), 0.0))
        mine = likeliest(logits)
        self.agreements.append(top[:, 0] == mine[:, 0])
        self.shared.append((top[:, :, None] == mine[:, None, :]).any(axis=-1).mean(axis=-1))

    def summary(self) -> dict[str, float | int]:
        """Return the figures of a `proof.Quality`, as far as they can be had."""
        losses = np.concatenate(self.losses)
        perplexity = math.exp(losses.mean())
        out: dict[str, float | int] = {
            "tokens": int(losses.size),
            "perplexity": perplexity,
            # First order: the derivative of exp is itself (as llama-perplexity reports it).
            "perplexity_standard_error": perplexity * standard_error(losses),
        }
        if self.divergences:
            divergences = np.concatenate(self.divergences)
            out |= {
                "reference_perplexity": math.exp(np.concatenate(self.reference_losses).mean()),
                "kld_mean": float(divergences.mean()),
                "kld_standard_error": standard_error(divergences),
                "kld_median": float(np.median(divergences)),
                "kld_p99": float(np.quantile(divergences, 0.99)),
                "kld_max": float(divergences.max()),
                "top1_agreement": float(np.concatenate(self.agreements).mean()),
            }
        return out

    def further(self) -> dict[str, Any]:
        """Return the figures that a `proof.Quality` of before did not have."""
        agreements = np.concatenate(self.agreements).astype(np.float64)
        shared = np.concatenate(self.shared)
        losses, base = np.concatenate(self.losses), np.concatenate(self.reference_losses)
        reference, ratio = math.exp(base.mean()), math.exp((losses - base).mean())
        return {
            "kld_p999": self.quantile(0.999),
            "top1_standard_error": standard_error(agreements),
            "top5_agreement": float(shared.mean()),
            "top5_standard_error": standard_error(shared),
            "reference_perplexity_standard_error": reference * standard_error(base),
            # Of the ratio itself, token by token: what both find hard cancels out.
            "perplexity_ratio_standard_error": ratio * standard_error(losses - base),
        }

    def by_position(self, window_tokens: int) -> list[dict[str, float | int]]:
        """Return the figures of parts of the windows; none where each would have too few tokens."""
        rows = window_tokens - 1 - window_tokens // 2
        arrays = [
            np.concatenate(one).reshape(-1, rows)
            for one in (self.losses, self.reference_losses, self.divergences)
        ]
        if arrays[0].size < PARTS * LEAST_PART_TOKENS or rows < PARTS:
            return []
        edges = [rows * part // PARTS for part in range(PARTS + 1)]
        return [
            _part_figures(window_tokens // 2 + a, [one[:, a:b].ravel() for one in arrays], b - a)
            for a, b in pairwise(edges)
        ]

    def quantile(self, share: float) -> float:
        """Return the divergence that this share of the tokens does not exceed."""
        return float(np.quantile(np.concatenate(self.divergences), share))


def _part_figures(first: int, arrays: list[Floats], length: int) -> dict[str, float | int]:
    losses, base, divergences = arrays
    return {
        "first": first,
        "last": first + length - 1,
        "tokens": int(losses.size),
        "perplexity": math.exp(losses.mean()),
        "perplexity_standard_error": math.exp(losses.mean()) * standard_error(losses),
        "reference_perplexity": math.exp(base.mean()),
        "kld_mean": float(divergences.mean()),
        "kld_standard_error": standard_error(divergences),
    }


def standard_error(values: Floats) -> float:
    """Return the standard error of a mean; nought for fewer than two values."""
    if values.size < 2:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(values.size))
