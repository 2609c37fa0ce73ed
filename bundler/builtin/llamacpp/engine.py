"""The llama.cpp engine: what a plan's steps ask of it, each done in a child process."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.errors import PluginError, RecipeError
from bundler.events import Note
from bundler.fingerprint import code_digest
from bundler.hardware import Target
from bundler.hookspecs import Task
from bundler.inspection import Inspection
from bundler.lock import (
    AdapterFacts,
    LockedFile,
    LockedModel,
    ModelFacts,
    ProjectorFacts,
    Resolution,
)
from bundler.plan import Offer
from bundler.recipe import ModelRequest
from bundler.value import digest

JOBS = "bundler.builtin.llamacpp"
CALIBRATION_WINDOW_TOKENS = 512
"""Window of llama-imatrix; longer ones cost more and change the sums little."""
CALIBRATION_CHUNKS = 128
DEVICES_SECONDS = 120.0
"""A GPU driver that has to wake its devices takes up to half a minute."""


class LlamaCppEngine:
    """safetensors to GGUF, importance matrices, quantization and measurement by llama.cpp."""

    name = "llama.cpp"

    def tool(self) -> str:
        """Name the converter's version, llama.cpp's build, this CPU's instructions, the GPUs."""
        return _fingerprint()

    def devices(self, environment: Mapping[str, str]) -> Mapping[str, Any]:
        """Say what llama.cpp runs on here and how it was built, asked in a child process."""
        return dict(
            run_child(
                f"{JOBS}.native:devices_job", {}, environment=environment,
                timeout_seconds=DEVICES_SECONDS,
            )
        )  # fmt: skip

    def facts(
        self, resolution: Resolution, read: Callable[[LockedFile, int, int], bytes]
    ) -> ModelFacts:
        """Read a model's headers; see `facts`."""
        from bundler.builtin.llamacpp.facts import model_facts

        return model_facts(resolution, read)

    def adapter_facts(
        self, resolution: Resolution, read: Callable[[LockedFile, int, int], bytes],
        base: ModelFacts,
    ) -> AdapterFacts:  # fmt: skip
        """Read a LoRA adapter's header and hold it against its model; see `adapter_facts`."""
        from bundler.builtin.llamacpp.adapter_facts import adapter_facts

        return adapter_facts(resolution, read, base)

    def projector_facts(
        self, resolution: Resolution, read: Callable[[LockedFile, int, int], bytes],
        base: ModelFacts,
    ) -> ProjectorFacts:  # fmt: skip
        """Read a projector's header and hold it against its model; see `projector`."""
        from bundler.builtin.llamacpp.projector import projector_facts

        return projector_facts(resolution, read, base)

    def check_draft(
        self, model: Resolution, read: Callable[[LockedFile, int, int], bytes],
        draft: Resolution, read_draft: Callable[[LockedFile, int, int], bytes],
    ) -> None:  # fmt: skip
        """Refuse a draft that does not have its model's vocabulary; see `vocabularies`."""
        from bundler.builtin.llamacpp.vocabularies import difference, vocabulary

        found = difference(vocabulary(model, read), vocabulary(draft, read_draft))
        if found:
            raise RecipeError(
                f"{draft.reference} cannot draft for {model.reference}: {found}",
                hint="take a smaller model of the same family: their tokenizers must be the same",
            )

    def inspect_outliers(
        self, model: Path, text: Path, *, title: str, tokens: int, mitigate: str, scratch: Path,
        environment: Mapping[str, str], progress: Callable[..., None] | None = None,
    ) -> Inspection:  # fmt: skip
        """Look at a model's activations on a text; see `outliers.looking`."""
        from bundler.builtin.llamacpp.outliers.looking import Look, look

        return look(Look(model, text, title, tokens, mitigate, scratch, environment, progress))

    def recheck(
        self, model: Path, fingerprint: Path, *, title: str, kv_cache: str,
        adapters: Sequence[tuple[Path, float]], sample_positions: Sequence[int],
        environment: Mapping[str, str], progress: Callable[..., None] | None = None,
    ) -> Mapping[str, Any]:  # fmt: skip
        """Hold a model of a bundle against the reference's fingerprint again; see `recheck`."""
        return dict(
            run_child(
                f"{JOBS}.recheck:recheck_job",
                {
                    "model": str(model), "fingerprint": str(fingerprint), "title": title,
                    "kv_cache": kv_cache, "sample_positions": list(sample_positions),
                    "adapters": [(str(path), scale) for path, scale in adapters],
                },
                environment=environment,
                progress=progress,
            )
        )  # fmt: skip

    def offers(
        self,
        request: ModelRequest,
        model: LockedModel,
        target: Target,
        texts: Mapping[str, Resolution],
    ) -> Sequence[Offer]:
        """List what could be built; see `offers`."""
        from bundler.builtin.llamacpp.offers import make_offers

        return make_offers(request, model, target, texts)

    def cut(self, offer: Offer, most_bytes: int) -> Offer | None:
        """Return an offer of the same model in files that are no larger; see `sharding`."""
        from bundler.builtin.llamacpp.sharding import cut_offer

        return cut_offer(offer, most_bytes)

    def run(self, task: Task) -> Mapping[str, Any]:
        """Do one step: convert, calibrate, quantize, measure and mix, shard or prove."""
        action = _ACTIONS.get(task.action)
        if action is None:
            raise PluginError(f"the llama.cpp engine knows no action {task.action!r}")
        try:
            return action(task)
        except BaseException:
            # A child that was ended could not clean up after itself.
            for leftover in task.output.glob("*.partial"):
                leftover.unlink(missing_ok=True)
            raise


@functools.cache
def _fingerprint() -> str:
    """Ask a child once per process: loading llama.cpp here would let a driver's crash in."""
    import os

    from bundler import weights

    own = code_digest(Path(__file__).parent, Path(weights.__file__).parent)
    return f"bundler {own} | " + str(
        run_child(f"{JOBS}.native:fingerprint_job", {}, environment=os.environ)
    )


def convert(task: Task) -> dict[str, Any]:
    """Make `model.gguf` of the repository's files. Parameters: output_type, name."""
    return dict(
        run_child(
            f"{JOBS}.jobs:convert_job",
            {
                "files": _paths(task.inputs),
                "output": str(task.output / "model.gguf"),
                "output_type": task.parameters.get("output_type", "auto"),
                "name": task.parameters.get("name") or "model",
            },
            environment=task.world.environment,
            progress=task.progress,
        )
    )


def calibrate(task: Task) -> dict[str, Any]:
    """Make `imatrix.gguf` of `model.gguf` and texts. Parameters: context_tokens, chunks | tokens."""
    window = int(task.parameters.get("context_tokens", CALIBRATION_WINDOW_TOKENS))
    chunks = task.parameters.get("chunks")
    if chunks is None and "tokens" in task.parameters:
        chunks = max(1, int(task.parameters["tokens"]) // window)
    texts = {name: path for name, path in task.inputs.items() if name != "model.gguf"}
    identity = {**task.parameters, "inputs": sorted(map(str, task.inputs.values()))}
    work = task.world.store.root / "work"
    work.mkdir(parents=True, exist_ok=True)
    found = dict(
        run_child(
            f"{JOBS}.calibrate:calibrate_job",
            {
                "model": str(_needed(task, "model.gguf")),
                "texts": _paths(texts),
                "output": str(task.output / "imatrix.gguf"),
                "context_tokens": window,
                "chunks": int(chunks or CALIBRATION_CHUNKS),
                "include_output": bool(task.parameters.get("include_output")),
                "kept": str(work / f"calibration-{digest(identity)[:32]}.npz"),
            },
            environment=task.world.environment,
            progress=task.progress,
        )
    )
    for warning in found["warnings"]:
        task.world.report(Note(warning, "warning", "verify.calibration: name another text"))
    return found


def quantize(task: Task) -> dict[str, Any]:
    """Make a quantized `model.gguf` of `model.gguf` and perhaps `imatrix.gguf`.

    Parameters: quant, allow_fallback, allow_requantize, overrides ([[tensor, type], …]).
    """
    imatrix = task.inputs.get("imatrix.gguf")
    return dict(
        run_child(
            f"{JOBS}.quantize:quantize_job",
            {
                "model": str(_needed(task, "model.gguf")),
                "imatrix": str(imatrix) if imatrix else None,
                "output": str(task.output / "model.gguf"),
                "quant": task.parameters["quant"],
                "allow_fallback": bool(task.parameters.get("allow_fallback")),
                "allow_requantize": bool(task.parameters.get("allow_requantize")),
                "overrides": [list(pair) for pair in task.parameters.get("overrides") or ()],
            },
            environment=task.world.environment,
            progress=task.progress,
        )
    )


def shard(task: Task) -> dict[str, Any]:
    """Cut `model.gguf`, or shards of it, into `model-00001-of-00003.gguf`… Parameters: most_bytes."""
    from bundler.builtin.llamacpp.sharding import model_inputs

    return dict(
        run_child(
            f"{JOBS}.jobs:shard_job",
            {
                "files": [str(path) for path in model_inputs(task)],
                "folder": str(task.output),
                "most_bytes": int(task.parameters["most_bytes"]),
            },
            environment=task.world.environment,
            progress=task.progress,
        )
    )


def _needed(task: Task, name: str) -> Path:
    if name not in task.inputs:
        raise PluginError(f"{task.action} needs an input called {name!r}")
    return task.inputs[name]


def _paths(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in files.items()}


def _elsewhere(module: str, name: str) -> Callable[[Task], Mapping[str, Any]]:
    """Return what does a step, imported when it does one: a plan asks for none of it."""

    def action(task: Task) -> Mapping[str, Any]:
        return dict(getattr(importlib.import_module(f"{JOBS}.{module}"), name)(task))

    return action


_ACTIONS: Mapping[str, Callable[[Task], Mapping[str, Any]]] = {
    "convert": convert,
    "calibrate": calibrate,
    "quantize": quantize,
    "errors": _elsewhere("allocation.steps", "errors"),
    "sensitivity": _elsewhere("allocation.steps", "sensitivity"),
    "mix": _elsewhere("allocation.steps", "mix"),
    "shard": shard,
    "prove": _elsewhere("prove", "prove"),
    "draft": _elsewhere("drafting.proving", "prove_draft"),
}
