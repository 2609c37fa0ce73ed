"""Small GGUF files to be cut, the same bytes each time, and models put together again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bundler.weights import GgufField, TensorPlan, encode_header, field, read_gguf_file

FIELDS = {
    "general.architecture": field("STRING", "llama"),
    "general.name": field("STRING", "grüße"),
    "llama.block_count": field("UINT32", 2),
    "llama.rope.freq_base": field("FLOAT32", 10000.5),
    "a.bool": field("BOOL", True),
    "a.long": field("INT64", -5),
    "a.list": field("INT32", [3, -1, 7]),
    "tokenizer.ggml.tokens": field("STRING", [f"token{n}" for n in range(300)]),
    "tokenizer.ggml.scores": field("FLOAT32", [n / 7 for n in range(300)]),
    "split.no": field("UINT16", 0),  # what a merge leaves behind
    "split.count": field("UINT16", 0),
    "general.file_type": field("UINT32", 7),
}
TENSORS = (
    TensorPlan("token_embd.weight", "F16", (300, 64)),
    TensorPlan("blk.0.attn_norm.weight", "F32", (63,)),
    TensorPlan("blk.0.attn_q.weight", "Q8_0", (64, 64)),
    TensorPlan("blk.0.ffn_exps.weight", "Q4_0", (3, 64, 64)),
    TensorPlan("blk.0.odd.weight", "F32", (1, 65)),  # ggml counts this as one dimension
    TensorPlan("blk.1.attn_q.weight", "Q8_0", (64, 64)),
    TensorPlan("blk.1.bias", "F32", (5,)),
    TensorPlan("output.weight", "F16", (300, 64)),
)


def bytes_of(name: str, size_bytes: int) -> bytes:
    """Return bytes that belong to a tensor's name."""
    return hashlib.shake_128(name.encode()).digest(size_bytes)


def gguf_file(
    path: Path, tensors: Sequence[TensorPlan] = TENSORS, fields: Mapping[str, GgufField] = FIELDS,
    alignment: int = 32,
) -> Path:  # fmt: skip
    """Write a file with these tensors."""
    data = [encode_header(fields, tensors, alignment=alignment)]
    for tensor in tensors:
        data.append(bytes_of(tensor.name, tensor.size_bytes))
        data.append(bytes(-tensor.size_bytes % alignment))
    path.write_bytes(b"".join(data))
    return path


def contents(files: Iterable[Path]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Return all tensors of a model with their bytes, in order."""
    found = []
    for file in files:
        header, data = read_gguf_file(file), file.read_bytes()
        for tensor in header.tensors:
            shape = tensor.shape
            while len(shape) > 1 and shape[0] == 1:
                shape = shape[1:]
            start = header.data_offset + tensor.offset
            piece = data[start : start + tensor.size_bytes]
            found.append((tensor.name, tensor.type, shape, piece))
    return found
