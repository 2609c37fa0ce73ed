"""What was measured: proofs of models and coverage of corpora. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

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


class Speed(Value):
    """Tokens per second on the device of the proof: medians over `repeats`."""

    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prompt_tokens: int
    generated_tokens: int
    repeats: int
    load_seconds: float


class Selftest(Value):
    """What the built model said when it was made, to be asked again where it is used."""

    prompt_tokens: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    """The likeliest token after the prompt and those before it, one by one; it may end the text."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of each one's probability, at temperature 1."""
    text: str = ""
    """For embedders: what was embedded."""
    vector: tuple[float, ...] = ()
    """For embedders: the vector of `text`, of length 1."""


class GateResult(Value):
    """One limit of the recipe held against a measured figure."""

    gate: str
    limit: float
    measured: float
    passed: bool


class Proof(Value):
    """The evidence that a built model does what the plan says. Bound to the model's digest."""

    model_sha256: Sha256
    device: Device
    settings: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    predicted_memory_bytes: int
    """What the plan said the device would have to hold."""
    quality: Quality | None = None
    """None when there is nothing to compare with (a file taken as it comes without its source)."""
    speed: Speed
    sample_prompt: str
    sample_text: str
    """A short greedy generation."""
    embedding_cosine_min: float | None = None
    """For embedders: worst cosine to the unquantized model over the held-out texts."""
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()
    selftest: Selftest | None = None


class Skipped(Value):
    """A document that did not get into a corpus."""

    path: str
    reason: str


class Coverage(Value):
    """What became of a corpus: nothing is left out in silence."""

    title: str
    language: str
    articles_found: int
    articles_indexed: int
    redirects: int = 0
    media: int = 0
    words_indexed: int = 0
    full_text: bool = True
    skipped: tuple[Skipped, ...] = ()
    """The first hundred; `skipped_total` counts all."""
    skipped_total: int = 0
    notes: tuple[str, ...] = ()
