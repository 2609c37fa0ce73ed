"""Run a model as it will be run: its full context, for all its users; memory and speed.

Runs only in a child process of its own, so that the driver's account of the process is the model's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.breakdown import memory_by_backend
from bundler.builtin.llamacpp.embed import time_embedding
from bundler.builtin.llamacpp.generate import sample_text, time_generation
from bundler.builtin.llamacpp.nvidia import GpuMeter, gpu_meter
from bundler.builtin.llamacpp.session import (
    Context,
    Model,
    adapters_of,
    open_context,
    open_model,
    require_placement,
    usable_threads,
)

BATCH_TOKENS = 512
"""Logical and physical batch of a server's prompt processing (llama-server's physical default)."""
_FILL_SECONDS = 60.0


def measure_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: load, time, sample and fill; returns device, speed, sample and memory.

    Arguments: model, role, context_tokens, parallel, kv_cache, gpu, gpu_layers, adapters, prompt.
    """
    gpu, layers = bool(arguments["gpu"]), int(arguments.get("gpu_layers", -1))
    adapters = adapters_of(arguments)
    with gpu_meter(wanted=gpu) as meter:
        started = time.perf_counter()
        with open_model(
            Path(arguments["model"]), gpu=gpu, gpu_layers=layers, adapters=adapters
        ) as model:
            if gpu:
                require_placement(model, layers)
            with open_context(model, **_context_settings(arguments)) as context:
                load_seconds = time.perf_counter() - started
                meter.sample()
                return _measured(model, context, arguments, meter, load_seconds, report)


def _embeds(arguments: Mapping[str, Any]) -> bool:
    return str(arguments["role"]) in ("embed", "rerank")


def _context_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    users, context_tokens = int(arguments["parallel"]), int(arguments["context_tokens"])
    kv_cache = str(arguments["kv_cache"])
    settings: dict[str, Any] = {
        "context_tokens": context_tokens * users,
        "sequences": users,
        "kv_cache": kv_cache,
        # llama.cpp refuses a quantized value cache without flash attention.
        "flash_attention": "auto" if kv_cache == "f16" else "on",
        "batch_tokens": min(BATCH_TOKENS, context_tokens * users),
        # As servers have it and the plan counts it, whatever the vocabulary.
        "micro_batch_tokens": min(BATCH_TOKENS, context_tokens * users),
    }
    if _embeds(arguments):
        # Without causal attention a text must go through in one piece.
        settings |= {
            "embeddings": True,
            "batch_tokens": context_tokens,
            "micro_batch_tokens": context_tokens,
        }
    return settings


def _measured(
    model: Model, context: Context, arguments: Mapping[str, Any], meter: GpuMeter,
    load_seconds: float, report: Any,
) -> dict[str, Any]:  # fmt: skip
    context_tokens, gpu = int(arguments["context_tokens"]), bool(arguments["gpu"])
    notes: list[str] = []
    filled = False
    if _embeds(arguments):
        speed, sample = time_embedding(model, context, str(arguments["prompt"]), context_tokens)
    else:
        speed = time_generation(model, context, context_tokens, report)
        sample = sample_text(model, context, str(arguments["prompt"]), context_tokens, notes)
        if gpu:
            users = int(arguments["parallel"])
            filled = _fill(model, context, context_tokens, users, meter, notes)
    meter.sample()
    buffers, how = memory_by_backend(context)
    held = {name: b.total for name, b in buffers.items()}
    for name, size in model.adapter_bytes.items():
        held[name] = held.get(name, 0) + size
    backend_bytes = _on_device(held, gpu=gpu)
    return {
        "device": {
            **_device(model, meter, gpu=gpu),
            "peak_memory_bytes": meter.peak_bytes if meter.source else backend_bytes,
            "peak_memory_source": meter.source or "backend",
        },
        "backend_bytes": backend_bytes,
        "buffers": {name: list(figures) for name, figures in buffers.items()},
        "buffers_source": how,
        "context_filled": filled,
        "resident_bytes": psutil.Process().memory_info().rss,
        "speed": {**speed, "load_seconds": round(load_seconds, 3)},
        "layers": layers_by_device(model.layer_devices),
        "threads": usable_threads(model.path),
        "batch_tokens": context.batch_tokens,
        "flash_attention": context.flash_attention(),
        "notes": notes,
        **sample,
    }


def _device(model: Model, meter: GpuMeter, *, gpu: bool) -> dict[str, Any]:
    found = native.best_devices() if gpu else native.processor()
    return {
        "kind": found[0].kind,
        "name": " + ".join(device.description for device in found),
        "driver": meter.driver,
        "backend_build": native.build(),
        "offloaded_layers": model.layers_offloaded,
        "total_layers": model.layers_total,
    }


def layers_by_device(homes: Mapping[int, str]) -> str:
    """Say in one line where the layers are: `CPU 0-11, CUDA0 12-32`."""
    runs: list[tuple[str, int, int]] = []
    for number, device in sorted(homes.items()):
        if runs and runs[-1][0] == device and runs[-1][2] == number - 1:
            runs[-1] = (device, runs[-1][1], number)
        else:
            runs.append((device, number, number))
    return ", ".join(f"{d} {a}-{b}" if a < b else f"{d} {a}" for d, a, b in runs)


def _on_device(bytes_by_backend: Mapping[str, int], *, gpu: bool) -> int:
    """Sum what lies on the accelerator (or, on a CPU, everything)."""
    if not gpu:
        return sum(bytes_by_backend.values())
    names = tuple(device.name for device in native.best_devices())
    return sum(size for name, size in bytes_by_backend.items() if name.startswith(names))


def _fill(
    model: Model, context: Context, context_tokens: int, users: int, meter: GpuMeter,
    notes: list[str],
) -> bool:  # fmt: skip
    """Fill every user's context on the accelerator: some of its memory is taken only in use.

    Returns whether there was time for all of it.
    """
    deadline = time.monotonic() + _FILL_SECONDS
    rng = np.random.default_rng(1)
    context.clear()
    for user in range(users):
        for first in range(0, context_tokens, context.batch_tokens):
            if time.monotonic() > deadline:
                notes.append(
                    f"memory was measured with {user * context_tokens + first} of "
                    f"{users * context_tokens} tokens in use (stopped after {_FILL_SECONDS:.0f} s)"
                )
                return False
            size = min(context.batch_tokens, context_tokens - first)
            words = [int(word) for word in rng.integers(0, model.vocabulary, size)]
            context.decode(words, start=first, sequence=user)
            meter.sample()
    return True
