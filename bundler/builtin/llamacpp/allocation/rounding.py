"""Rounding rows of weights with ggml's own code, and reading them back. Only in a child process."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.allocation.matrices import Floats, narrowed, widened
from bundler.builtin.llamacpp.schemes import UNQUANTIZED
from bundler.errors import StepFailed
from bundler.weights.ggml_types import BY_NAME

_POINTER, _INT, _SIZE, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
_TO_FLOAT = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _LONG)


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p), ("blck_size", _LONG), ("blck_size_interleave", _LONG),
        ("type_size", _SIZE), ("is_quantized", ctypes.c_bool), ("to_float", _POINTER),
        ("from_float_ref", _POINTER),
    )  # fmt: skip


@functools.cache
def _to_float(type_name: str) -> Any:
    """Return ggml's function that reads a type; checked against what we know of the type."""
    known = BY_NAME[type_name]
    traits = native.symbol("ggml_get_type_traits", ctypes.POINTER(_Traits), _INT)(known.number)
    found = traits.contents
    if (found.blck_size, found.type_size) != (known.block_values, known.block_bytes):
        raise StepFailed(
            f"this llama.cpp stores {type_name} differently ({found.blck_size} values in "
            f"{found.type_size} bytes)",
            hint="use llama-cpp-python 0.3.36 or a version known to work with this bundler",
        )
    return _TO_FLOAT(found.to_float)


@functools.cache
def _quantize() -> Any:
    arguments = (_INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER)
    return native.symbol("ggml_quantize_chunk", _SIZE, *arguments)


def round_trip(rows: Floats, type_name: str, importance: Floats | None) -> Floats:
    """Return rows as they come back after being stored as `type_name`.

    `importance` holds the mean squared input of each column, or is None. The interpreter is free
    while ggml works, so threads may do this side by side.
    """
    if type_name in UNQUANTIZED:
        return widened(narrowed(rows, type_name), type_name)
    values = np.ascontiguousarray(rows, np.float32)
    count, length = values.shape
    kind = BY_NAME[type_name]
    stored = np.empty(count * (length // kind.block_values) * kind.block_bytes, np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    read = _to_float(type_name)
    _quantize()(
        kind.number, values.ctypes.data, stored.ctypes.data, 0, count, length,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    back = np.empty_like(values)
    read(stored.ctypes.data, back.ctypes.data, values.size)
    return back
