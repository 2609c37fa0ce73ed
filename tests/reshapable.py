"""Small random models of each architecture that can be reshaped, with gains and biases that matter.

Sizes are awkward on purpose: 96 channels are no power of two, six heads share two of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundler.weights.gguf_writer import GgufField, field
from tests.models import Shape, llama_fields, write_gguf

HIDDEN, HEADS, KV_HEADS, HEAD, WIDE, LAYERS, VOCABULARY, EXPERTS = 96, 6, 2, 16, 64, 2, 320, 4
FAMILIES = ("llama", "llama-tied", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3")


def family(path: Path, name: str, *, without: str = "", more: Mapping[str, tuple[int, ...]] | None = None) -> Path:  # fmt: skip
    """Write a model of a family; `more` adds tensors that it does not have, `without` takes one away."""
    shapes = _shapes(name)
    shapes |= dict(more or {})
    shapes.pop(without, None)
    write_gguf(path, _fields(name), _weights(shapes), "F32")
    return path


def _architecture(name: str) -> str:
    return {"llama-tied": "llama", "mixtral": "llama"}.get(name, name)


def _fields(name: str) -> dict[str, GgufField]:
    architecture = _architecture(name)
    shape = Shape(
        hidden=HIDDEN, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, feed_forward=WIDE,
        vocabulary=VOCABULARY,
    )  # fmt: skip
    fields = {
        key.replace("llama.", f"{architecture}.", 1) if key.startswith("llama.") else key: value
        for key, value in llama_fields(shape).items()
    }
    fields["general.architecture"] = field("STRING", architecture)
    if name == "mixtral" or name.endswith("moe"):
        fields[f"{architecture}.expert_count"] = field("UINT32", EXPERTS)
        fields[f"{architecture}.expert_used_count"] = field("UINT32", 2)
        fields[f"{architecture}.expert_feed_forward_length"] = field("UINT32", WIDE)
    if name == "qwen2moe":
        fields["qwen2moe.expert_shared_feed_forward_length"] = field("UINT32", WIDE)
    return fields


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,),
    }  # fmt: skip
    if name not in ("llama-tied", "qwen3"):
        shapes["output.weight"] = (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        block = {"attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,),
                 "attn_output.weight": (HIDDEN, HEADS * HEAD)}  # fmt: skip
        block |= _attention(name) | _feed_forward(name)
        shapes |= {f"blk.{layer}.{key}": size for key, size in block.items()}
    return shapes


def _attention(name: str) -> dict[str, tuple[int, ...]]:
    query, narrow = HEADS * HEAD, KV_HEADS * HEAD
    if name == "phi3":
        return {"attn_qkv.weight": (query + 2 * narrow, HIDDEN)}
    rows = {"attn_q": query, "attn_k": narrow, "attn_v": narrow}
    found: dict[str, tuple[int, ...]] = {f"{key}.weight": (n, HIDDEN) for key, n in rows.items()}
    if name.startswith("qwen2"):
        found |= {f"{key}.bias": (n,) for key, n in rows.items()}
    if name.startswith("qwen3"):
        found |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    return found


def _feed_forward(name: str) -> dict[str, tuple[int, ...]]:
    if name == "phi3":
        return {"ffn_up.weight": (2 * WIDE, HIDDEN), "ffn_down.weight": (HIDDEN, WIDE)}
    found: dict[str, tuple[int, ...]] = {}
    if name == "mixtral" or name.endswith("moe"):
        found["ffn_gate_inp.weight"] = (EXPERTS, HIDDEN)
        found |= {f"ffn_{part}_exps.weight": (EXPERTS, WIDE, HIDDEN) for part in ("gate", "up")}
        found["ffn_down_exps.weight"] = (EXPERTS, HIDDEN, WIDE)
        if name == "qwen2moe":
            found["ffn_gate_inp_shexp.weight"] = (HIDDEN,)
            found |= {f"ffn_{part}_shexp.weight": (WIDE, HIDDEN) for part in ("gate", "up")}
            found["ffn_down_shexp.weight"] = (HIDDEN, WIDE)
        return found
    return {
        "ffn_gate.weight": (WIDE, HIDDEN), "ffn_up.weight": (WIDE, HIDDEN),
        "ffn_down.weight": (HIDDEN, WIDE),
    }  # fmt: skip


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    made = {}
    for name, size in shapes.items():
        numbers = rng.standard_normal(size, dtype=np.float32)
        if "norm" in name:
            numbers = np.exp(numbers * np.float32(0.5))  # gains far from one
        elif len(size) > 1 and name != "token_embd.weight":
            numbers *= np.float32(1.5 * size[-1] ** -0.5)
        else:
            numbers *= np.float32(0.5)
        made[name] = numbers
    return made
