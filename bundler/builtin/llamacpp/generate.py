"""A model that writes: how fast it reads and writes, and a short sample of what it writes.

Runs only in a child process, on a context that `measure` opened.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.prompts import NO_TEMPLATE, question_tokens, template_sha256
from bundler.builtin.llamacpp.session import Context, Model
from bundler.errors import StepFailed

_PROMPT_TOKENS = 256
_SPEED_TOKENS = 32
_SAMPLE_TOKENS = 48
_REPEATS = 3
_SELFTEST_TOKENS = 16


def time_generation(
    model: Model, context: Context, context_tokens: int, report: Any
) -> dict[str, Any]:
    """Time prompt and generation, once to warm up and then `_REPEATS` times; medians."""
    prompt_tokens = max(1, min(_PROMPT_TOKENS, context_tokens // 2))
    generated = max(1, min(_SPEED_TOKENS, context_tokens // 4))
    # Random words cost what a text costs, and are the same for every model of one vocabulary.
    words = np.random.default_rng(0).integers(0, model.vocabulary, prompt_tokens + generated)
    tokens = [int(word) for word in words]
    prompts, generations = [], []
    for repeat in range(_REPEATS + 1):
        context.clear()
        begun = time.perf_counter()
        _feed(context, tokens[:prompt_tokens])
        between = time.perf_counter()
        for index in range(generated):
            context.decode([tokens[prompt_tokens + index]], start=prompt_tokens + index)
            context.logits(1).argmax()
        ended = time.perf_counter()
        if repeat:
            prompts.append(prompt_tokens / (between - begun))
            generations.append(generated / (ended - between))
        done = (repeat + 1) * (prompt_tokens + generated)
        report(done, (_REPEATS + 1) * (prompt_tokens + generated), "tokens")
    return {
        "prompt_tokens_per_second": round(statistics.median(prompts), 3),
        "generation_tokens_per_second": round(statistics.median(generations), 3),
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "repeats": _REPEATS,
    }


def _feed(context: Context, tokens: Sequence[int], *, sequence: int = 0) -> None:
    """Decode tokens from position 0 on, batch by batch, and wait until they are done."""
    for first in range(0, len(tokens), context.batch_tokens):
        context.decode(tokens[first : first + context.batch_tokens], start=first, sequence=sequence)
    context.logits(1)  # reading waits for the device


# -- a sample --------------------------------------------------------------------------------------


def sample_text(
    model: Model, context: Context, prompt: str, context_tokens: int, notes: list[str]
) -> dict[str, Any]:
    """Continue a prompt greedily, through the model's own chat template where it has a usable one."""
    tokens, why_plain = question_tokens(model, prompt)
    if why_plain not in ("", NO_TEMPLATE):
        notes.append(why_plain)
    room = context_tokens - len(tokens)
    if not tokens or room < 1:
        raise StepFailed(
            f"the sample prompt has {len(tokens)} tokens; the context holds {context_tokens}"
        )
    said, likely = _greedy(model, context, tokens, min(_SAMPLE_TOKENS, room))
    return {
        "selftest": {
            "prompt_tokens": tokens,
            "tokens": [token for token, _ in likely[:_SELFTEST_TOKENS]],
            "logprobs": [logprob for _, logprob in likely[:_SELFTEST_TOKENS]],
            "template_sha256": template_sha256(model),
        },
        "sample_prompt": prompt,
        "sample_text": model.text(said),
        "chat_template": not why_plain,
        "ended_by_itself": len(said) < min(_SAMPLE_TOKENS, room),
    }


def _greedy(
    model: Model, context: Context, tokens: list[int], most: int
) -> tuple[list[int], list[tuple[int, float]]]:
    """Return at most `most` tokens, each the likeliest, up to the end of the answer.

    And each with its log-probability, the one that ends the answer included.
    """
    library = native.llama()
    context.clear()
    _feed(context, tokens)
    said: list[int] = []
    likely: list[tuple[int, float]] = []
    while len(said) < most:
        logits = context.logits(1)[0]
        token = int(logits.argmax())
        likely.append((token, round(_logprob(logits, token), 6)))
        if library.llama_vocab_is_eog(model.vocab_pointer, token):
            break
        said.append(token)
        context.decode([token], start=len(tokens) + len(said) - 1)
    return said, likely


def _logprob(logits: npt.NDArray[np.float32], token: int) -> float:
    exact = logits.astype(np.float64)
    highest = float(exact.max())
    return float(exact[token]) - highest - float(np.log(np.exp(exact - highest).sum()))
