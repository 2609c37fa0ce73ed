"""The plan: chosen offers and ordered steps, with the reasons. Pure values and the planner's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from bundler.hardware import Target
from bundler.lock import Measurement
from bundler.value import Name, Sha256, Value, digest


class Memory(Value):
    """Bytes a model takes at run time, at its full context for all its users."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    overhead_bytes: int = 0
    """What the backend takes for itself (CUDA context, libraries)."""
    host_bytes: int = 0
    """What stays in main memory although the model is on an accelerator; not in the total."""
    by_device: tuple[int, ...] = ()
    """The total, split over the accelerators; empty when there is one at most."""
    source: str = ""
    """How it is known when it was not computed from the model's headers."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.overhead_bytes


class FileInput(Value):
    """A locked file as an input of a step."""

    sha256: Sha256
    size_bytes: int


class StepInput(Value):
    """A file that an earlier step leaves, as an input of a step."""

    step: str
    file: str
    """Its name in that step's result."""
    shards: bool = False
    """Whether it is cut: `file` then stands for all its shards, `model-00001-of-00003.gguf` and so
    on for `model.gguf`, which keep their names where they are read."""


class Step(Value):
    """One unit of work. Its key is the digest of all that can change what comes out."""

    name: str
    """`models/chat/quantize`, `corpora/handbook`, `runtimes/xllamacpp/linux-x86_64`."""
    plugin: str
    """Who does it, as `engine:llama.cpp`, `corpus:folder`, `runtime:xllamacpp`."""
    action: str
    inputs: Mapping[str, FileInput | StepInput] = Field(default_factory=dict)
    """Name the step knows an input by (a relative path) → where it comes from."""
    parameters: Mapping[str, Any] = Field(default_factory=dict)


def step_keys(steps: tuple[Step, ...], tools: Mapping[str, str]) -> dict[str, str]:
    """Return each step's key, known before anything runs.

    A key is the digest of the action, its parameters, the plugin's tool fingerprint (`tools`
    maps `Step.plugin` to it) and its inputs: a locked file's SHA-256, or the key of the step that
    makes the file. The step's own name is not part of it, so equal work is shared.
    """
    keys: dict[str, str] = {}
    for step in steps:
        inputs = {
            name: given.sha256 if isinstance(given, FileInput) else [keys[given.step], given.file]
            for name, given in step.inputs.items()
        }
        keys[step.name] = digest(
            {
                "plugin": step.plugin,
                "tool": tools[step.plugin],
                "action": step.action,
                "inputs": inputs,
                "parameters": dict(step.parameters),
            }
        )
    return keys


class Companion(Value):
    """A locked file that a model runs with."""

    kind: Literal["adapter", "projector"]
    file: FileInput
    scale: float = 1.0
    """How strongly an adapter acts."""


class Cut(Value):
    """How a model's file is cut into shards."""

    most_bytes: int
    """The most that one shard may have."""
    whole: StepInput | FileInput
    """What is cut; the first shard of a model that comes in several larger ones."""


class Offer(Value):
    """One way an engine could build a model."""

    engine: str
    quant: str
    """`Q4_K_M`, `F16`, or `as-is` for a file that is taken as it comes."""
    format: str
    """What the runtime must be able to load: `gguf`…"""
    kv_cache: str
    """Type of the KV cache: `f16`, `q8_0`, `q4_0`."""
    context_tokens: int
    """Context for each user; at least what the recipe asks for."""
    parallel: int
    memory: Memory
    disk_bytes: int
    """Size of the built file."""
    scratch_bytes: int
    """The most that its steps hold on disk beside inputs and result."""
    bits_per_weight: float
    quality: float
    """Expected damage, smaller is better: nats of mean KL divergence where it can be said in them.
    Predicted by the engine; where the model was measured, `measured.informed` puts that here."""
    kv_cache_quality: float = 0.0
    """The part of the predicted `quality` that the KV cache's type costs; the rest is the weights'."""
    gpu_layers: int = -1
    """Layers on the accelerator; -1 for all."""
    tokens_per_second: float = 0.0
    """Predicted speed of generation on the target, an upper bound; 0 when unknown."""
    measured: Measurement | None = None
    """What a proof measured of this very offer, on whatever device; None when there is no proof."""
    predicted_quality: float | None = None
    """What the engine predicted, where `quality` now comes from measurements: this offer's own, or
    those of other quants of the model, by which its prediction was scaled. None otherwise."""
    predicted_memory: Memory | None = None
    """What the engine predicted, where `memory` now holds a measured peak. None otherwise."""
    predicted_tokens_per_second: float | None = None
    """What was predicted, where `tokens_per_second` now comes from measurements on the target's own
    kind of device. None otherwise."""
    steps: tuple[Step, ...]
    """In order; names are relative to `models/<name>/`. The last one leaves `model.gguf` etc."""
    output: StepInput | FileInput
    """Where the built model's file is found: made by a step, or taken as it was locked."""
    other_shards: tuple[FileInput, ...] = ()
    """Of a model that is locked in several files: those after the first, in order."""
    cut: Cut | None = None
    """How its file is cut where the stick's filesystem cannot hold it; its last step but the proof."""
    indivisible_bytes: int = 0
    """Size of the largest part of its file that cannot be cut, a tensor; 0 when not known."""
    companions: tuple[Companion, ...] = ()
    """What it runs with: adapters in the recipe's order, a projector. Their weights and what
    computing with them takes are in `memory`; their files are not in `disk_bytes`."""
    notes: tuple[str, ...] = ()
    """What a person should know who takes it."""

    @property
    def largest_file_bytes(self) -> int:
        """The most that one of its model's files has."""
        if self.cut is not None:
            return min(self.disk_bytes, self.cut.most_bytes)
        if not isinstance(self.output, FileInput) or not self.other_shards:
            return self.disk_bytes
        return max(one.size_bytes for one in (self.output, *self.other_shards))

    @property
    def companion_bytes(self) -> int:
        """Size of what it runs with."""
        return sum(one.file.size_bytes for one in self.companions)


class Choice(Value):
    """What was decided for one model on one machine, and why."""

    model: Name
    role: str
    tier: str = ""
    """Name of the machine among several; empty in a recipe with one."""
    residency: Literal["resident", "on-demand"] = "resident"
    """Whether it stays in memory or takes turns; decided where the recipe says `auto`."""
    offer: Offer
    runner_up: Offer | None
    reason: str

    @property
    def step_prefix(self) -> str:
        """What the names of its steps begin with: `models/chat/`, or `models/chat@small/`."""
        return model_prefix(self.model, self.tier)


class OfferKey(NamedTuple):
    """Names one offer among all that a plan chooses from."""

    tier: str
    model: str
    quant: str
    kv_cache: str
    gpu_layers: int
    context_tokens: int
    parallel: int

    @classmethod
    def of(cls, offer: Offer, model: str, tier: str) -> OfferKey:
        """Return the key of an offer for a model on one machine."""
        return cls(
            tier, model, offer.quant, offer.kv_cache, offer.gpu_layers, offer.context_tokens,
            offer.parallel,
        )  # fmt: skip


def place_of(model: str, tier: str) -> str:
    """Return how problems and notes name a model: `models.chat`, or `models.chat (tiers.small)`."""
    return f"models.{model} (tiers.{tier})" if tier else f"models.{model}"


def model_prefix(model: str, tier: str) -> str:
    """Return what the names of a model's steps begin with."""
    return f"models/{model}@{tier}/" if tier else f"models/{model}/"


class Budget(Value):
    """One limit, what is used of it, and by what."""

    name: str
    """`VRAM`, `RAM`, `bundle on disk`, `download`, `peak build disk`."""
    used_bytes: int
    limit_bytes: int | None

    @property
    def fits(self) -> bool:
        return self.limit_bytes is None or self.used_bytes <= self.limit_bytes


class TierPlan(Value):
    """What was decided for one of the machines a bundle is for."""

    name: str
    """Its name in the recipe; empty where the recipe has one machine."""
    target: Target
    choices: tuple[Choice, ...]
    budgets: tuple[Budget, ...]
    """Its memory: each accelerator's, and RAM."""
    notes: tuple[str, ...] = ()


class Plan(Value):
    """Choices for all models at once, every step in order, and the budgets they were held to."""

    bundle: Name
    tiers: tuple[TierPlan, ...]
    """One for each machine, best first; one with an empty name where the recipe has one machine."""
    steps: tuple[Step, ...]
    budgets: tuple[Budget, ...]
    """What all machines share: the bundle on disk, the download, the disk that building takes."""
    notes: tuple[str, ...] = ()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices of all machines, in order."""
        return tuple(choice for tier in self.tiers for choice in tier.choices)

    @property
    def target(self) -> Target:
        """The first machine: the only one, or the best."""
        return self.tiers[0].target

    @property
    def all_budgets(self) -> tuple[Budget, ...]:
        """Every machine's own budgets and the shared ones; names say the tier where it has one."""
        own = [
            budget.model_copy(update={"name": f"{budget.name} of {tier.name}"})
            if tier.name
            else budget
            for tier in self.tiers
            for budget in tier.budgets
        ]
        return (*own, *self.budgets)
