"""What an inspection means for four bits, in plain words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bundler.inspection import SINK_SHARE, UNEVEN_RATIO, GatedNorm, Outliers

_BLOCK = 32
"""Weights that share one scale in Q4_K, Q5_K and Q4_0."""


def meaning(
    before: Outliers, after: Outliers | None, gated: tuple[GatedNorm, ...], refused: tuple[str, ...]
) -> tuple[str, ...]:
    """Return sentences for whoever has to decide what to do."""
    return tuple(
        sentence
        for part in (
            _channels(before), _tokens(before), _sinks(before), _remedy(before, after, refused),
            (f"{one.kind} ({one.evidence}): {one.words}" for one in gated),
            _no_gates(gated),
        )
        for sentence in part
    )  # fmt: skip


def _channels(found: Outliers) -> Iterator[str]:
    worst = found.worst()
    ratio = (
        f"{worst.channel_ratio:.0f}" if worst.channel_ratio >= 10 else f"{worst.channel_ratio:.1f}"
    )
    if worst.channel_ratio < UNEVEN_RATIO:
        yield (
            f"The channels are even: the worst of all ({worst.place}, channel {worst.worst_channel}) is "
            f"{ratio} times the median one. Four bits lose here what they always lose, and no more."
        )
        return
    many = sum(spread.channel_ratio >= UNEVEN_RATIO for spread in found.spreads)
    yield (
        f"At {many} of {len(found.spreads)} places a channel is {UNEVEN_RATIO:g} times the median one or "
        f"more; the worst is channel {worst.worst_channel} of {worst.place}, {ratio} times. The weights "
        f"that read such a channel are small and their errors are multiplied by it; {_BLOCK} weights "
        f"share one scale, so these are rounded as coarsely as their larger neighbours. An importance "
        "matrix makes up for part of it."
    )
    norms = [spread for spread in found.spreads if spread.kind == "norm"]
    if norms:
        crowded = max(norms, key=lambda spread: spread.near_zero)
        yield (
            f"Behind a norm {crowded.near_zero:.0%} of the values are near zero at most "
            f"({crowded.place}, over all tokens; of normally distributed values 4 % are), and "
            f"{max(spread.near_zero_worst for spread in norms):.0%} for the worst single token."
        )


def _tokens(found: Outliers) -> Iterator[str]:
    massive = [one for one in found.massive if one.massive]
    if massive:
        most = max(massive, key=lambda one: abs(one.value))
        yield (
            f"Massive activations behind {len(massive)} of {len(found.massive)} layers: up to "
            f"{most.value:.0f} in channel {most.channel} at the token {most.text!r} (position "
            f"{most.position}), {most.ratio:.0f} times that token's median. They serve the norm as a "
            "way to scale all else down (residual sinks): cutting them off damages the model. Weights "
            "in GGUF are rounded and activations are not, so they cost little here."
        )
    elif found.massive:
        most = max(found.massive, key=lambda one: one.ratio)
        yield (
            f"There are no massive activations: the largest value over its token's median is "
            f"{most.ratio:.0f} times (layer {most.layer}, token {most.text!r}); 1000 times is one."
        )


def _sinks(found: Outliers) -> Iterator[str]:
    if not found.sinks:
        return
    sinks = [sink for sink in found.sinks if sink.most_share > SINK_SHARE]
    if not sinks:
        yield "No token draws the attention of all the others (no attention sink)."
        return
    most = max(sinks, key=lambda sink: sink.most_share)
    yield (
        f"Attention sinks in {len(sinks)} of {len(found.sinks)} layers: in layer {most.layer} the token "
        f"{most.text!r} (position {most.position}) draws {most.most_share:.0%} of the attention of all "
        "later ones. That is how trained attention does nothing; keep the beginning of a context in "
        "the cache."
    )


def _remedy(before: Outliers, after: Outliers | None, refused: tuple[str, ...]) -> Iterator[str]:
    if after is not None:
        old, new = before.worst(), after.worst()
        same = next((s for s in after.spreads if s.place == old.place), new)
        yield (
            f"After mitigation the worst place so far ({old.place}) is at {same.channel_ratio:.1f} times "
            f"instead of {old.channel_ratio:.1f}, and the worst of all is {new.place} with "
            f"{new.channel_ratio:.1f}. Whether that is worth anything is told only by measuring the "
            "quantized model."
        )
    elif refused:
        yield (
            "Scaling or rotating channels is not possible: "
            + "; ".join(refused)
            + ". What remains is "
            "an importance matrix and more bits for the tensors concerned."
        )
    elif before.worst().channel_ratio >= UNEVEN_RATIO:
        yield (
            "What can be done, least first: an importance matrix (the default), more bits for the "
            "tensors concerned, scaling channels, rotating them. The last two change no result in full "
            "precision and make an ordinary file; see them with --mitigate."
        )


def _no_gates(gated: tuple[GatedNorm, ...]) -> Iterator[str]:
    if not any(one.kind != "output gate" for one in gated):
        yield (
            "Its norms have no gates. A gate (GatedNorm) has to be trained with the model: it cannot be "
            "added to this one."
        )
