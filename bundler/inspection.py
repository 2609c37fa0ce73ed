"""What was seen inside a model while it read a text: values that a command shows and draws.

All figures are of activations: the numbers that flow through a model, not those it is made of.
"""

from __future__ import annotations

from typing import Literal

from bundler.value import Value

NEAR_ZERO = 0.05
"""A value counts as near zero below this share of its token's root mean square. Of normally
distributed values 4 % are."""
MASSIVE_VALUE, MASSIVE_RATIO = 100.0, 1000.0
"""A massive activation: above 100 and 1000 times its token's median (Sun et al., arXiv 2402.17762)."""
SINK_SHARE = 0.3
"""A token is an attention sink where it draws more than this share of the attention of all later
ones (Xiao et al., arXiv 2309.17453; Gu et al., arXiv 2410.10781)."""
UNEVEN_RATIO = 8.0
"""Worst channel over the median one from which rounding suffers enough to do something about it."""


class Spread(Value):
    """How one place's values are spread over channels and sizes."""

    place: str
    """`blk.3.attn_norm`: what comes out of that norm, or goes into that matrix."""
    kind: Literal["norm", "input"]
    channels: int
    kurtosis: float
    """Mean fourth power over squared mean square: 3 for a normal distribution."""
    channel_ratio: float
    """The worst channel's root mean square over the median channel's."""
    value_ratio: float
    """The largest value over the median channel's root mean square."""
    worst_channel: int
    beyond_six_sigma: float
    """Share of values beyond six times the root mean square of their window."""
    near_zero: float
    """Share of values near zero, of all tokens."""
    near_zero_worst: float
    """The same of the worst token."""


class Massive(Value):
    """The largest value of the residual stream behind one layer."""

    layer: int
    value: float
    ratio: float
    """Over the median absolute value of its token."""
    channel: int
    position: int
    token: int
    text: str

    @property
    def massive(self) -> bool:
        """Whether it is what the literature calls one."""
        return abs(self.value) > MASSIVE_VALUE and self.ratio > MASSIVE_RATIO


class Sink(Value):
    """Where the attention of one layer goes."""

    layer: int
    first_share: float
    """Share of all later tokens' attention that the window's first one draws."""
    most_share: float
    """The largest such share of any token."""
    position: int
    text: str


class GatedNorm(Value):
    """A gate at a normalization, as configuration or tensors tell."""

    kind: Literal["GatedNorm", "ZeroCenteredGatedNorm", "PreAffine", "output gate"]
    evidence: str
    words: str


class Outliers(Value):
    """One model's activations on one text."""

    title: str
    architecture: str
    quantized: bool
    tokens: int
    spreads: tuple[Spread, ...]
    massive: tuple[Massive, ...]
    sinks: tuple[Sink, ...]

    def worst(self) -> Spread:
        """Return the place with the most uneven channels."""
        return max(self.spreads, key=lambda spread: (spread.channel_ratio, spread.place))


class Inspection(Value):
    """A model before and, where it was asked for, after mitigation."""

    before: Outliers
    after: Outliers | None = None
    way: str = ""
    """How it was mitigated."""
    sameness: float | None = None
    """Largest difference of a logit that the mitigation made, relative to its row's spread."""
    refused: tuple[str, ...] = ()
    """Why it cannot be mitigated, where it cannot."""
    gated: tuple[GatedNorm, ...] = ()
    meaning: tuple[str, ...] = ()
    """What it means for four bits, in plain words."""
    text: str = ""
