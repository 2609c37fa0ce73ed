"""Run a model over a text and sum up what flows through it. Runs only in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.allocation.matrices import Weights
from bundler.builtin.llamacpp.outliers.collecting import Collector, Sums
from bundler.builtin.llamacpp.schemes import UNQUANTIZED
from bundler.builtin.llamacpp.session import Model, open_context, open_model
from bundler.builtin.llamacpp.texts import windows
from bundler.errors import StepFailed
from bundler.inspection import Massive, Outliers, Sink, Spread

_WIDEST_WINDOW = 512


def outliers_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return an `Outliers`.

    Arguments: model, title, text, text_name, tokens.

    Raises:
        UnsafeInput: the file is damaged, or weights are no numbers (tensor and row are named).
        RecipeError: the text is shorter than one window.
        StepFailed: activations overflow.
    """
    path, title = Path(arguments["model"]), str(arguments["title"])
    weights = Weights(path, title)
    weights.check_finite()
    collector = Collector()
    with open_model(path, gpu=False, title=title) as model:
        window = min(_WIDEST_WINDOW, model.trained_context())
        texts = {str(arguments["text_name"]): Path(arguments["text"])}
        most = max(1, int(arguments["tokens"]) // window)
        parts = windows(model, texts, window_tokens=window, most=most)
        # Flash attention never has the shares as a whole, and a micro batch has them in pieces.
        with open_context(
            model, context_tokens=window, batch_tokens=window, micro_batch_tokens=window,
            flash_attention="off", cb_eval=collector.callback,
        ) as context:  # fmt: skip
            for number, part in enumerate(parts):
                collector.begin(part)
                context.clear()
                context.decode(part, logits_from=0)
                collector.finish()
                report((number + 1) * window, len(parts) * window, "tokens")
        found = _outliers(collector, model, parts, weights, title)
    return found.model_dump(mode="json")


def _outliers(
    collector: Collector, model: Model, parts: Sequence[Sequence[int]], weights: Weights, title: str
) -> Outliers:
    spreads = [_spread(place, sums) for place, sums in collector.sums.items()]
    if not spreads:
        raise StepFailed(
            "llama.cpp showed no norm of this model that is known here", where=title,
            hint="its graph has other names than those of Llama-like decoders",
        )  # fmt: skip
    overflowed = [s.place for s in spreads if not np.isfinite([s.kurtosis, s.channel_ratio]).all()]
    if overflowed:
        raise StepFailed(
            f"activations overflow at {overflowed[0]} and {len(overflowed) - 1} other places",
            where=title, hint="take the model in BF16 or F32 instead of F16",
        )  # fmt: skip
    return Outliers(
        title=title,
        architecture=str(weights.header.metadata.get("general.architecture", "")),
        quantized=any(t.type not in UNQUANTIZED for t in weights.header.tensors),
        tokens=sum(len(part) for part in parts),
        spreads=tuple(spreads),
        massive=tuple(
            _massive(collector, layer, model, parts) for layer in sorted(collector.stream)
        ),
        sinks=tuple(_sink(collector, layer, model, parts) for layer in sorted(collector.shares)),
    )


def _spread(place: str, sums: Sums) -> Spread:
    tokens = sums.values // sums.squares.size
    rms = np.sqrt(sums.squares / tokens)
    median = max(float(np.median(rms)), 1e-30)
    mean_square = max(float(sums.squares.sum()) / sums.values, 1e-300)
    return Spread(
        place=place,
        kind="norm" if sums.kind == "norm" else "input",
        channels=sums.squares.size,
        kurtosis=sums.fourths / sums.values / mean_square**2,
        channel_ratio=float(rms.max()) / median,
        value_ratio=sums.largest / median,
        worst_channel=int(rms.argmax()),
        beyond_six_sigma=sums.beyond / sums.values,
        near_zero=sums.near_zero / sums.values,
        near_zero_worst=sums.near_zero_worst,
    )


def _massive(
    collector: Collector, layer: int, model: Model, parts: Sequence[Sequence[int]]
) -> Massive:
    found = collector.stream[layer]
    token = parts[found.window][found.position]
    return Massive(
        layer=layer, value=found.value, ratio=found.ratio, channel=found.channel,
        position=found.position, token=token, text=_shown(model, token),
    )  # fmt: skip


def _sink(collector: Collector, layer: int, model: Model, parts: Sequence[Sequence[int]]) -> Sink:
    shares = collector.shares[layer]
    means = shares.by_key / max(1, shares.windows)
    position = int(means.argmax())
    return Sink(
        layer=layer, first_share=float(means[0]), most_share=float(means[position]),
        position=position, text=_shown(model, parts[0][position]),
    )  # fmt: skip


def _shown(model: Model, token: int) -> str:
    """Return a token's text; a control token has none, and BOS is the one that matters."""
    text = model.text([token])
    return text or ("<BOS>" if model.starts_with_bos() and token == model.bos() else f"<{token}>")
