"""What differs between backends as far as it changes how much memory a graph takes.

Sources are files of `ggml/src/` of the llama.cpp inside the llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from bundler.builtin.llamacpp.graph.allocator import UNLIMITED_BYTES, BufferKind
from bundler.builtin.llamacpp.graph.tensors import Tensor, row_bytes
from bundler.hardware import Accelerator
from bundler.weights.ggml_types import BY_NAME

ROW_STEP = 512
"""MATRIX_ROW_PADDING of ggml-cuda: quantized rows end in whole blocks of it."""
_OFFLOADED_BATCH = 32
"""GGML_OP_OFFLOAD_MIN_BATCH: from how many tokens on a device multiplies by weights it has not."""
_METAL_KEYS_EACH = 64  # OP_FLASH_ATTN_EXT_NCPSG
_METAL_QUERIES_EACH = 8  # OP_FLASH_ATTN_EXT_NQPSG
_METAL_PARTS = 256  # N_MM_NPART_AMAX
_METAL_GROUPS = 32


@dataclass(frozen=True)
class Backend:
    """A device, or the CPU, in a graph."""

    buffers: BufferKind
    size: Callable[[Tensor], int]
    """Bytes a tensor takes there, with what operations keep behind their result."""
    offloads: Callable[[Tensor], bool]
    """Whether it takes an operation over from the CPU although its weights lie there."""
    fuses: bool = False
    """Whether the inputs of fused operations are kept until their end."""


def _plain_size(tensor: Tensor) -> int:
    return tensor.size_bytes


def _never(tensor: Tensor) -> bool:
    return False


def batch_size(node: Tensor) -> int:
    """Return the tokens an operation works on (`get_op_batch_size`)."""
    if node.op == "GET_ROWS":
        return 0
    if node.op == "MUL_MAT":
        return node.ne[1]
    if node.op in ("MUL_MAT_ID", "ROPE"):
        return node.ne[2]
    return prod(node.ne[1:])


def _from_some_tokens(node: Tensor) -> bool:
    return batch_size(node) >= _OFFLOADED_BATCH


def _products_from_some_tokens(node: Tensor) -> bool:
    return node.op in ("MUL_MAT", "MUL_MAT_ID") and batch_size(node) >= _OFFLOADED_BATCH


def _cuda_size(tensor: Tensor) -> int:
    """`ggml_backend_cuda_buffer_type_get_alloc_size`.

    Attention kernels for more than two tokens at once read keys and values as F16: others are
    converted, all cells of the layer, into room behind the result (fattn-common.cuh).
    """
    size = tensor.size_bytes
    if tensor.op == "FLASH_ATTN_EXT":
        keys, values = tensor.sources[1:3]
        if keys.type != "F16":
            size = -(-size // 128) * 128 + 2 * keys.values
        shared = values.view_of is not None and values.view_of is keys.view_of  # latent attention
        if values.type != "F16" and not shared:
            size = -(-size // 128) * 128 + 2 * values.values
    return size + row_padding(tensor.type, tensor.ne[0])


def row_padding(type_: str, row_length: int) -> int:
    """Return what CUDA adds behind a quantized tensor so that kernels may read past its last row."""
    missing = -row_length % ROW_STEP
    return row_bytes(type_, missing) if BY_NAME[type_].block_values > 1 else 0


def _metal_size(tensor: Tensor) -> int:
    """`ggml_backend_metal_buffer_type_get_alloc_size` (ggml-metal-ops.cpp)."""
    if tensor.op == "FLASH_ATTN_EXT":
        return tensor.size_bytes + _metal_attention_bytes(tensor)
    if tensor.op == "MUL_MAT_ID":
        experts, tokens = tensor.sources[0].ne[2], tensor.sources[2].ne[1]
        return tensor.size_bytes + 4 * experts * (1 + tokens) + 8 + 4 * _METAL_PARTS
    return tensor.size_bytes * (2 if tensor.op in ("CUMSUM", "ARGSORT") else 1)


def _metal_attention_bytes(tensor: Tensor) -> int:
    queries, keys, values, mask = tensor.sources[:4]
    rows = 2 * (keys.ne[0] * prod(keys.ne[2:]) + values.ne[0] * prod(values.ne[2:]))
    pad = _METAL_KEYS_EACH * (rows + 2 * prod(mask.ne[1:]))
    blocks = -(-queries.ne[1] // _METAL_QUERIES_EACH) * -(-mask.ne[0] // _METAL_KEYS_EACH)
    marks = -(-blocks * prod(mask.ne[2:]) // 32) * 32
    heads = min(queries.ne[1], 32) * prod(queries.ne[2:])
    parts = 4 * heads * _METAL_GROUPS * (values.ne[0] + 2)
    converted = sum(-(-2 * each.values // 16) * 16 for each in (keys, values))
    return pad + marks + parts + converted


CPU = Backend(BufferKind(32), _plain_size, _never)
"""TENSOR_ALIGNMENT of ggml-impl.h."""
DEVICES: dict[Accelerator, Backend] = {
    "cuda": Backend(BufferKind(128), _cuda_size, _from_some_tokens, fuses=True),
    "rocm": Backend(BufferKind(128), _cuda_size, _from_some_tokens, fuses=True),
    # minStorageBufferOffsetAlignment is 256 at most; buffers end at GGML_VK_SUBALLOCATION_BLOCK_SIZE.
    "vulkan": Backend(BufferKind(256, 1 << 30), _plain_size, _from_some_tokens, fuses=True),
    "metal": Backend(
        BufferKind(32, UNLIMITED_BYTES), _metal_size, _products_from_some_tokens, fuses=True
    ),
}
