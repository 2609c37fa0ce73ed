"""Models as shapes only: facts from a published `config.json`, and header-only GGUF files of them.

A header-only file is sparse: it has its true length and no blocks on disk, so that llama.cpp can
be asked what it would do with a model of 16 GB in a test of milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.schemes import SCHEMES
from bundler.lock import ModelFacts, TensorFact
from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "BertModel": "bert",
}


def facts_of(config: Mapping[str, Any], *, type_: str = "BF16") -> ModelFacts:
    """Return the facts of a model with this config, all matrices stored as `type_`."""
    architecture = ARCHITECTURES[config["architectures"][0]]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    make = _bert_tensors if architecture == "bert" else _decoder_tensors
    shapes = make(config, architecture, head, kv_heads)
    tensors = tuple(
        TensorFact(name=name, type="F32" if is_f32(name, shape) else type_, shape=shape)
        for name, shape in shapes.items()
    )
    period = {"gemma2": 2, "gemma3": 6}.get(architecture, 0)
    return ModelFacts(
        format="safetensors",
        architecture=architecture,
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        context_tokens=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=heads,
        kv_heads=(kv_heads,) * config["num_hidden_layers"],
        head_dim_key=head,
        head_dim_value=head,
        vocabulary=config["vocab_size"],
        tied_embeddings=architecture != "bert" and "output.weight" not in shapes,
        sliding_window_tokens=config["sliding_window"] if period else 0,
        sliding_window_pattern=period,
        experts=_experts(config),
        experts_used=config.get("num_experts_per_tok", 0),
        tensors=tensors,
    )


def _experts(config: Mapping[str, Any]) -> int:
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def is_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether the converter keeps a tensor as F32: vectors, routers and small tables."""
    exact = ("position_embd.weight", "token_types.weight")
    kept = ("ffn_gate_inp", "ssm_conv1d", "ssm_a", "ssm_d", "ssm_norm", "_exps.bias")
    return len(shape) == 1 or name in exact or any(part in name for part in kept)


def _decoder_tensors(
    config: Mapping[str, Any], architecture: str, head: int, kv_heads: int
) -> dict[str, tuple[int, ...]]:
    hidden, wide, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    query, narrow = config["num_attention_heads"] * head, kv_heads * head
    experts = _experts(config)
    wide = config.get("moe_intermediate_size") or wide
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,), "attn_q.weight": (query, hidden),
            "attn_k.weight": (narrow, hidden), "attn_v.weight": (narrow, hidden),
            "attn_output.weight": (hidden, query), "ffn_norm.weight": (hidden,),
        }  # fmt: skip
        if architecture == "qwen2":
            block |= {"attn_q.bias": (query,), "attn_k.bias": (narrow,), "attn_v.bias": (narrow,)}
        if architecture in ("qwen3", "qwen3moe", "gemma3"):
            block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        if architecture in ("gemma2", "gemma3"):
            block |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
        if experts:
            block |= {
                "ffn_gate_inp.weight": (experts, hidden),
                "ffn_gate_exps.weight": (experts, wide, hidden),
                "ffn_up_exps.weight": (experts, wide, hidden),
                "ffn_down_exps.weight": (experts, hidden, wide),
            }
        else:
            block |= {
                "ffn_gate.weight": (wide, hidden), "ffn_up.weight": (wide, hidden),
                "ffn_down.weight": (hidden, wide),
            }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["output.weight"] = (vocabulary, hidden)
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        shapes["rope_freqs.weight"] = (head // 2,)
    return shapes


def _bert_tensors(
    config: Mapping[str, Any], architecture: str, head: int, kv_heads: int
) -> dict[str, tuple[int, ...]]:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config["vocab_size"], hidden),
        "position_embd.weight": (config["max_position_embeddings"], hidden),
        "token_types.weight": (config.get("type_vocab_size", 2), hidden),
        "token_embd_norm.weight": (hidden,),
        "token_embd_norm.bias": (hidden,),
    }
    matrices = {
        "attn_q": (hidden, hidden), "attn_k": (hidden, hidden), "attn_v": (hidden, hidden),
        "attn_output": (hidden, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for name, shape in matrices.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
            shapes[f"blk.{layer}.{name}.bias"] = shape[:1]
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = shapes[f"blk.{layer}.{name}.bias"] = (hidden,)
    return shapes


def _one_or_each(numbers: tuple[int, ...]) -> int | list[int]:
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


def header_fields(facts: ModelFacts, scheme: str = "F16") -> dict[str, GgufField]:
    """Return the fields llama.cpp needs to size a model; it has no vocabulary, only its size."""
    name = facts.architecture
    fields = {
        "general.architecture": field("STRING", name),
        "general.file_type": field("UINT32", SCHEMES[scheme].number),
        f"{name}.context_length": field("UINT32", facts.context_tokens),
        f"{name}.embedding_length": field("UINT32", facts.hidden),
        f"{name}.block_count": field("UINT32", facts.layers),
        f"{name}.feed_forward_length": field("UINT32", facts.feed_forward),
        f"{name}.attention.head_count": field("UINT32", facts.heads),
        f"{name}.attention.head_count_kv": field("UINT32", _one_or_each(facts.kv_heads)),
        f"{name}.attention.key_length": field("UINT32", facts.head_dim_key),
        f"{name}.attention.value_length": field("UINT32", facts.head_dim_value),
        f"{name}.vocab_size": field("UINT32", facts.vocabulary),
        "tokenizer.ggml.model": field("STRING", "no_vocab"),
    }
    if name.endswith("bert"):
        fields |= {
            f"{name}.attention.layer_norm_epsilon": field("FLOAT32", 1e-12),
            f"{name}.attention.causal": field("BOOL", False),
            f"{name}.pooling_type": field("UINT32", 1),
            "tokenizer.ggml.token_type_count": field("UINT32", 2),
        }
    else:
        fields[f"{name}.attention.layer_norm_rms_epsilon"] = field("FLOAT32", 1e-5)
    if facts.sliding_window_tokens:
        fields[f"{name}.attention.sliding_window"] = field("UINT32", facts.sliding_window_tokens)
    if facts.experts:
        fields[f"{name}.expert_count"] = field("UINT32", facts.experts)
        fields[f"{name}.expert_used_count"] = field("UINT32", facts.experts_used)
        wide = next(t.shape[1] for t in facts.tensors if t.name.endswith("ffn_up_exps.weight"))
        fields[f"{name}.expert_feed_forward_length"] = field("UINT32", wide)
    for key, value in facts.extra.get("hyperparameters", {}).items():
        kind = {bool: "BOOL", float: "FLOAT32", str: "STRING"}.get(type(value), "UINT32")
        fields[f"{name}.{key}"] = field(kind, value)
    return fields


def write_header_gguf(
    path: Path, facts: ModelFacts, types: Mapping[str, str], scheme: str = "F16"
) -> None:
    """Write a GGUF file with all headers and, as a hole, all data of a model."""
    plans = [TensorPlan(t.name, types[t.name], t.shape) for t in facts.tensors]
    header = encode_header(header_fields(facts, scheme), plans)
    path.write_bytes(header)
    os.truncate(path, len(header) + sum((p.size_bytes + 31) // 32 * 32 for p in plans))
