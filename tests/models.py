"""Small GGUF models for tests, made from numbers: nothing is fetched, the same bytes every time.

Plain functions with a cache per process; the files lie in a temporary folder that goes with it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.child import run_child
from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field

TYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class Shape:
    """Sizes of a random llama-type model; multiples of 256, so that K-quants apply."""

    hidden: int = 256
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    vocabulary: int = 512
    experts: int = 0
    experts_used: int = 0
    tied: bool = False
    context_tokens: int = 2048
    seed: int = 7
    scale: float = 1.0
    chat_template: str = ""


@functools.cache
def folder() -> Path:
    """Return a folder that lives as long as this process."""
    path = Path(tempfile.mkdtemp(prefix="bundler-models-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def tiny_gguf(shape: Shape = Shape(), *, type_: str = "F16") -> Path:
    """Return a random model of this shape as a GGUF file."""
    return _tiny_gguf(shape, type_)


@functools.cache
def _tiny_gguf(shape: Shape, type_: str) -> Path:
    path = folder() / f"tiny-{hashlib.sha256(repr((shape, type_)).encode()).hexdigest()[:12]}.gguf"
    write_gguf(path, llama_fields(shape), llama_weights(shape), type_)
    return path


def llama_weights(shape: Shape) -> dict[str, np.ndarray]:
    """Return random weights of a llama-type model, under llama.cpp's names."""
    rng = np.random.default_rng(shape.seed)
    hidden, wide = shape.hidden, shape.feed_forward
    narrow = hidden // shape.heads * shape.kv_heads
    weights = {"token_embd.weight": (shape.vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not shape.tied:
        weights["output.weight"] = (shape.vocabulary, hidden)
    for layer in range(shape.layers):
        block = {
            "attn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (narrow, hidden),
            "attn_v": (narrow, hidden), "attn_output": (hidden, hidden), "ffn_norm": (hidden,),
        }  # fmt: skip
        if shape.experts:
            block |= {
                "ffn_gate_inp": (shape.experts, hidden),
                "ffn_gate_exps": (shape.experts, wide, hidden),
                "ffn_up_exps": (shape.experts, wide, hidden),
                "ffn_down_exps": (shape.experts, hidden, wide),
            }
        else:
            block |= {
                "ffn_gate": (wide, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
            }  # fmt: skip
        weights |= {f"blk.{layer}.{name}.weight": size for name, size in block.items()}
    made = {}
    for name, size in weights.items():
        if len(size) == 1:
            made[name] = np.ones(size, np.float32)
        else:
            spread = 1.0 if name == "token_embd.weight" else shape.scale * size[-1] ** -0.5
            made[name] = rng.standard_normal(size, dtype=np.float32) * np.float32(spread)
    return made


def llama_fields(shape: Shape) -> dict[str, GgufField]:
    """Return the header fields, with a vocabulary of bytes that SentencePiece rules can read."""
    head = shape.hidden // shape.heads
    control = ["<unk>", "<s>", "</s>"]
    tokens = control + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [f"[unused{n}]" for n in range(shape.vocabulary - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [5] * (shape.vocabulary - 259)
    fields = {
        "general.architecture": field("STRING", "llama"),
        "general.name": field("STRING", "tiny"),
        "general.file_type": field("UINT32", 1),
        "llama.context_length": field("UINT32", shape.context_tokens),
        "llama.embedding_length": field("UINT32", shape.hidden),
        "llama.block_count": field("UINT32", shape.layers),
        "llama.feed_forward_length": field("UINT32", shape.feed_forward),
        "llama.attention.head_count": field("UINT32", shape.heads),
        "llama.attention.head_count_kv": field("UINT32", shape.kv_heads),
        "llama.rope.dimension_count": field("UINT32", head),
        "llama.rope.freq_base": field("FLOAT32", 10000.0),
        "llama.attention.layer_norm_rms_epsilon": field("FLOAT32", 1e-5),
        "llama.vocab_size": field("UINT32", shape.vocabulary),
        "tokenizer.ggml.model": field("STRING", "llama"),
        "tokenizer.ggml.tokens": field("STRING", tokens),
        "tokenizer.ggml.scores": field("FLOAT32", [0.0] * shape.vocabulary),
        "tokenizer.ggml.token_type": field("INT32", kinds),
        "tokenizer.ggml.bos_token_id": field("UINT32", 1),
        "tokenizer.ggml.eos_token_id": field("UINT32", 2),
        "tokenizer.ggml.add_bos_token": field("BOOL", True),
    }
    if shape.experts:
        fields["llama.expert_count"] = field("UINT32", shape.experts)
        fields["llama.expert_used_count"] = field("UINT32", shape.experts_used)
    if shape.chat_template:
        fields["tokenizer.chat_template"] = field("STRING", shape.chat_template)
    return fields


def write_gguf(
    path: Path, fields: Mapping[str, GgufField], weights: Mapping[str, np.ndarray], type_: str
) -> None:
    """Write a model: vectors and expert gates as F32, matrices as `type_`."""
    plans, arrays = [], []
    for name, array in weights.items():
        kind = "F32" if array.ndim == 1 or "ffn_gate_inp" in name else type_
        plans.append(TensorPlan(name, kind, array.shape))
        arrays.append(array.astype(TYPES[kind]))
    with path.open("wb") as stream:
        stream.write(encode_header(fields, plans))
        for array in arrays:
            raw = array.tobytes()
            stream.write(raw + bytes(-len(raw) % 32))


JOBS = "bundler.builtin.llamacpp"
TEXT = " ".join(
    f"Number {n} is followed by {n + 1}; water number {n * n} boils." for n in range(400)
)


@functools.cache
def text_file(name: str = "text.txt", text: str = TEXT) -> Path:
    """Return a file with text, ASCII unless told otherwise."""
    path = folder() / name
    path.write_text(text, encoding="utf-8")
    return path


def job(name: str, arguments: object, **options: object) -> Any:
    """Run a job of the engine in a child."""
    return run_child(f"{JOBS}.{name}", arguments, environment=os.environ, **options)


@functools.cache
def imatrix_of(model: Path, *, chunks: int = 2) -> Path:
    """Return an importance matrix of a model, collected over the test text."""
    output = folder() / f"{model.stem}-imatrix.gguf"
    arguments = {
        "model": str(model), "texts": {"text.txt": str(text_file())}, "output": str(output),
        "context_tokens": 64, "chunks": chunks,
    }  # fmt: skip
    job("calibrate:calibrate_job", arguments)
    return output


@functools.cache
def quantized(model: Path, quant: str) -> Path:
    """Return a model quantized without an importance matrix."""
    output = folder() / f"{model.stem}-{quant}.gguf"
    job("quantize:quantize_job", {"model": str(model), "output": str(output), "quant": quant})
    return output


@functools.cache
def example_gguf() -> Path:
    """Return the trained example model, converted by our own converter."""
    source = Path(__file__).parents[1] / "examples" / "model"
    output = folder() / "example.gguf"
    files = {path.name: str(path) for path in source.iterdir() if path.is_file()}
    arguments = {"files": files, "output": str(output), "output_type": "auto", "name": "example"}
    job("jobs:convert_job", arguments)
    return output
