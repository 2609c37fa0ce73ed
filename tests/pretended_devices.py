"""Accelerators that are not there: enough of ggml's backend interface for llama.cpp to plan with.

Registered in a child process, they let llama.cpp lay out layers, split graphs and reserve compute
buffers as it does on a machine with GPUs, as long as nothing is allocated on them or computed.
Layouts are those of `ggml/src/ggml-backend-impl.h`, API version 2.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

from bundler.builtin.llamacpp import ggml, native

API_VERSION = 2
FREE_BYTES = 80 << 30
_ALIGNMENT = 128
_POINTER, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_GPU = 1
_kept: list[Any] = []


def _functions(name: str, *members: str) -> type[ctypes.Structure]:
    """Make a struct of pointers, each a function or null."""
    fields = [(member, _POINTER) for member in members]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_BufferTypeFunctions = _functions(
    "_BufferTypeFunctions", "get_name", "alloc_buffer", "get_alignment", "get_max_size",
    "get_alloc_size", "is_host",
)  # fmt: skip
_BackendFunctions = _functions(
    "_BackendFunctions", "get_name", "free", "set_tensor_async", "get_tensor_async",
    "set_tensor_2d_async", "get_tensor_2d_async", "cpy_tensor_async", "synchronize",
    "graph_plan_create", "graph_plan_free", "graph_plan_update", "graph_plan_compute",
    "graph_compute", "event_record", "event_wait", "graph_optimize",
)  # fmt: skip
_DeviceFunctions = _functions(
    "_DeviceFunctions", "get_name", "get_description", "get_memory", "get_type", "get_props",
    "init_backend", "get_buffer_type", "get_host_buffer_type", "buffer_from_host_ptr",
    "supports_op", "supports_buft", "offload_op", "event_new", "event_free", "event_synchronize",
)  # fmt: skip
_RegistryFunctions = _functions(
    "_RegistryFunctions", "get_name", "get_device_count", "get_device", "get_proc_address"
)


class _BufferType(ctypes.Structure):
    _fields_ = (("iface", _BufferTypeFunctions), ("device", _POINTER), ("context", _POINTER))


class _Backend(ctypes.Structure):
    _fields_ = (
        ("guid", _POINTER), ("iface", _BackendFunctions), ("device", _POINTER),
        ("context", _POINTER),
    )  # fmt: skip


class _Device(ctypes.Structure):
    _fields_ = (("iface", _DeviceFunctions), ("registry", _POINTER), ("context", _POINTER))


class _Registry(ctypes.Structure):
    _fields_ = (("api_version", ctypes.c_int), ("iface", _RegistryFunctions), ("context", _POINTER))


class _Properties(ctypes.Structure):
    _fields_ = (
        ("name", _TEXT), ("description", _TEXT), ("memory_free", _SIZE), ("memory_total", _SIZE),
        ("type", ctypes.c_int), ("device_id", _TEXT), ("can_async", ctypes.c_bool),
        ("host_buffer", ctypes.c_bool), ("buffer_from_host_ptr", ctypes.c_bool),
        ("events", ctypes.c_bool), ("mmap_support", ctypes.c_bool),
    )  # fmt: skip


def _callback(result: Any, *arguments: Any) -> Any:
    """Turn a Python function into a C one that stays alive."""

    def make(function: Any) -> Any:
        made = ctypes.CFUNCTYPE(result, *arguments)(function)
        _kept.append(made)
        return ctypes.cast(made, _POINTER)

    return make


def register(count: int) -> None:
    """Add `count` equal accelerators that work like CUDA's as far as planning goes."""
    native.llama()
    ggml.check_layout()
    registry = _Registry(api_version=API_VERSION)
    devices = [_device(number, registry) for number in range(count)]
    registry.iface.get_name = _callback(_TEXT, _POINTER)(lambda registry: b"PRETENDED")
    registry.iface.get_device_count = _callback(_SIZE, _POINTER)(lambda registry: count)
    registry.iface.get_device = _callback(_POINTER, _POINTER, _SIZE)(
        lambda registry, index: ctypes.addressof(devices[index])
    )
    registry.iface.get_proc_address = _callback(_POINTER, _POINTER, _TEXT)(lambda r, name: None)
    _kept.extend((registry, devices))
    native.symbol("ggml_backend_register", None, _POINTER)(ctypes.addressof(registry))


def _device(number: int, registry: _Registry) -> _Device:
    name = f"PRETENDED{number}".encode()
    device = _Device(registry=ctypes.addressof(registry))
    buffers = _buffer_type(name, device)
    own, functions = ctypes.addressof(buffers), device.iface

    def set_memory(device: int, free: Any, total: Any) -> None:
        free[0] = total[0] = FREE_BYTES

    def set_properties(device: int, found: Any) -> None:
        found[0] = _Properties(
            name=name, description=name, memory_free=FREE_BYTES, memory_total=FREE_BYTES,
            type=_GPU, can_async=True, events=True,
        )  # fmt: skip

    sizes = ctypes.POINTER(_SIZE)
    functions.get_name = functions.get_description = _callback(_TEXT, _POINTER)(lambda d: name)
    functions.get_memory = _callback(None, _POINTER, sizes, sizes)(set_memory)
    functions.get_type = _callback(ctypes.c_int, _POINTER)(lambda device: _GPU)
    functions.get_props = _callback(None, _POINTER, ctypes.POINTER(_Properties))(set_properties)
    functions.init_backend = _callback(_POINTER, _POINTER, _TEXT)(
        lambda address, parameters: _backend(name, address)
    )
    functions.get_buffer_type = _callback(_POINTER, _POINTER)(lambda device: own)
    functions.supports_op = _callback(ctypes.c_bool, _POINTER, _POINTER)(lambda d, op: True)
    functions.supports_buft = _callback(ctypes.c_bool, _POINTER, _POINTER)(
        lambda device, buffers: buffers == own
    )
    functions.offload_op = _callback(ctypes.c_bool, _POINTER, _POINTER)(_offloads)
    # Events exist, so that several devices work in a pipeline; none is ever waited for.
    functions.event_new = _callback(_POINTER, _POINTER)(lambda device: None)
    return device


def _buffer_type(name: bytes, device: _Device) -> _BufferType:
    found = _BufferType(device=ctypes.addressof(device))
    found.iface.get_name = _callback(_TEXT, _POINTER)(lambda buffers: name)
    found.iface.get_alignment = _callback(_SIZE, _POINTER)(lambda buffers: _ALIGNMENT)
    found.iface.get_alloc_size = _callback(_SIZE, _POINTER, _POINTER)(_alloc_size)
    found.iface.alloc_buffer = _callback(_POINTER, _POINTER, _SIZE)(_allocate)
    _kept.append(found)
    return found


_BUFFER_TYPE_AT = 11 * ctypes.sizeof(_POINTER)
"""Of `ggml_backend_buffer`: behind the eleven functions of its interface."""


def _allocate(buffers: int, size: int) -> int:
    """Allocate in main memory what only says that it lies on the device: a LoRA adapter's weights."""
    processor = native.symbol("ggml_backend_cpu_buffer_type", _POINTER)()
    made = native.symbol("ggml_backend_buft_alloc_buffer", _POINTER, _POINTER, _SIZE)(
        processor, size + _ALIGNMENT
    )
    step = ctypes.sizeof(_POINTER)
    ctypes.c_void_p.from_address(made).value = None  # never freed: it begins elsewhere now
    ctypes.c_void_p.from_address(made + _BUFFER_TYPE_AT).value = buffers
    begin = ctypes.c_void_p.from_address(made + _BUFFER_TYPE_AT + step)
    begin.value = -(-(begin.value or 0) // _ALIGNMENT) * _ALIGNMENT
    ctypes.c_size_t.from_address(made + _BUFFER_TYPE_AT + 2 * step).value = size
    return int(made)


def _backend(name: bytes, device: int) -> int:
    made = _Backend(device=device, guid=ctypes.addressof(_guid))
    made.iface.get_name = _callback(_TEXT, _POINTER)(lambda backend: name)
    made.iface.free = _callback(None, _POINTER)(lambda backend: None)
    made.iface.synchronize = _callback(None, _POINTER)(lambda backend: None)
    _kept.append(made)
    return ctypes.addressof(made)


_guid = (ctypes.c_uint8 * 16)(*range(16))


def _offloads(device: int, address: int) -> bool:
    """`get_op_batch_size` of ggml-cuda.cu against its least batch."""
    node = ggml.tensor_at(address)
    if node.op == ggml.operation("GET_ROWS"):
        return False
    if node.op == ggml.operation("MUL_MAT"):
        return bool(node.ne[1] >= 32)
    if node.op in (ggml.operation("MUL_MAT_ID"), ggml.operation("ROPE")):
        return bool(node.ne[2] >= 32)
    return bool(prod(node.ne[1:]) >= 32)


def _alloc_size(buffers: int, address: int) -> int:
    """`ggml_backend_cuda_buffer_type_get_alloc_size` with kernels that want F16 keys and values."""
    size = int(native.symbol("ggml_nbytes", _SIZE, _POINTER)(address))
    node = ggml.tensor_at(address)
    if node.op == ggml.operation("FLASH_ATTN_EXT"):
        keys, values = ggml.tensor_at(node.src[1]), ggml.tensor_at(node.src[2])
        same = values.view_src == keys.view_src and values.view_offs == keys.view_offs
        shared = bool(values.view_src) and same
        for tensor in (keys,) if shared else (keys, values):
            if tensor.type != 1:  # GGML_TYPE_F16
                size = -(-size // 128) * 128 + 2 * prod(tensor.ne)
    if native.symbol("ggml_is_quantized", ctypes.c_bool, ctypes.c_int)(node.type):
        missing = -node.ne[0] % 512
        size += native.symbol("ggml_row_size", _SIZE, ctypes.c_int, ctypes.c_int64)(
            node.type, missing
        )
    return size
