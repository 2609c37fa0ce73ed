"""Jobs for a child process: what llama.cpp itself takes for LoRA adapters and for projectors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp import native
from tests import pretended_devices, sizing_jobs

_BUFFERS_AT = 8 + 56 + 24
"""Of `llama_adapter_lora`: behind the model, an unordered map and a vector (libstdc++, 64 bits)."""


def adapted(arguments: dict[str, Any], report: Any) -> dict[str, Any]:
    """Return the bytes of adapters by backend, and of all else in each cell once they are applied.

    Arguments are those of `sizing_jobs.breakdowns`, and `adapters`: [[path, scale], …].
    """
    llama = native.llama()
    model = sizing_jobs._open(arguments)
    loaded, scales, taken = [], [], {}
    for path, scale in arguments["adapters"]:
        adapter = llama.llama_adapter_lora_init(model, path.encode())
        if not adapter:
            return {"refused": native.last_errors()}
        address = ctypes.cast(adapter, ctypes.c_void_p).value
        loaded.append(address)
        scales.append(scale)
        for name, size in _buffers(address or 0):
            taken[name] = taken.get(name, 0) + size
    apply = native.symbol(
        "llama_set_adapters_lora", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_size_t, ctypes.c_void_p,
    )  # fmt: skip
    reserve = native.symbol("_ZN13llama_context13sched_reserveEv", None, ctypes.c_void_p)
    cells = []
    for cell in arguments["cells"]:
        context = sizing_jobs._context(model, cell)
        count = len(loaded)
        done = apply(
            context, (ctypes.c_void_p * count)(*loaded), count, (ctypes.c_float * count)(*scales)
        )
        assert done == 0
        reserve(context)
        cells.append(sizing_jobs._breakdown(context))
        llama.llama_free(context)
    return {"adapters": taken, "cells": cells}


def _buffers(adapter: int) -> list[tuple[str, int]]:
    """Return the backend and size of each buffer that an adapter's weights lie in."""
    first, end = (ctypes.c_void_p.from_address(adapter + _BUFFERS_AT + n).value for n in (0, 8))
    name = native.symbol("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    type_of = native.symbol("ggml_backend_buffer_get_type", ctypes.c_void_p, ctypes.c_void_p)
    size = native.symbol("ggml_backend_buffer_get_size", ctypes.c_size_t, ctypes.c_void_p)
    assert first
    assert end
    assert 0 < end - first <= 64 * 8
    buffers = [ctypes.c_void_p.from_address(at).value for at in range(first, end, 8)]
    return [(name(type_of(one)).decode(), size(one)) for one in buffers]


def layers(arguments: dict[str, Any], report: Any) -> dict[str, Any]:
    """Open a model on a pretended accelerator and return what llama.cpp says of each layer."""
    from bundler.builtin.llamacpp.session import open_model, require_placement

    pretended_devices.register(1)
    wanted = int(arguments["gpu_layers"])
    with open_model(
        Path(arguments["path"]), gpu=True, gpu_layers=wanted, no_alloc=True, load_mode=0
    ) as model:
        require_placement(model, wanted)
        return {"total": model.layers_total, "homes": model.layer_devices, "kept": True}
