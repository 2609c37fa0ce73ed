"""The recipe: what a person wants, as a frozen value. Reading TOML into it is `recipe_file`'s."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from bundler.hardware import Filesystem, Platform
from bundler.recipe_source import SourceReference
from bundler.recipe_target import TARGET_LIMITS, TargetRequest, TierRequest, WrongValue
from bundler.recipe_tasks import TaskRequest
from bundler.value import Bytes, Name, RelativePath, Value

Role = Literal["chat", "code", "embed", "rerank", "draft"]
KvCacheType = Literal["auto", "f16", "q8_0", "q4_0"]


MOST_TIERS = 16
"""Each tier is planned, and its models are proved: more is a slip of the pen."""


def _one_machine_or_several(schema: JsonDict) -> None:
    """Say in the JSON Schema that a recipe has either `target` or `tiers`."""
    schema["oneOf"] = [{"required": ["target"]}, {"required": ["tiers"]}]


class BundleOptions(Value):
    """`[bundle]`: the name and shape of what is handed over."""

    name: Name
    """Name of the bundle and of its directory."""
    version: str = Field(default="1", pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}$")
    """The person's own version of it."""
    title: str = Field(default="", max_length=200)
    """One line for people; shown on the station's page."""
    platforms: tuple[Platform, ...] = ("linux-x86_64",)
    """Machines it must start on."""
    max_size: Bytes | None = None
    """The stick's capacity: a larger bundle is refused before anything is fetched."""
    max_download: Bytes | None = None
    """Most bytes that may be fetched for it; a plan that needs more is refused before it starts."""
    filesystem: Filesystem = "exfat"
    """The stick's filesystem. FAT32 cannot hold files of 4 GiB or more: larger models are cut into
    several files, larger corpora are refused."""
    max_file_size: Annotated[Bytes, Field(ge=1 << 20)] | None = None
    """The most that one file of a model or corpus may have, as `"2 GB"`, where the filesystem or
    the way there sets a limit; models that are larger are cut into several files."""
    parity: Annotated[
        float,
        Field(ge=0, le=50),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "minimum": 0, "maximum": 50},
                    {"type": "string", "pattern": r"^\d+(\.\d+)?\s*%$"},
                ],
                "examples": ["5%"],
            }
        ),
    ] = 5.0
    """How much of the bundle may rot and be repaired, as `"5%"`; it takes that much room. `"0%"`:
    damage is found, but cannot be repaired."""

    @field_validator("parity", mode="before")
    @classmethod
    def _percent(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?)\s*%", given)
        if match is None:
            raise ValueError(f"{given!r:.40} is not a share; write for example '5%'")
        return float(match[1])


class Gates(Value):
    """`gates` of a model: limits a proof must pass; a model that fails one does not ship."""

    max_kld_mean: float | None = Field(default=None, allow_inf_nan=False, gt=0)
    """Mean KLD to the unquantized model, in nats."""
    max_kld_p999: float | None = Field(default=None, allow_inf_nan=False, gt=0)
    """KLD that 999 of 1,000 tokens do not exceed, in nats: rare words gone wrong."""
    min_top1: float | None = Field(default=None, allow_inf_nan=False, ge=0, le=1)
    """Share of tokens at which the quantized model says the same as the unquantized one."""
    max_perplexity_ratio: float | None = Field(default=None, allow_inf_nan=False, gt=0)
    """Perplexity divided by that of the unquantized model."""
    min_tokens_per_second: float | None = Field(default=None, allow_inf_nan=False, gt=0)
    """Generation speed on the device of the proof."""
    max_memory: Bytes | None = None
    """Peak memory on the device of the proof."""
    max_new_loops: float | None = Field(default=None, allow_inf_nan=False, ge=0, le=1)
    """Share of the long answers that end in a loop, less that of the unquantized model."""
    min_embedding_cosine: float | None = Field(default=None, allow_inf_nan=False, ge=-1, le=1)
    """For embedders: worst cosine to the unquantized model."""
    max_loss: Mapping[Name, Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """By task: the share of its questions that may be lost against the unquantized model, shown with
    95 % certainty: `{ mmlu = 0.02 }`."""


class AdapterRequest(Value):
    """One of `adapters` of a model: a LoRA adapter that is applied while the model runs."""

    source: SourceReference
    """Where it comes from: one LoRA adapter as GGUF, made for this very base model."""
    scale: float = Field(default=1.0, allow_inf_nan=False, ge=-10, le=10)
    """How strongly it acts; its own alpha and rank come on top."""
    licence: str = ""
    """SPDX identifier, when the source does not state one."""

    @field_validator("scale")
    @classmethod
    def _acts(cls, given: float) -> float:
        if given == 0:
            raise ValueError("is 0: the adapter would do nothing; leave it out")
        return given


MOST_ADAPTERS = 16
"""All of them are applied to every word: more is a slip of the pen."""


class ModelRequest(Value):
    """`[models.<name>]`: a model and what it is for."""

    role: Role = "chat"
    """What it is for: `chat` and `code` answer people, `embed` and `rerank` serve search."""
    source: SourceReference
    """Where its weights come from: safetensors or GGUF, nothing else."""
    engine: str = "llama.cpp"
    """Who turns its weights into something that runs: see `bundler plugins`."""
    quant: Annotated[
        tuple[str, ...],
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        ),
    ] = ("auto",)
    """`"auto"`, one scheme, or several to choose from: `["Q4_K_M", "Q5_K_M"]`; or types chosen by
    measuring for a budget: `"mixed@4.6bpw"`, `"mixed@6.2GB"`, or `"mixed"` for what fits."""
    context_tokens: int = Field(default=4096, ge=64, le=10_000_000)
    """Context each user must have. It is a floor and never cut in silence."""
    parallel: int = Field(default=1, ge=1, le=256)
    """Users served at once, each with the full context."""
    kv_cache: KvCacheType = "auto"
    """Type of the KV cache; `auto` takes `f16` where it fits and `q8_0` where that helps."""
    residency: Literal["resident", "on-demand", "auto"] = "resident"
    """`resident`: in memory together with the other resident ones; `on-demand`: takes turns;
    `auto`: resident where that fits without costing more quality than the waiting is worth."""
    placement: Literal["auto", "accelerator", "cpu"] = "auto"
    """Where it runs: `accelerator`, `cpu`, or what is best within the limits. Under `auto` a chat or
    code model goes to the CPU, or partly there, only when `min_tokens_per_second` is given."""
    min_tokens_per_second: float | None = Field(default=None, allow_inf_nan=False, gt=0, le=100_000)
    """Speed of writing that the target must be able to reach by its memory bandwidth, an upper bound;
    slower ways to run the model are not taken. What was really reached is `gates`' business."""
    weight: float = Field(default=1.0, allow_inf_nan=False, ge=0.01, le=100)
    """How much this model's quality counts beside that of the others, on top of its role."""
    tiers: tuple[Name, ...] = ()
    """Names of the tiers this model is for; all of them when empty."""
    optional: bool = False
    """Leave this model out when it does not fit, and say so, instead of refusing the plan."""
    importance_matrix: Literal["auto", "none"] = "auto"
    """Whether quantization is guided by activations on the calibration text."""
    measure_minutes: float = Field(default=30, ge=0, le=10_000, allow_inf_nan=False)
    """With `quant = "mixed…"`: the most minutes that finding out which tensors matter may take. What
    it allows is measured, tensor by tensor or in groups; with 0 every tensor counts alike."""
    controls: bool = False
    """With `quant = "mixed…"`: make and measure llama.cpp's own mix and a uniform one in no more bytes
    as well; the report shows all three."""
    allow_fallback: bool = False
    """Accept types that llama.cpp puts in for rows the asked type cannot hold; always recorded."""
    adapters: Annotated[tuple[AdapterRequest, ...], Field(max_length=MOST_ADAPTERS)] = ()
    """LoRA adapters (GGUF) that are applied to it, all of them always:
    `[{ source = "path:tone.gguf", scale = 0.8 }]`."""
    projector: SourceReference | None = None
    """Its projector (`mmproj`, GGUF), with which it sees images: one file made for this model."""
    draft: Name | None = None
    """Name of a small model of this recipe (`role = "draft"`) that guesses the next words, which this
    one then checks several at a time: the same answers, sooner where the guesses are good."""
    gates: Gates = Gates()
    """Limits its proof must pass."""
    licence: str = ""
    """SPDX identifier, when the source does not state one."""

    @field_validator("draft")
    @classmethod
    def _of_one_that_stays(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is not None and info.data.get("role") not in ("chat", "code"):
            raise ValueError("is for models that answer: role = 'chat' or 'code'")
        if given is not None and info.data.get("optional"):
            raise ValueError(
                "is not for a model that may be left out: take `optional` away, or make the draft "
                "optional"
            )
        return given

    @field_validator("min_tokens_per_second")
    @classmethod
    def _of_one_that_writes(cls, given: float | None, info: ValidationInfo) -> float | None:
        if given is not None and info.data.get("role") in ("embed", "rerank"):
            raise ValueError(f"says nothing of a model that does not write: {info.data['role']}")
        return given

    @field_validator("projector")
    @classmethod
    def _of_one_that_answers(
        cls, given: SourceReference | None, info: ValidationInfo
    ) -> SourceReference | None:
        if given is not None and info.data.get("role") not in ("chat", "code"):
            raise ValueError("is for models that answer: role = 'chat' or 'code'")
        return given

    @field_validator("quant", mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("quant")
    @classmethod
    def _not_empty(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given:
            raise ValueError("name at least one quantization, or 'auto'")
        if "auto" in given and len(given) > 1:
            raise ValueError("'auto' stands alone")
        return given


class PairedDraft(ModelRequest):
    """A draft as it is planned: beside the model it drafts for, in the same server. No recipe says
    this; `Recipe.request_of` does.
    """

    drafts_for: Name
    """The model that checks its guesses."""


FOLLOWED = ("context_tokens", "parallel", "residency", "placement", "tiers")
"""What a draft has from the model it drafts for, and may not say itself."""


class CorpusRequest(Value):
    """`[corpora.<name>]`: a body of knowledge."""

    kind: str = "zim"
    """`zim` for a ready file, `folder` for documents, or what a plugin adds."""
    source: SourceReference
    """Where it comes from: a ZIM file, or a folder of documents."""
    title: str = Field(default="", max_length=200)
    """What people see; the name when absent."""
    language: str = Field(default="eng", pattern=r"^[a-z]{3}$")
    """ISO 639-3 code; decides how words are stemmed in the index."""
    licence: str = ""
    """SPDX identifier, when the source does not state one."""
    creator: str = ""
    """Who wrote it, for the ZIM metadata."""
    description: str = Field(default="", max_length=80)
    """At most 80 characters, as the ZIM metadata demands."""


class VerifyOptions(Value):
    """`[verify]`: how models are proved."""

    require: Literal["any", "gpu"] = "any"
    """`gpu`: a build without an accelerator fails instead of proving on the CPU. What the plan places
    on the CPU is proved there all the same."""
    heldout: SourceReference | None = None
    """Text for perplexity and KLD; never the calibration text. The one we ship when absent."""
    calibration: SourceReference | None = None
    """Text for the importance matrix. The one we ship when absent."""
    tokens: int = Field(default=4096, ge=128, le=1_000_000)
    """How many tokens of the held-out text are evaluated."""
    depth_tokens: int = Field(default=8192, ge=0, le=1_000_000)
    """One stretch of the held-out text is read so far (at most to the model's context) by the model and
    by the unquantized one: do its errors grow with the depth? 0 for not at all."""
    long_tokens: int = Field(default=5000, ge=0, le=1_000_000)
    """Each model writes long answers, so many tokens in all at least, and so does the unquantized one:
    does it fall into loops that the other does not? 0 for none."""
    long_minutes: float = Field(default=10, gt=0, le=10_000, allow_inf_nan=False)
    """The most minutes that the long answers of one model may take, its control's included."""
    tasks: Mapping[Name, TaskRequest] = Field(default_factory=dict)
    """Questions with known answers by a name of your choice; gated by `max_loss`."""
    replans: int = Field(default=2, ge=0, le=10)
    """How often what proofs measured may change the plan before the build gives up."""


class RuntimeOptions(Value):
    """`[runtime]`: what serves the models at the far end."""

    use: tuple[str, ...] = ("xllamacpp",)
    """Runtimes, best first: see `bundler plugins`."""


class Recipe(Value):
    """What a person wants, whole."""

    model_config = ConfigDict(json_schema_extra=_one_machine_or_several)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    """Version of the recipe's language."""
    bundle: BundleOptions
    """The name and shape of what is handed over."""
    tiers: Mapping[Name, TierRequest] = Field(default_factory=dict, max_length=MOST_TIERS)
    """The machines it is for, when there are several, best first: the station picks at start."""
    target: Annotated[TargetRequest | None, Field(validate_default=True)] = None
    """The machine it is for; exactly one of `target` and `tiers` stands in a recipe."""
    models: Mapping[Name, ModelRequest] = Field(default_factory=dict)
    """Models by a name of your choice; it becomes the model's name in the OpenAI-compatible API."""
    corpora: Mapping[Name, CorpusRequest] = Field(default_factory=dict)
    """Bodies of knowledge by a name of your choice."""
    runtime: RuntimeOptions = RuntimeOptions()
    """What serves the models at the far end."""
    verify: VerifyOptions = VerifyOptions()
    """How models are proved."""

    @field_validator("target")
    @classmethod
    def _one_machine_or_several(
        cls, given: TargetRequest | None, info: ValidationInfo
    ) -> TargetRequest | None:
        if "tiers" in info.data and given is None and not info.data["tiers"]:
            hint = "add a table [target], or [tiers.<name>] for several machines"
            raise WrongValue("is missing", hint)
        if given is not None and info.data.get("tiers"):
            raise WrongValue(
                "stands beside [tiers.<name>]: which machine is meant?",
                "keep [target] for one machine, or [tiers.<name>] for several",
            )
        return given

    @property
    def targets(self) -> Mapping[str, TargetRequest]:
        """The machines it is for by tier, best first; a recipe without tiers has one, named ""."""
        return self.tiers or ({"": self.target} if self.target is not None else {})

    def models_of(self, tier: str) -> dict[str, ModelRequest]:
        """Return the models of one tier: those that name it and those that name none."""
        found = {name: self.request_of(name) for name in self.models}
        return {n: m for n, m in found.items() if not m.tiers or tier in m.tiers}

    def request_of(self, name: str) -> ModelRequest:
        """Return what is asked of a model. A draft runs where its model does, with its context.

        It counts as always in memory, also where its model takes turns: that is never too little.
        """
        request = self.models[name]
        main = next((key for key, model in self.models.items() if model.draft == name), None)
        if main is None or isinstance(request, PairedDraft):
            return request
        model = self.models[main]
        followed = {
            "context_tokens": model.context_tokens,
            "parallel": model.parallel,
            "residency": "resident",
            "placement": "cpu" if model.placement == "cpu" else "auto",
            "tiers": model.tiers,
        }
        return PairedDraft.model_construct(**{**dict(request), **followed, "drafts_for": main})

    @model_validator(mode="after")
    def _has_something(self) -> Recipe:
        if not self.models and not self.corpora:
            raise ValueError("a bundle needs at least one model or one corpus")
        return self


__all__ = [
    "TARGET_LIMITS",
    "AdapterRequest",
    "BundleOptions",
    "CorpusRequest",
    "Gates",
    "KvCacheType",
    "ModelRequest",
    "PairedDraft",
    "Recipe",
    "RelativePath",
    "Role",
    "RuntimeOptions",
    "SourceReference",
    "TargetRequest",
    "TaskRequest",
    "TierRequest",
    "VerifyOptions",
]  # fmt: skip
