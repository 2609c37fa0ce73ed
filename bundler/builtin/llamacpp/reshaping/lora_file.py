"""A correction as a LoRA adapter that any llama.cpp loads beside the model.

`llama_adapter_lora_init_impl` (src/llama-adapter.cpp) wants pairs of one model's architecture and
multiplies by alpha over rank; with an alpha of 0 it does not, so that ranks may differ.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundler.builtin.llamacpp.reshaping.low_rank import Correction, Floats
from bundler.store import full_disk_is_an_error
from bundler.weights.gguf_writer import TensorPlan, encode_header, field

_ALIGNMENT = 32
_Q8_BLOCK = 32


def write_lora(
    path: Path, corrections: Mapping[str, Correction], architecture: str, type_name: str
) -> int:
    """Write an adapter of `Q8_0` or `F16`; return its size in bytes.

    A half whose rows are no multiple of 32 stays F16, which llama.cpp takes side by side with Q8_0.
    """
    fields = {
        "general.architecture": field("STRING", architecture),
        "general.type": field("STRING", "adapter"),
        "general.name": field("STRING", "correction of a quantized model"),
        "adapter.type": field("STRING", "lora"),
        "adapter.lora.alpha": field("FLOAT32", 0.0),
    }
    halves = [
        (f"{name}.lora_{half}", values)
        for name, found in sorted(corrections.items())
        for half, values in (("a", found.down), ("b", found.up))
    ]
    plans = [TensorPlan(n, _type_of(values, type_name), values.shape) for n, values in halves]
    partial = path.with_name(path.name + ".partial")
    with full_disk_is_an_error(path.parent, path.name), partial.open("wb") as stream:
        stream.write(encode_header(fields, plans))
        for plan, (_, values) in zip(plans, halves, strict=True):
            raw = q8_0(values) if plan.type == "Q8_0" else values.astype("<f2").tobytes()
            stream.write(raw + bytes(-len(raw) % _ALIGNMENT))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return path.stat().st_size


def _type_of(values: Floats, type_name: str) -> str:
    return "Q8_0" if type_name == "Q8_0" and values.shape[-1] % _Q8_BLOCK == 0 else "F16"


def q8_0(values: Floats) -> bytes:
    """Return values as ggml's Q8_0: an F16 scale and 32 signed bytes for each block."""
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, _Q8_BLOCK)
    scales = (np.abs(blocks).max(axis=1) / np.float32(127)).astype(np.float32)
    inverse = np.where(scales > 0, 1 / np.maximum(scales, 1e-38), 0).astype(np.float32)
    scaled = blocks * inverse[:, None]
    # As roundf does: halves away from zero.
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    stored = np.empty(len(blocks), np.dtype([("scale", "<f2"), ("values", "i1", _Q8_BLOCK)]))
    stored["scale"], stored["values"] = scales.astype("<f2"), rounded
    return stored.tobytes()
