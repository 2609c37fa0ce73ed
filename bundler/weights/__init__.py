"""Bounded readers of GGUF and safetensors headers: hostile until checked.

They work over `read(start, length) -> bytes`, so a header is read from a local file or by ranged
requests alike, and they never touch the weights. Whatever the bytes say, a reader returns a
checked value or raises `UnsafeInput` naming the reason and the offset; it allocates no more than
the bytes it has been given warrant. (`gguf` 0.19 loops for hours on a 49-byte file.)
"""

from bundler.weights.bounded import Read, file_reader
from bundler.weights.ggml_types import GGML_TYPES, GgmlType, tensor_bytes
from bundler.weights.gguf import (
    GgufArray,
    GgufHeader,
    GgufTensor,
    GgufValue,
    read_gguf_file,
    read_gguf_header,
)
from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field
from bundler.weights.safetensors import (
    SafetensorsHeader,
    SafetensorsTensor,
    read_safetensors_file,
    read_safetensors_header,
    read_shard_index,
)

__all__ = [
    "GGML_TYPES",
    "GgmlType",
    "GgufArray",
    "GgufField",
    "GgufHeader",
    "GgufTensor",
    "GgufValue",
    "Read",
    "SafetensorsHeader",
    "SafetensorsTensor",
    "TensorPlan",
    "encode_header",
    "field",
    "file_reader",
    "read_gguf_file",
    "read_gguf_header",
    "read_safetensors_file",
    "read_safetensors_header",
    "read_shard_index",
    "tensor_bytes",
]
