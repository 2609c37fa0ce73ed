"""How a model's predictions fare far into its context, beside the unquantized one's.

Runs only in a child process. The windows of `evaluate` are short, as llama-perplexity's are; errors
of a quantized cache, of positions and of windows of attention show only behind thousands of
tokens. So one stretch of held-out text is read whole by both models, one after the other, and what
each token cost them is held together part by part. Scored are all tokens, in batches: the logits of
32,768 tokens of a vocabulary of 152k would be 20 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.divergence import Floats, Scores, standard_error
from bundler.builtin.llamacpp.session import (
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.builtin.llamacpp.texts import stretch
from bundler.errors import RecipeError
from bundler.store import hash_file

FIRST_PART_TOKENS = 256
"""Each part after it is as long as all before it, so that a trend is a straight line."""
LEAST_TOKENS = 4 * FIRST_PART_TOKENS
"""Less has no depth to speak of."""
BATCH_TOKENS = 512

Progress = Callable[[int], None]


def depth_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any] | None:
    """Child job: return a `proof.Depth`; none where the text is too short for one.

    Arguments: model, reference, text, text_name, tokens (the most), kv_cache, gpu, gpu_layers,
    adapters (both models get them).

    Raises:
        RecipeError: the models cut the text into different tokens.
    """
    text, most = Path(arguments["text"]), int(arguments["tokens"])
    texts = {str(arguments.get("text_name", text.name)): text}
    found: list[tuple[list[int], Floats]] = []
    for number, name in enumerate(("reference", "model")):
        done_before = number * most

        def tell(done: int, before: int = done_before) -> None:
            report(before + done, 2 * most, "tokens")

        read = _read(arguments, name, texts, most, tell)
        if read is None:
            return None
        found.append(read)
    (tokens, base), (same, losses) = found
    if tokens != same:
        raise RecipeError(
            "the model and its reference cut the text into different tokens: they are no pair",
            hint="compare a model only with the one that it was made from",
        )
    return {"tokens": len(tokens), "text_sha256": hash_file(text), **compared(losses, base)}


def _read(
    arguments: Mapping[str, Any], name: str, texts: Mapping[str, Path], most: int, tell: Progress
) -> tuple[list[int], Floats] | None:
    """Return the stretch's tokens and what each after the first cost one model, in nats."""
    gpu, layers = bool(arguments["gpu"]), int(arguments["gpu_layers"])
    # What a quantized cache costs is part of the damage, so the reference keeps an F16 one.
    kv_cache = str(arguments["kv_cache"]) if name == "model" else "f16"
    with open_model(
        Path(arguments[name]), gpu=gpu, title=f"{name}.gguf", gpu_layers=layers,
        adapters=adapters_of(arguments),
    ) as model:  # fmt: skip
        if gpu:
            require_placement(model, layers)
        tokens = stretch(model, texts, most=most)
        if len(tokens) < LEAST_TOKENS:
            return None
        scores = Scores()
        with open_context(
            model, context_tokens=len(tokens), batch_tokens=BATCH_TOKENS, kv_cache=kv_cache
        ) as context:
            for start in range(0, len(tokens), BATCH_TOKENS):
                batch = tokens[start : start + BATCH_TOKENS]
                context.decode(batch, start=start, logits_from=0)
                following = np.array(tokens[start + 1 : start + 1 + len(batch)], np.int64)
                scores.add(None, context.logits(len(batch))[: len(following)], following)
                tell(start + len(batch))
    return tokens, np.concatenate(scores.losses)


def compared(losses: Floats, base: Floats) -> dict[str, Any]:
    """Return the parts of a `proof.Depth`, and how much more the last one lost than the first."""
    parts = [_part(a, b, losses[a:b], base[a:b]) for a, b in pairwise(edges(len(losses)))]
    first, last = parts[0], parts[-1]
    return {
        "parts": parts,
        "growth": last["loss"] - first["loss"],
        "growth_standard_error": math.hypot(
            first["loss_standard_error"], last["loss_standard_error"]
        ),
    }


def edges(count: int) -> Sequence[int]:
    """Return where parts begin, and where the last ends.

    >>> edges(2047)
    [0, 256, 512, 1024, 2047]
    """
    found = [0]
    at = FIRST_PART_TOKENS
    while at + at // 2 < count:  # no part is shorter than half of what it should be
        found.append(at)
        at *= 2
    return [*found, count]


def _part(first: int, end: int, losses: Floats, base: Floats) -> dict[str, Any]:
    lost = losses - base
    return {
        "first": first, "last": end - 1, "perplexity": math.exp(losses.mean()),
        "reference_perplexity": math.exp(base.mean()), "loss": float(lost.mean()),
        "loss_standard_error": standard_error(lost),
    }  # fmt: skip
