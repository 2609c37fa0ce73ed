"""Tensors of a running graph, as ggml has them in memory.

Runs only in a child process. Operations are looked up by name at run time, because the numbers
move between versions; the tensor's layout is guarded by the size that the library reports.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.errors import StepFailed

_POINTER, _SIZE, _INT, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
_OBJECT_BYTES = 32  # sizeof(struct ggml_object), which ggml_tensor_overhead counts as well


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""

    _fields_ = (
        ("type", _INT), ("buffer", _POINTER), ("ne", ctypes.c_int64 * 4), ("nb", _SIZE * 4),
        ("op", _INT), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", _POINTER * 10), ("view_src", _POINTER), ("view_offs", _SIZE), ("data", _POINTER),
        ("name", ctypes.c_char * 64), ("extra", _POINTER), ("padding", ctypes.c_char * 8),
    )  # fmt: skip


@functools.cache
def check_layout() -> None:
    """Raise StepFailed when the library's tensor is not the one described here."""
    reported = native.symbol("ggml_tensor_overhead", _SIZE)()
    if reported != ctypes.sizeof(Tensor) + _OBJECT_BYTES:
        raise StepFailed(
            f"this llama.cpp lays its tensors out differently ({reported} bytes)",
            hint="use llama-cpp-python 0.3.36 or a version known to work with this bundler",
        )


@functools.cache
def operation(name: str) -> int:
    """Return the number of an operation such as `MUL_MAT`."""
    op_name = native.symbol("ggml_op_name", _TEXT, _INT)
    # Names of numbers beyond the last are outside the library's array: stop at the last known op.
    for number in range(1, 80):
        if op_name(number) == name.encode():
            return number
    raise StepFailed(f"this llama.cpp has no operation {name}")


def tensor_at(address: int) -> Any:
    """Return the tensor at an address that the library gave."""
    return Tensor.from_address(address)


def weight_name(tensor: Any) -> str:
    """Return a weight's own name: the scheduler writes a copy on a device as `CUDA0#name#0`."""
    name = str(tensor.name.decode("utf-8", "replace"))
    return name.split("#")[1] if name.count("#") >= 2 else name


def read_bytes(address: int) -> npt.NDArray[np.uint8]:
    """Copy a tensor's bytes from wherever it lies, device memory included."""
    size = native.symbol("ggml_nbytes", _SIZE, _POINTER)(address)
    out = np.empty(size, np.uint8)
    get = native.symbol("ggml_backend_tensor_get", None, _POINTER, _POINTER, _SIZE, _SIZE)
    get(address, out.ctypes.data, 0, size)
    return out


def read_floats(address: int) -> npt.NDArray[np.float32]:
    """Return an F32 tensor as a four-dimensional array, outermost dimension first.

    Read in place where it lies in main memory (valid until the next step of the graph), else
    copied; strided views are honoured.
    """
    tensor = tensor_at(address)
    shape = tuple(int(n) for n in reversed(tensor.ne))
    strides = tuple(int(n) for n in reversed(tensor.nb))
    is_host = native.symbol("ggml_backend_buffer_is_host", ctypes.c_bool, _POINTER)
    if tensor.buffer and is_host(tensor.buffer):
        size = native.symbol("ggml_nbytes", _SIZE, _POINTER)(address)
        raw = np.frombuffer((ctypes.c_char * size).from_address(tensor.data), np.uint8)
    else:
        raw = read_bytes(address)
    return np.lib.stride_tricks.as_strided(raw.view(np.float32), shape, strides, writeable=False)


def read_integers(address: int) -> npt.NDArray[np.int32]:
    """Copy a two-dimensional I32 tensor, outermost dimension first."""
    tensor = tensor_at(address)
    raw = read_bytes(address).view(np.int32)
    shape, strides = (tensor.ne[1], tensor.ne[0]), (tensor.nb[1], tensor.nb[0])
    return np.lib.stride_tricks.as_strided(raw, shape, strides).copy()
