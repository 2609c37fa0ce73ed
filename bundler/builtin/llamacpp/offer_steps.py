"""The steps that make an offered model: convert, calibrate, quantize, prove. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from bundler.builtin.llamacpp.allocation.planned import Mix
from bundler.builtin.llamacpp.allocation.steps import mixing_steps
from bundler.builtin.llamacpp.companions import input_names
from bundler.builtin.llamacpp.schemes import UNQUANTIZED
from bundler.errors import PluginError, RecipeError
from bundler.lock import LockedModel, Resolution
from bundler.plan import Companion, FileInput, Memory, Offer, Step, StepInput
from bundler.recipe import ModelRequest

PLUGIN = "engine:llama.cpp"
CALIBRATION_WINDOW_TOKENS = 512
"""Window of llama-imatrix."""
CALIBRATION_TOKENS = 65_536
"""128 windows: more Wikitext showed "no consistent improvement" (tools/perplexity/README.md)."""
_NEEDED_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


@dataclass(frozen=True)
class Texts:
    """The texts that models are calibrated and scored on, as inputs of steps."""

    calibration: FileInput | None
    heldout: FileInput | None

    @classmethod
    def of(cls, texts: Mapping[str, Resolution]) -> Texts:
        """Read a lock's texts: each is one file."""
        return cls(_only_file(texts, "calibration"), _only_file(texts, "heldout"))


def _only_file(texts: Mapping[str, Resolution], name: str) -> FileInput | None:
    if name not in texts:
        return None
    files = texts[name].files
    if len(files) != 1:
        raise PluginError(
            f"verify.{name} should be one text file, {texts[name].reference} has {len(files)}",
            hint="name the file itself",
        )
    return FileInput(sha256=files[0].sha256, size_bytes=files[0].size_bytes)


@dataclass(frozen=True)
class Building:
    """What is to be built from a published model."""

    request: ModelRequest
    scheme: str
    guided: bool
    stored: str
    """What the conversion writes when it is left to itself."""
    mix: Mix | None = None
    """Where each tensor's type is chosen by measuring."""

    @property
    def last(self) -> str:
        """Name of the step that leaves the model."""
        return "convert" if self.scheme in UNQUANTIZED else "quantize"

    @property
    def output_type(self) -> str:
        """What to convert to: `auto` wherever that is the same, so that the work is shared."""
        if self.scheme in UNQUANTIZED and self.scheme != self.stored:
            return self.scheme.lower()
        return "auto"


def making_steps(
    building: Building, published: Mapping[str, FileInput], texts: Texts
) -> tuple[Step, ...]:
    """Return the steps that make the model, in order; names are relative to the model's."""
    steps = [_convert_step(building, published)]
    if building.guided:
        steps.append(_calibrate_step(texts, output=building.mix is not None))
    if building.mix is not None:
        steps += mixing_steps(
            building.mix, PLUGIN, guided=building.guided,
            minutes=building.request.measure_minutes, calibration=texts.calibration,
        )  # fmt: skip
    elif building.last == "quantize":
        steps.append(_quantize_step(building))
    return tuple(steps)


def published_files(model: LockedModel) -> dict[str, FileInput]:
    """Return the files of a published model that its conversion reads."""
    return {
        file.path: FileInput(sha256=file.sha256, size_bytes=file.size_bytes)
        for file in model.resolution.files
        if _is_needed(file.path)
    }


def _convert_step(building: Building, published: Mapping[str, FileInput]) -> Step:
    return Step(
        name="convert",
        plugin=PLUGIN,
        action="convert",
        inputs=published,
        parameters={"output_type": building.output_type, "name": _title(building.request)},
    )


def _is_needed(path: str) -> bool:
    """Tell whether the conversion reads a file.

    `consolidated*.safetensors` and the like hold the same weights once more, for other programs.
    """
    name = PurePosixPath(path)
    if name.suffix == ".safetensors":
        return name.parent == PurePosixPath(".") and name.name.startswith("model")
    return name.suffix in _NEEDED_SUFFIXES and name.parts[0] not in ("onnx", "openvino", "original")


def _title(request: ModelRequest) -> str:
    return request.source.locator.rstrip("/").rpartition("/")[2]


def _calibrate_step(texts: Texts, *, output: bool) -> Step:
    if texts.calibration is None:
        raise RecipeError(
            "verify.calibration: an importance matrix is made from a text, and the lock has none",
            hint='verify.calibration = "path:some-text.txt", or importance_matrix = "none"',
        )
    if texts.heldout is not None and texts.heldout.sha256 == texts.calibration.sha256:
        raise RecipeError(
            "verify.calibration and verify.heldout are the same text: a model fitted to what it is "
            "scored on proves nothing",
            hint="name another text for one of them, or leave one out: we ship both",
        )
    return Step(
        name="calibrate",
        plugin=PLUGIN,
        action="calibrate",
        inputs={
            "model.gguf": StepInput(step="convert", file="model.gguf"),
            "calibration.txt": texts.calibration,
        },
        parameters={
            "context_tokens": CALIBRATION_WINDOW_TOKENS,
            "tokens": CALIBRATION_TOKENS,
            **({"include_output": True} if output else {}),
        },
    )


def _quantize_step(building: Building) -> Step:
    inputs = {"model.gguf": StepInput(step="convert", file="model.gguf")}
    if building.guided:
        inputs["imatrix.gguf"] = StepInput(step="calibrate", file="imatrix.gguf")
    return Step(
        name="quantize",
        plugin=PLUGIN,
        action="quantize",
        inputs=inputs,
        parameters={
            "quant": building.scheme,
            "allow_fallback": building.request.allow_fallback,
        },
    )


def with_companions(
    offer: Offer, beside: tuple[Companion, ...], notes: tuple[str, ...], *, on_cpu: bool
) -> Offer:
    """Return an offer that is proved as it will run: on its layers, with what goes with it."""
    *making, prove = offer.steps
    scales = [one.scale for one in beside if one.kind == "adapter"]
    parameters = {**prove.parameters, "gpu_layers": 0 if on_cpu else offer.gpu_layers}
    if scales:
        parameters["scales"] = scales
    prove = prove.model_copy(
        update={
            "inputs": {**prove.inputs, **input_names(beside)},
            "parameters": parameters,
        }
    )
    return offer.model_copy(
        update={"steps": (*making, prove), "companions": beside, "notes": notes}
    )


def proof_step(
    request: ModelRequest, texts: Texts, kv_cache: str, memory: Memory,
    built: StepInput | FileInput, *, reference: StepInput | None, mixed: bool = False,
    guided: bool = False,
) -> Step:  # fmt: skip
    """Return the step that measures a built model, against `reference` where there is one.

    `require` and `tokens` are what the recipe's `[verify]` says; the planner puts them in.
    """
    inputs: dict[str, StepInput | FileInput] = {"model.gguf": built}
    if reference is not None:
        inputs["reference.gguf"] = reference
    if texts.heldout is not None:
        inputs["heldout.txt"] = texts.heldout
    if mixed:
        inputs["allocation.json"] = StepInput(step="quantize", file="allocation.json")
    if guided and reference is not None and texts.calibration is not None:
        inputs["calibration.txt"] = texts.calibration  # which the held-out text must not repeat
    controls = mixed and request.controls
    if controls and guided:
        inputs["imatrix.gguf"] = StepInput(step="calibrate", file="imatrix.gguf")
    return Step(
        name="prove",
        plugin=PLUGIN,
        action="prove",
        inputs=inputs,
        parameters={
            "role": request.role,
            "context_tokens": request.context_tokens,
            "parallel": request.parallel,
            "kv_cache": kv_cache,
            "require": "any",
            "tokens": 4096,
            "predicted_memory_bytes": memory.total_bytes,
            **({"controls": True} if controls else {}),
        },
    )
