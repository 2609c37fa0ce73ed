"""What is measured of a model and outlives its proof: a lock carries it on. Values only.

Apart from `proof`, which brings all that a proof says: a plan needs no more than this.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from bundler.value import Sha256, Value


class Device(Value):
    """What a model was run on."""

    kind: Literal["cpu", "cuda", "vulkan", "metal", "rocm", "other"]
    name: str
    driver: str = ""
    backend_build: str = ""
    """llama.cpp's build and instruction set, or the like."""
    offloaded_layers: int = 0
    total_layers: int = 0
    """Repeating layers and the output layer; all of them on the accelerator means "offloaded"."""
    peak_memory_bytes: int = 0
    peak_memory_source: str = ""
    """`nvml` (the driver's account of the process) or `backend` (its own account of buffers)."""


class PositionFigures(Value):
    """Some neighbouring positions of all windows."""

    first: int
    last: int
    tokens: int
    perplexity: float
    perplexity_standard_error: float
    reference_perplexity: float
    kld_mean: float
    kld_standard_error: float


class Quality(Value):
    """A model against the unquantized one, on the same held-out text."""

    tokens: int
    """Scored tokens: the second half of each window, as llama-perplexity does."""
    context_tokens: int
    text_sha256: Sha256
    perplexity: float
    perplexity_standard_error: float
    reference_perplexity: float
    kld_mean: float
    """Mean Kullback-Leibler divergence in nats, reference against model."""
    kld_standard_error: float
    kld_median: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    """Share of tokens at which both models would say the same."""
    kld_p999: float | None = None
    top1_standard_error: float | None = None
    top5_agreement: float | None = None
    """Of the five likeliest tokens of both models, the share that is the same."""
    top5_standard_error: float | None = None
    reference_perplexity_standard_error: float | None = None
    perplexity_ratio_standard_error: float | None = None
    """Of the ratio of both perplexities, token by token: what both find hard cancels out."""
    by_position: tuple[PositionFigures, ...] = ()
    """Parts of the windows: errors of a KV cache grow with the position, those of weights do not."""


class Speed(Value):
    """Tokens per second on the device of the proof: medians over `repeats`."""

    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prompt_tokens: int
    generated_tokens: int
    repeats: int
    load_seconds: float


class GateResult(Value):
    """One limit of the recipe held against a measured figure."""

    gate: str
    limit: float
    measured: float
    passed: bool
    detail: str = ""
    """What a reader needs to know of the figure, where the figure alone does not say it."""

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if not written.get("detail"):
            written.pop("detail", None)
        return written
