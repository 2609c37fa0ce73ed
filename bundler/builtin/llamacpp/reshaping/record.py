"""What was found, tried and decided about a model's shape: a frozen record that goes with the model."""

from __future__ import annotations

from typing import Literal

from bundler.value import Value

Way = Literal["off", "scale", "rotate", "rotate+scale"]
"""Ways to reshape a model; `off` leaves it alone."""


class Scaled(Value):
    """One place whose channels could be scaled."""

    site: str
    kind: Literal["norm", "up", "value"]
    of: Literal["", "activations", "gain", "outliers"] = ""
    """What the factors were made of; empty where the place was left as it is."""
    exponent: float = 0.0
    """Of the activations or the gain; of outliers, to how many times the median they were cut."""
    error_before: float
    """The readers' relative errors when they are rounded, added up."""
    error_after: float


class Sameness(Value):
    """How far a reshaped model's logits are from the original's, both in single precision."""

    worst: float
    """Largest difference of a logit, relative to the standard deviation of its row."""
    typical: float
    """Root mean square of the same."""
    tokens: int
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it is the same function."""
        return self.worst <= self.limit


class Trial(Value):
    """One way with the damage measured after quantizing."""

    way: Way
    quant: str
    kld_mean: float
    kld_standard_error: float
    top1_agreement: float
    perplexity: float
    size_bytes: int
    sameness: Sameness | None = None
    scaled: tuple[Scaled, ...] = ()
    seed: int | None = None


class Decision(Value):
    """Which way was taken, and why."""

    way: Way
    reason: str
    outlier_ratio: float
    """The worst channel over the median one, of the inputs that a fold can change."""
    outlier_site: str
    trials: tuple[Trial, ...] = ()
    text_sha256: str = ""
    """Of the text that was measured on: calibration text, never the scoring one."""
