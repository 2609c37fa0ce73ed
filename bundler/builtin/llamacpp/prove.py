"""The proof of a built model: measured on the best device there is, written as `proof.Proof`.

Two children: one runs the model as it will be run and is measured (memory, speed, a sample), the
other compares it with the unquantized one (perplexity and KLD, or vectors for embedders).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.allocation.evidence import evidence
from bundler.builtin.llamacpp.asking import ask_once, file_of_answer
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.depth import LEAST_TOKENS
from bundler.builtin.llamacpp.leaks import leak_notes
from bundler.builtin.llamacpp.long_answers.comparing import long_answers
from bundler.builtin.llamacpp.sharding import WHOLE, loadable, model_inputs
from bundler.builtin.llamacpp.tasks.comparing import task_results
from bundler.errors import ProofFailed
from bundler.hookspecs import Task
from bundler.measured import Device, Quality, Speed
from bundler.proof import Depth, Fingerprint, Proof, Selftest, TaskResult
from bundler.store import hash_file
from bundler.value import format_bytes, pretty_json

JOBS = "bundler.builtin.llamacpp"
WINDOW_TOKENS = 512
"""Window of llama-perplexity, so that figures can be compared with published ones."""
SMALL_GROWTH = 0.01
"""Nats by which a part of a text may cost more than another before anybody would notice."""
_SURE = 2.326  # the normal distribution's 99 % point: one in a hundred sound models is suspected
FINGERPRINT_NAME = "reference.likelihoods"
SAMPLE_PROMPTS = {
    "code": "Write a Python function that returns the n-th Fibonacci number.",
    "chat": "Explain in two sentences how to make water safe to drink.",
}
_TASK_DEFAULTS: Mapping[str, Any] = {
    "role": "chat", "context_tokens": 4096, "parallel": 1, "kv_cache": "f16", "require": "any",
    "tokens": 4096, "predicted_memory_bytes": 0, "gpu_layers": -1, "scales": (),
    "depth_tokens": 0, "long_tokens": 0, "long_minutes": 10,
    "controls": False, "tasks": (),
}  # fmt: skip


def prove(task: Task) -> dict[str, Any]:
    """Measure a model as it ships: its shards, where it is cut, are opened through the first one."""
    files = model_inputs(task)
    with loadable(task) as model:
        return _prove(replace(task, inputs={**task.inputs, WHOLE: model}), files)


def _prove(task: Task, files: Sequence[Path]) -> dict[str, Any]:
    """Measure `model.gguf` (against `reference.gguf`, on `heldout.txt`); leaves `proof.json`.

    Parameters: role, context_tokens, parallel, kv_cache, require, tokens,
    predicted_memory_bytes, gpu_layers (where the plan places it: -1 for all layers on the
    accelerator, 0 for the CPU), scales (of the LoRA adapters `adapters/0.gguf`…; both sides of a
    comparison get them, so that the reference is the unquantized model with its adapters).

    Raises:
        ProofFailed: `require` is `gpu` and there is none, or not all layers went there.
    """
    parameters = {**_TASK_DEFAULTS, **task.parameters}
    there = gpu_is_there(task, str(parameters["require"]))
    gpu = there and int(parameters["gpu_layers"]) != 0
    generates = parameters["role"] not in ("embed", "rerank")
    measured = _measure(task, parameters, gpu=gpu)
    notes = list(measured["notes"])
    quality, cosine, settings = None, None, _settings(parameters, measured, gpu=gpu)
    depth, long, fingerprint = None, None, None
    tasks: tuple[TaskResult, ...] = ()
    if generates:
        quality, fingerprint = _compare(task, parameters, settings, notes, gpu=gpu)
        more = evidence(
            task, _evaluation(task, parameters, gpu=gpu), quality,
            controls=bool(parameters["controls"]),
        )  # fmt: skip
        settings |= more.settings
        notes += more.notes
        depth = _depth(task, parameters, notes, gpu=gpu)
        adapters = adapters_in(task, parameters)
        long = long_answers(task, parameters, notes, adapters, gpu=gpu)
        tasks = task_results(task, parameters, notes, adapters, gpu=gpu)
    else:
        cosine = _compare_vectors(task, parameters, settings, notes, gpu=gpu)
    notes += _placement_note(int(parameters["gpu_layers"]), there=there)
    device = Device(**measured["device"])
    notes += _memory_note(device, int(parameters["predicted_memory_bytes"]))
    proof = Proof(
        model_sha256=hash_file(files[0]),
        other_shards_sha256=tuple(map(hash_file, files[1:])),
        device=device,
        settings=settings,
        predicted_memory_bytes=int(parameters["predicted_memory_bytes"]),
        quality=quality,
        depth=depth,
        long_answers=long,
        tasks=tasks,
        speed=Speed(**measured["speed"]),
        sample_prompt=measured["sample_prompt"],
        sample_text=measured["sample_text"],
        embedding_cosine_min=cosine,
        notes=tuple(notes),
        selftest=Selftest(**measured["selftest"]) if measured.get("selftest") else None,
        fingerprint=fingerprint,
    )
    (task.output / "proof.json").write_text(pretty_json(proof), encoding="utf-8")
    return proof.model_dump(mode="json")


def _placement_note(gpu_layers: int, *, there: bool) -> list[str]:
    """Say so when the proof could not run where the plan places the model."""
    if there or gpu_layers == 0:
        return []
    return ["the plan places it on an accelerator; there is none here, so it was proved on the CPU"]


def adapters_in(task: Task, parameters: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the paths of the adapters with their scales."""
    return [
        (str(task.inputs[f"adapters/{number}.gguf"]), float(scale))
        for number, scale in enumerate(parameters["scales"])
    ]


def _memory_note(device: Device, predicted_bytes: int) -> list[str]:
    """Say so when the model takes more than the plan said: the plan's arithmetic is then wrong."""
    if not 0 < predicted_bytes < device.peak_memory_bytes:
        return []
    return [
        f"peak memory {format_bytes(device.peak_memory_bytes)} ({device.peak_memory_source}) is "
        f"more than the plan's {format_bytes(predicted_bytes)}"
    ]


def gpu_is_there(task: Task, require: str) -> bool:
    """Ask a child for the devices; say no plainly where an accelerator is demanded and missing."""
    found = run_child(f"{JOBS}.native:devices_job", {}, environment=task.world.environment)
    if any(device["is_gpu"] for device in found["devices"]):
        return True
    if require == "gpu":
        names = ", ".join(f"{d['name']} ({d['description']})" for d in found["devices"])
        raise ProofFailed(
            f"the recipe requires an accelerator and llama.cpp sees none; it sees: {names}",
            where="verify.require",
            hint="install a llama-cpp-python built for it, e.g. CMAKE_ARGS=-DGGML_CUDA=on (or "
            "-DGGML_VULKAN=on, -DGGML_METAL=on) pip install --force-reinstall llama-cpp-python, "
            "check the driver (nvidia-smi, vulkaninfo), or set require = 'any'",
        )
    return False


def _measure(task: Task, parameters: Mapping[str, Any], *, gpu: bool) -> dict[str, Any]:
    role = str(parameters["role"])
    return dict(
        ask_once(
            task,
            f"{JOBS}.measure:measure_job",
            {
                "model": str(task.inputs["model.gguf"]),
                "role": role,
                "context_tokens": parameters["context_tokens"],
                "parallel": parameters["parallel"],
                "kv_cache": parameters["kv_cache"],
                "gpu": gpu,
                "gpu_layers": parameters["gpu_layers"],
                "adapters": adapters_in(task, parameters),
                "prompt": parameters.get("prompt")
                or SAMPLE_PROMPTS.get(role, SAMPLE_PROMPTS["chat"]),
            },
        )
    )


def _settings(
    parameters: Mapping[str, Any], measured: Mapping[str, Any], *, gpu: bool
) -> dict[str, str | int | float | bool]:
    return {
        "context_tokens": int(parameters["context_tokens"]),
        "parallel": int(parameters["parallel"]),
        "kv_cache": str(parameters["kv_cache"]),
        "gpu_layers": _said_layers(int(parameters["gpu_layers"])) if gpu else "none",
        "layers": str(measured["layers"]),
        "flash_attention": bool(measured["flash_attention"]),
        "batch_tokens": int(measured["batch_tokens"]),
        "threads": int(measured["threads"]),
        "chat_template": bool(measured["chat_template"]),
        "backend_memory_bytes": int(measured["backend_bytes"]),
        "backend_memory_source": str(measured["buffers_source"]),
        "resident_memory_bytes": int(measured["resident_bytes"]),
        "context_filled": bool(measured["context_filled"]),
    }


def _said_layers(gpu_layers: int) -> str | int:
    return "all" if gpu_layers < 0 else gpu_layers


def _compare(
    task: Task, parameters: Mapping[str, Any], settings: dict[str, Any], notes: list[str],
    *, gpu: bool,
) -> tuple[Quality | None, Fingerprint | None]:  # fmt: skip
    """Return the quality figures and the fingerprint that was left beside them.

    Neither without held-out text or without a reference.

    Raises:
        RecipeError: much of the held-out text is in the calibration text.
    """
    if not _comparable(task, notes):
        return None, None
    notes += leak_notes(task.inputs)
    likelihoods = file_of_answer(task, FINGERPRINT_NAME)
    found = dict(
        ask_once(
            task,
            f"{JOBS}.evaluate:evaluate_job",
            {
                **_evaluation(task, parameters, gpu=gpu),
                "further": True,
                "fingerprint": str(likelihoods),
            },
            progress=task.progress,
            leaves=[likelihoods],
        )
    )
    if likelihoods.parent != task.output:
        shutil.copyfile(likelihoods, task.output / FINGERPRINT_NAME)
    settings["quality_mode"] = found.pop("mode")
    evaluated = found.pop("windows") * found["context_tokens"]
    settings["evaluated_tokens"] = evaluated
    if evaluated < int(parameters["tokens"]) - int(found["context_tokens"]):
        notes.append(
            f"the held-out text is short: {evaluated} tokens evaluated of "
            f"{parameters['tokens']} asked for"
        )
    fingerprint = Fingerprint(**found.pop("fingerprint"))
    return Quality(**found), fingerprint


def _depth(
    task: Task, parameters: Mapping[str, Any], notes: list[str], *, gpu: bool
) -> Depth | None:
    """Return how errors grow with the position, where that was asked for and can be measured."""
    tokens = min(int(parameters["depth_tokens"]), int(parameters["context_tokens"]))
    if tokens < LEAST_TOKENS or not _comparable(task, []):
        return None
    asked = {
        key: value
        for key, value in _evaluation(task, parameters, gpu=gpu).items()
        if key not in ("window_tokens", "scratch")
    }
    found = ask_once(
        task, f"{JOBS}.depth:depth_job", {**asked, "tokens": tokens}, progress=task.progress
    )
    if found is None:
        notes.append(
            "the held-out text is too short to see whether errors grow with the position: it takes "
            f"{LEAST_TOKENS:,} tokens"
        )
        return None
    depth = Depth(**found)
    if depth.growth > max(SMALL_GROWTH, _SURE * depth.growth_standard_error):
        notes.append(
            f"far into its context it falls behind: tokens {depth.parts[-1].first:,} to "
            f"{depth.parts[-1].last:,} cost {depth.growth:.3f} ± {depth.growth_standard_error:.3f} "
            "nats more than the first ones do, against the unquantized model; kv_cache = 'f16' or "
            "a larger quantization may help"
        )
    return depth


def _evaluation(task: Task, parameters: Mapping[str, Any], *, gpu: bool) -> dict[str, Any]:
    """Return the arguments of the comparison; empty where there is nothing to compare with."""
    if not _comparable(task, []):
        return {}
    return {
        "model": str(task.inputs["model.gguf"]),
        "reference": str(task.inputs["reference.gguf"]),
        "text": str(task.inputs["heldout.txt"]),
        "text_name": "heldout.txt",
        "window_tokens": min(WINDOW_TOKENS, int(parameters["context_tokens"])),
        "tokens": int(parameters["tokens"]),
        "kv_cache": parameters["kv_cache"],
        "gpu": gpu,
        "gpu_layers": parameters["gpu_layers"],
        "adapters": adapters_in(task, parameters),
        "scratch": str(_scratch(task)),
    }


def _compare_vectors(
    task: Task, parameters: Mapping[str, Any], settings: dict[str, Any], notes: list[str],
    *, gpu: bool,
) -> float | None:  # fmt: skip
    if not _comparable(task, notes):
        return None
    role = str(parameters["role"])
    found = dict(
        ask_once(
            task,
            f"{JOBS}.embed:{'embed_job' if role == 'embed' else 'rerank_job'}",
            {
                "model": str(task.inputs["model.gguf"]),
                "reference": str(task.inputs["reference.gguf"]),
                "text": str(task.inputs["heldout.txt"]),
                "window_tokens": min(WINDOW_TOKENS, int(parameters["context_tokens"])),
                "gpu": gpu,
                "gpu_layers": parameters["gpu_layers"],
                "adapters": adapters_in(task, parameters),
            },
            progress=task.progress,
        )
    )
    settings.update(found)
    if role == "embed":
        return float(found["cosine_min"])
    notes.append("a reranker is judged by its order of passages; perplexity means nothing for it")
    return None


def _comparable(task: Task, notes: list[str]) -> bool:
    missing = [name for name in ("reference.gguf", "heldout.txt") if name not in task.inputs]
    if missing:
        notes.append(f"quality was not measured: there is no {' and no '.join(missing)}")
    return not missing


def _scratch(task: Task) -> Path:
    """Return where a two-pass comparison may keep logits: the step's own disk, not the result."""
    return task.world.store.root / "work"
