"""What was measured: proofs of models and coverage of corpora. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from bundler.measured import Device, GateResult, Quality, Speed
from bundler.value import Sha256, Value


class DepthPart(Value):
    """Neighbouring tokens of one long stretch of text, counted from its beginning."""

    first: int
    last: int
    perplexity: float
    reference_perplexity: float
    loss: float
    """Mean of what each token cost more than without quantization, in nats."""
    loss_standard_error: float


class Depth(Value):
    """One stretch of held-out text, read whole by the model and by the unquantized one."""

    tokens: int
    text_sha256: Sha256
    parts: tuple[DepthPart, ...]
    """Each as long as all before it."""
    growth: float
    """How much more the last part lost than the first, in nats: nought but for chance where depth
    does no harm."""
    growth_standard_error: float


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
    template_sha256: str = ""
    """Of the chat template in the model's file; empty where there is none."""


class Fingerprint(Value):
    """The top of the reference's distributions, shipped; and how far the model was from it.

    With it a far end knows that the model diverges from the unquantized one by so much at least.
    """

    file: str = ""
    """Its path in the bundle."""
    sha256: Sha256
    size_bytes: int
    positions: int
    top: int
    """Tokens of each position."""
    bound_mean: float
    """Lower bound of the mean divergence of the model that ships, in nats."""
    bound_standard_error: float
    sample_positions: tuple[int, ...]
    """Which positions are asked again."""
    sample_bounds: tuple[float, ...]
    """The bound at each of them, from the 64 likeliest tokens of the model."""


class Repetitiveness(Value):
    """What the long answers of one model are like; averages over the answers."""

    tokens: int
    """Of all answers."""
    looped: int
    """Answers that end in a loop: the same thing at least three times over, to the end."""
    ended_by_themselves: int
    """Answers that the model ended, rather than the limit."""
    repeated_share: float
    """Of groups of 4 tokens, how many were there before in the same 512 tokens (rep-4)."""
    distinct_pairs: float
    """Unique pairs of neighbours by all pairs (distinct-2)."""
    compression_ratio: float
    """Bytes of the text by those of its zlib form: text that repeats itself shrinks more."""
    entropy_first: float
    entropy_last: float
    """Mean entropy of the next token in nats, over the first and the last 256 tokens."""


class LongAnswers(Value):
    """Long answers beside those that the unquantized model gave, drawn with the same numbers."""

    answers: int
    """Pairs: the same question and the same seed."""
    most_tokens: int
    """At which an answer was cut off."""
    sampling: Mapping[str, float | int]
    """Temperature and cuts, as llama.cpp names them."""
    sampling_source: str
    new_loops: int
    """Answers that loop where the control's does not."""
    loops_gone: int
    """Answers that do not loop where the control's does."""
    new_loops_p_value: float
    """One-sided, McNemar's exact test: how often chance alone would give as many new loops."""
    model: Repetitiveness
    control: Repetitiveness

    @property
    def new_loop_share(self) -> float:
        """Return how many more answers loop than of the unquantized model, of all; 0 at least."""
        return max(0, self.new_loops - self.loops_gone) / self.answers if self.answers else 0.0


class TaskResult(Value):
    """Questions with known answers, put to the model and to the unquantized one: the same ones."""

    name: str
    kind: str
    scoring: str
    """`letters` or `texts`."""
    file_sha256: Sha256
    items: int = Field(gt=0)
    """Questions that both were asked."""
    seed: int
    chance: float
    """Share of right answers of who guesses."""
    model_right: int = Field(ge=0)
    control_right: int = Field(ge=0)
    lost: int = Field(ge=0)
    """Questions that the unquantized model answers rightly and this one does not."""
    gained: int = Field(ge=0)
    """The other way round."""
    p_value: float
    """Two-sided, McNemar's exact test: how often chance alone would make them differ as much."""
    loss_low: float
    loss_high: float
    """Interval of 95 % of the lost share, by drawing the questions anew."""
    loss_at_most: float
    """The lost share is no larger, with 95 % certainty: Tango's score bound, one-sided."""
    leaked: int = 0
    """Questions of which a run of 13 words is in the calibration text."""

    @property
    def loss(self) -> float:
        """Return the share of right answers that was lost; negative where it grew."""
        return (self.lost - self.gained) / self.items


class Drafting(Value):
    """How good a draft's guesses are: greedy answers of a model with its draft, beside its own."""

    draft_sha256: Sha256
    """Of the draft's file, or of its first shard."""
    drafted_at_once: int = Field(ge=1)
    """Tokens that are guessed before they are checked."""
    answers: int = Field(ge=0)
    looping: int = Field(default=0, ge=0)
    """Answers that end in a loop, which any draft guesses: they count in no figure below but `ties`
    and `different`."""
    tokens: int = Field(ge=0)
    """Written after each answer's first, which no draft guesses."""
    drafted: int = Field(ge=0)
    accepted: int = Field(ge=0)
    """Guesses that were what the model says."""
    passes: int = Field(ge=0)
    """Of the model, by which `tokens` were written; without a draft each token takes one."""
    ties: int = Field(default=0, ge=0)
    """Answers that part from the model's own at two words as likely as each other but for noise."""
    different: int = Field(default=0, ge=0)
    """Answers that part otherwise: there should be none."""
    notes: tuple[str, ...] = ()

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were right."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens by each pass of the model: 1 without a draft."""
        return self.tokens / self.passes if self.passes else 0.0


class Proof(Value):
    """The evidence that a built model does what the plan says. Bound to the model's digest."""

    model_sha256: Sha256
    """Of the model's file, or of its first shard."""
    other_shards_sha256: tuple[Sha256, ...] = ()
    """Of its other shards, in order."""
    device: Device
    settings: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    predicted_memory_bytes: int
    """What the plan said the device would have to hold."""
    quality: Quality | None = None
    """None when there is nothing to compare with (a file taken as it comes without its source)."""
    depth: Depth | None = None
    """None when it was not asked for, or the text or the context is too short."""
    long_answers: LongAnswers | None = None
    """None when none were asked for, or there is nothing to compare with."""
    tasks: tuple[TaskResult, ...] = ()
    """Empty when none were asked, or there is nothing to compare with."""
    speed: Speed
    sample_prompt: str
    sample_text: str
    """A short greedy generation."""
    embedding_cosine_min: float | None = None
    """For embedders: worst cosine to the unquantized model over the held-out texts."""
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()
    selftest: Selftest | None = None
    fingerprint: Fingerprint | None = None
    """Of the reference; None where there is none, or the model does not write."""
    drafting: Drafting | None = None
    """With its draft; None where it has none."""

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Proofs of models in one file read as they always did.
        written: dict[str, Any] = write(self)
        for name in ("other_shards_sha256", "depth", "fingerprint", "tasks", "drafting"):
            if not written.get(name):
                written.pop(name, None)
        return written


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
