"""Turning a tensor's bytes, piece by piece: peak memory is some pieces, not some tensors.

Rounding is that of `gguf-py/gguf/quants.py` in the llama.cpp source: to nearest even, NaN made
quiet; so the bytes are the same as the official converter's.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint, StoredTensor
from bundler.builtin.llamacpp.convert.tensors import READABLE, OutputTensor
from bundler.errors import StepFailed

PIECE_BYTES = 1 << 20
"""Bytes read at a time (rows that must stay together may make it more)."""

Array = np.ndarray[Any, np.dtype[Any]]


def pieces(
    checkpoint: Checkpoint, tensor: OutputTensor, piece_bytes: int = PIECE_BYTES
) -> Iterator[Array]:
    """Yield the tensor's data as it is written, in order. Raises UnsafeInput, StepFailed."""
    if tensor.source is None:
        yield np.asarray(tensor.values, dtype="<f4")
        return
    shape = tensor.plan.shape
    rows, columns = shape[0], shape[1:]
    row_bytes = prod(columns) * READABLE[tensor.source.type]
    together = tensor.reorder.head_rows if tensor.reorder else 1
    step = max(1, piece_bytes // (row_bytes * together)) * together
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = checkpoint.read_data(tensor.source, first * row_bytes, count * row_bytes)
        array = _raw_array(raw, tensor.source.type).reshape(count, *columns)
        array = tensor.reorder(array) if tensor.reorder else array
        yield _as_type(np.ravel(array), tensor.source, tensor.plan.type)


def _raw_array(raw: bytes, type_: str) -> Array:
    """View bytes as numbers; BF16 stays 16 bits, for numpy does not know it."""
    return np.frombuffer(
        raw, dtype={"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}[type_]
    )


def _as_type(array: Array, source: StoredTensor, wanted: str) -> Array:
    if source.type == wanted:
        return _quiet_bf16(array) if wanted == "BF16" else array
    if source.type == "BF16":
        array = _widened(array)
    array = array.astype("<f4", copy=False)
    if wanted == "BF16":
        return _round_to_bf16(array)
    return _round_to_f16(array, source) if wanted == "F16" else array


def _widened(bits: Array) -> Array:
    """Make single precision of BF16: the upper half of each number."""
    halves = np.zeros(2 * bits.size, dtype="<u2")
    halves[1::2] = bits
    return halves.view("<f4")


def _quiet_bf16(bits: Array) -> Array:
    magnitude = bits & 0x7FFF
    if magnitude.max() <= 0x7F80:
        return bits
    return np.where(magnitude > 0x7F80, bits | 0x40, bits)


def _round_to_bf16(array: Array) -> Array:
    bits: Array = array.view("<u4")
    noisy = (bits & 0x7FFFFFFF) > 0x7F800000
    if noisy.any():
        bits = np.where(noisy, (bits & np.uint32(0xFFFF0000)) | np.uint32(64 << 16), bits)
    # No carry is lost: the largest pattern that is no NaN is -infinity, 0xff800000.
    rounded: Array = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    return rounded


def _round_to_f16(array: Array, source: StoredTensor) -> Array:
    with np.errstate(over="ignore"):
        result = array.astype("<f2")
    lost = np.isinf(result) & np.isfinite(array)
    if lost.any():
        raise StepFailed(
            f"tensor {source.name!r} has values up to {np.abs(array[lost]).max():.6g}, too large "
            "for F16", where=source.file, hint="convert to BF16 or F32 instead",
        )  # fmt: skip
    return result
