"""Bounded readers of GGUF and safetensors headers: hostile until checked.

They work over `read(start, length) -> bytes`, so a header is read from a local file or by ranged
requests alike, and they never touch the weights. Whatever the bytes say, a reader returns a
checked value or raises `UnsafeInput` naming the reason and the offset; it allocates no more than
the bytes it has been given warrant. (`gguf` 0.19 loops for hours on a 49-byte file.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundler.later import exports

if TYPE_CHECKING:
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
    from bundler.weights.shard_names import ShardName, read_shard_name, shard_name

# Planning needs the table of types alone.
__getattr__ = exports({
    "GGML_TYPES": "bundler.weights.ggml_types:GGML_TYPES",
    "GgmlType": "bundler.weights.ggml_types:GgmlType",
    "GgufArray": "bundler.weights.gguf:GgufArray",
    "GgufField": "bundler.weights.gguf_writer:GgufField",
    "GgufHeader": "bundler.weights.gguf:GgufHeader",
    "GgufTensor": "bundler.weights.gguf:GgufTensor",
    "GgufValue": "bundler.weights.gguf:GgufValue",
    "Read": "bundler.weights.bounded:Read",
    "SafetensorsHeader": "bundler.weights.safetensors:SafetensorsHeader",
    "SafetensorsTensor": "bundler.weights.safetensors:SafetensorsTensor",
    "ShardName": "bundler.weights.shard_names:ShardName",
    "TensorPlan": "bundler.weights.gguf_writer:TensorPlan",
    "encode_header": "bundler.weights.gguf_writer:encode_header",
    "field": "bundler.weights.gguf_writer:field",
    "file_reader": "bundler.weights.bounded:file_reader",
    "read_gguf_file": "bundler.weights.gguf:read_gguf_file",
    "read_gguf_header": "bundler.weights.gguf:read_gguf_header",
    "read_safetensors_file": "bundler.weights.safetensors:read_safetensors_file",
    "read_safetensors_header": "bundler.weights.safetensors:read_safetensors_header",
    "read_shard_index": "bundler.weights.safetensors:read_shard_index",
    "read_shard_name": "bundler.weights.shard_names:read_shard_name",
    "shard_name": "bundler.weights.shard_names:shard_name",
    "tensor_bytes": "bundler.weights.ggml_types:tensor_bytes",
})  # fmt: skip

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
    "ShardName",
    "TensorPlan",
    "encode_header",
    "field",
    "file_reader",
    "read_gguf_file",
    "read_gguf_header",
    "read_safetensors_file",
    "read_safetensors_header",
    "read_shard_index",
    "read_shard_name",
    "shard_name",
    "tensor_bytes",
]
