"""The lock: every name of a recipe turned into bytes. A pure value, written beside the recipe.

It holds what a plan needs (sizes, licences, model facts read from headers), so planning needs no
network once it exists. What is locked changes only when a person runs `bundler lock`. Beside it
stands what proofs measured (`measured`): builds add to that, and it says nothing about which bytes
are read, so it is not part of `inputs_sha256`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bundler.measured import Device, Quality, Speed
from bundler.value import RelativePath, Sha256, Value, digest


class LockedFile(Value):
    """One file as it must be, and where it can be had."""

    path: RelativePath
    """Its name inside the repository, folder or archive it belongs to."""
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    addresses: tuple[str, ...] = ()
    """Where to get it, best first, in the words of its source (a URL, a path)."""


class Resolution(Value):
    """What a source makes of a reference: one revision of one body of files."""

    source: str
    """Name of the source plugin: `path`, `http`, `hf`…"""
    reference: str
    """The reference as the recipe has it."""
    revision: str
    """What the reference meant when it was locked: a commit, an ETag, a digest."""
    files: tuple[LockedFile, ...]
    licence: str = "unknown"
    """SPDX identifier where one is known, the publisher's own word otherwise."""
    licence_url: str = ""
    staged_bytes: int = 0
    """What it takes in the bundle where that is not the size of its files (an unpacked runtime);
    an estimate."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size_bytes for file in self.files)


class TensorFact(Value):
    """One tensor of a model, from its header. Written as one line: `BF16 4096x256 output.weight`."""

    name: str
    type: str
    """Upper-case name of the stored type: `BF16`, `F32`, `Q4_K`…"""
    shape: tuple[int, ...]
    """As the format has it: safetensors (rows, columns), GGUF reversed to the same order."""

    @model_validator(mode="before")
    @classmethod
    def _from_line(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        kind, _, rest = given.partition(" ")
        shape, _, name = rest.partition(" ")
        if not name:
            raise ValueError(f"{given!r} is not 'TYPE ROWSxCOLUMNS name'")
        return {"type": kind, "name": name, "shape": tuple(map(int, shape.split("x")))}

    @model_serializer
    def _to_line(self) -> str:
        return f"{self.type} {'x'.join(map(str, self.shape))} {self.name}"


class ModelFacts(Value):
    """What can be known of a model without its weights."""

    format: Literal["safetensors", "gguf"]
    architecture: str
    """llama.cpp's name of the architecture: `llama`, `qwen2`, `bert`…"""
    parameters: int
    context_tokens: int
    """The longest context it was made for."""
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: tuple[int, ...]
    """Key/value heads of each layer."""
    head_dim_key: int
    head_dim_value: int
    vocabulary: int
    tied_embeddings: bool = False
    sliding_window_tokens: int = 0
    sliding_window_pattern: int = 0
    """Every n-th layer attends to everything; 0 when all layers slide (or none does)."""
    experts: int = 0
    experts_used: int = 0
    tensors: tuple[TensorFact, ...]
    """All tensors, under llama.cpp's names, in file order."""
    extra: Mapping[str, Any] = Field(default_factory=dict)


class AdapterFacts(Value):
    """What can be known of a LoRA adapter without its weights."""

    architecture: str
    """Of the model it was made for."""
    alpha: float = Field(allow_inf_nan=False)
    tensors: tuple[TensorFact, ...]
    """Pairs: a tensor's name with `.lora_a` (down to the rank) and `.lora_b` (up again)."""


class LockedAdapter(Value):
    """A LoRA adapter's file and facts."""

    resolution: Resolution
    facts: AdapterFacts


class ProjectorFacts(Value):
    """What can be known of a projector, by which a model sees, without its weights."""

    kind: str
    """llama.cpp's name of the projector: `mlp`, `gemma3`, `qwen2.5vl_merger`…"""
    fields: Mapping[str, Any] = Field(default_factory=dict)
    """Its own header fields, numbers and short texts."""
    tensors: tuple[TensorFact, ...]


class LockedProjector(Value):
    """A projector's file and facts."""

    resolution: Resolution
    facts: ProjectorFacts


class LockedModel(Value):
    """A model's files and facts, and those of what goes with it."""

    resolution: Resolution
    facts: ModelFacts
    adapters: tuple[LockedAdapter, ...] = ()
    """In the recipe's order."""
    projector: LockedProjector | None = None

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Locks of models that have neither read as they always did.
        written: dict[str, Any] = write(self)
        for name in ("adapters", "projector"):
            if not written.get(name):
                written.pop(name, None)
        return written

    @property
    def beside(self) -> dict[str, Resolution]:
        """What goes with the model, by the recipe's key: `adapters[0]`, `projector`."""
        found = {f"adapters[{n}]": one.resolution for n, one in enumerate(self.adapters)}
        if self.projector is not None:
            found["projector"] = self.projector.resolution
        return found


class TaskLoss(Value):
    """What one task showed of a model, in a measurement."""

    asked: Sha256
    """Digest of all that decides it: the file, how many were asked and how."""
    at_most: float = Field(ge=-1, le=1, allow_inf_nan=False)
    """The share of right answers that was lost, at most."""


class Measurement(Value):
    """What one proof measured of one way to build a model and to run it."""

    model: Sha256
    """Digest of the model's locked files (`files_digest`): another revision is another model."""
    reference: str
    """What the recipe called the model when it was measured; for people."""
    made_by: Sha256
    """Digest of the steps that made it, whichever tool did them (`measurements.making_digest`)."""
    role: str
    engine: str
    tool: str
    """Fingerprint of the engine that built and measured: versions, build, device."""
    quant: str
    kv_cache: str
    context_tokens: int = Field(ge=0)
    parallel: int = Field(ge=0)
    gpu_layers: int = Field(ge=-1)
    """As the offer has it; what was really offloaded is the device's to say."""
    text: Sha256 | None = None
    """Digest of the locked held-out text; None when there was none."""
    asked_tokens: int = Field(default=0, ge=0)
    """How many tokens of that text the recipe asked to be evaluated."""
    predicted_quality: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What the engine predicted for it at that time, its KV cache included."""
    predicted_kv_cache_quality: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The part of that prediction which is the KV cache's."""
    predicted_memory_bytes: int = Field(ge=0)
    model_sha256: Sha256
    """Digest of the built file."""
    device: Device
    context_filled: bool = False
    """Whether every user's context was full while memory was measured."""
    speed: Speed
    quality: Quality | None = None
    embedding_cosine_min: float | None = None
    new_loop_share: float | None = Field(default=None, ge=0, le=1)
    """Of its long answers, how many more end in a loop than of the unquantized model."""
    tasks: Mapping[str, TaskLoss] = Field(default_factory=dict)
    """By the recipe's name of the task."""

    @model_serializer(mode="wrap")
    def _without_tasks(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Measurements of recipes without tasks read as they always did.
        written: dict[str, Any] = write(self)
        if not written.get("tasks"):
            written.pop("tasks", None)
        return written

    @model_validator(mode="after")
    def _figures_are_possible(self) -> Measurement:
        # A lock is a file that others can write: no figure of it may bend a plan without limit.
        for part in (self.device, self.speed, self.quality):
            for name, figure in part.model_dump().items() if part else ():
                if isinstance(figure, int | float) and not (isfinite(figure) and figure >= -1e-3):
                    raise ValueError(f"measured {name} cannot be {figure}")
        cosine = self.embedding_cosine_min
        if cosine is not None and not -1.001 <= cosine <= 1.001:
            raise ValueError(f"measured embedding_cosine_min cannot be {cosine}")
        return self

    @property
    def key(self) -> tuple[str | int, ...]:
        """What it is a measurement of; a later one of the same replaces it."""
        return (
            self.reference, self.model, self.role, self.engine, self.quant, self.kv_cache,
            self.context_tokens, self.parallel, self.gpu_layers, self.made_by,
            self.device.kind, self.device.name,
        )  # fmt: skip


class Lock(Value):
    """Everything a build will read, by digest."""

    schema_version: Literal[1] = 1
    request_digest: Sha256
    """Digest of what the recipe asks for by name; another one means that the lock is stale."""
    created: int
    """Seconds since 1970 at which it was made: the only clock a bundle's bytes may depend on."""
    models: Mapping[str, LockedModel]
    corpora: Mapping[str, Resolution]
    texts: Mapping[str, Resolution] = Field(default_factory=dict)
    """Texts for calibration (`calibration`) and scoring (`heldout`), files of questions
    (`tasks.<name>`)."""
    runtimes: Mapping[str, Resolution] = Field(default_factory=dict)
    """`<runtime>/<platform>` → what the runtime is put together from."""
    measured: tuple[Measurement, ...] = ()
    """What proofs of earlier builds measured of these models; sorted by `Measurement.key`."""

    @property
    def inputs_sha256(self) -> str:
        """Digest of everything a build reads. What was measured is no input: building the same
        once more must give the same bytes.
        """
        return digest(self.model_dump(mode="json", exclude={"measured"}))


def model_digest(model: LockedModel) -> str:
    """Return the digest of a model's files with all that goes with it: what a measurement is of."""
    own = files_digest(model.resolution)
    if not model.beside:
        return own
    return digest([own, *([key, files_digest(one)] for key, one in model.beside.items())])


def files_digest(resolution: Resolution) -> str:
    """Return the digest of a body of files: their paths and contents, not where they come from."""
    return digest(sorted([file.path, file.sha256] for file in resolution.files))
