"""The plan: chosen offers and ordered steps, with the reasons. Pure values and the planner's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bundler.hardware import Target
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
    """Predicted damage, smaller is better; comparable only among offers for one model."""
    gpu_layers: int = -1
    """Layers on the accelerator; -1 for all."""
    tokens_per_second: float = 0.0
    """Predicted speed of generation on the target, an upper bound; 0 when unknown."""
    steps: tuple[Step, ...]
    """In order; names are relative to `models/<name>/`. The last one leaves `model.gguf` etc."""
    output: StepInput | FileInput
    """Where the built model's file is found: made by a step, or taken as it was locked."""


class Choice(Value):
    """What was decided for one model, and why."""

    model: Name
    role: str
    offer: Offer
    runner_up: Offer | None
    reason: str


class Budget(Value):
    """One limit, what is used of it, and by what."""

    name: str
    """`VRAM`, `RAM`, `bundle on disk`, `download`, `peak build disk`."""
    used_bytes: int
    limit_bytes: int | None

    @property
    def fits(self) -> bool:
        return self.limit_bytes is None or self.used_bytes <= self.limit_bytes


class Plan(Value):
    """Choices for all models at once, every step in order, and the budgets they were held to."""

    bundle: Name
    target: Target
    choices: tuple[Choice, ...]
    steps: tuple[Step, ...]
    budgets: tuple[Budget, ...]
    notes: tuple[str, ...] = ()
