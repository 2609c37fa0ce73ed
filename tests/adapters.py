"""LoRA adapters made from numbers, as GGUF files: real ones and such with headers only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bundler.lock import LockedFile, ModelFacts, Resolution, TensorFact
from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field

_NUMBERS = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


def fields_of(architecture: str, alpha: float = 16.0, **more: GgufField) -> dict[str, GgufField]:
    """Return the header fields of an adapter."""
    return {
        "general.architecture": field("STRING", architecture),
        "general.type": field("STRING", "adapter"),
        "adapter.type": field("STRING", "lora"),
        "adapter.lora.alpha": field("FLOAT32", alpha),
        **more,
    }


def is_changed(tensor: TensorFact) -> bool:
    """Tell whether an ordinary adapter changes a tensor: the matrices of all layers."""
    return tensor.name.startswith("blk.") and "norm" not in tensor.name and len(tensor.shape) >= 2


def plans_of(
    facts: ModelFacts, rank: int, type_: str = "F16",
    changes: Callable[[TensorFact], bool] = is_changed,
) -> list[TensorPlan]:  # fmt: skip
    """Return the pairs of an adapter for a model."""
    plans = []
    for tensor in facts.tensors:
        if changes(tensor):
            *experts, rows, columns = tensor.shape
            plans.append(TensorPlan(f"{tensor.name}.lora_a", type_, (*experts, rank, columns)))
            plans.append(TensorPlan(f"{tensor.name}.lora_b", type_, (*experts, rows, rank)))
    return plans


def write_adapter(
    path: Path, plans: list[TensorPlan], fields: Mapping[str, GgufField], *, seed: int | None = None
) -> Path:
    """Write an adapter; with a hole for its weights where no `seed` makes numbers."""
    header = encode_header(dict(fields), plans)
    sizes = [(plan.size_bytes + 31) // 32 * 32 for plan in plans]
    path.write_bytes(header)
    if seed is None:
        os.truncate(path, len(header) + sum(sizes))
        return path
    rng = np.random.default_rng(seed)
    with path.open("ab") as stream:
        for plan, size in zip(plans, sizes, strict=True):
            numbers = rng.standard_normal(plan.shape, dtype=np.float32) * np.float32(0.05)
            stream.write(numbers.astype(_NUMBERS[plan.type]).tobytes().ljust(size, b"\0"))
    return path


def resolution_of(path: Path, file: LockedFile | None = None) -> Resolution:
    """Return a source with one file."""
    file = file or LockedFile(path=path.name, size_bytes=path.stat().st_size, sha256="0" * 64)
    return Resolution(source="path", reference=f"path:{path}", revision="1", files=(file,))
