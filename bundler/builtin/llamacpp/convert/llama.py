"""Llama 1 to 3, Mistral, CodeLlama, and the DeepSeek models built like Llama.

Source: `conversion/llama.py` of the llama.cpp source inside the llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.config import FILE, number, rope_parameters, whole
from bundler.builtin.llamacpp.convert.family import Config, Family
from bundler.builtin.llamacpp.convert.fields import Fields
from bundler.builtin.llamacpp.convert.hub_vocabulary import (
    byte_pair_fields,
    is_sentencepiece_like,
    sentencepiece_like_fields,
)
from bundler.builtin.llamacpp.convert.sentencepiece_vocabulary import FILE as SENTENCEPIECE
from bundler.builtin.llamacpp.convert.sentencepiece_vocabulary import sentencepiece_fields
from bundler.builtin.llamacpp.convert.special_tokens import special_fields
from bundler.builtin.llamacpp.convert.tensors import NameMap, OutputTensor, Reorder
from bundler.errors import UnsafeInput
from bundler.weights import TensorPlan, field

DECODER_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.{n}.input_layernorm": "blk.{n}.attn_norm",
    "layers.{n}.self_attn.q_proj": "blk.{n}.attn_q",
    "layers.{n}.self_attn.k_proj": "blk.{n}.attn_k",
    "layers.{n}.self_attn.v_proj": "blk.{n}.attn_v",
    "layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
    "layers.{n}.post_attention_layernorm": "blk.{n}.ffn_norm",
    "layers.{n}.mlp.gate_proj": "blk.{n}.ffn_gate",
    "layers.{n}.mlp.up_proj": "blk.{n}.ffn_up",
    "layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
}
"""Names of a Llama-like decoder, without the leading `model.` that most checkpoints have."""

CODE_LLAMA_TOKENS = 32016
"""Size of CodeLlama's vocabulary, by which the official converter knows it."""
SPACELESS_TOKENS = 49152
"""Size of the vocabulary of Granite's and SmolLM's kind, which want no beginning token."""


def head_dimension(config: Config) -> int:
    """Return the size of one attention head."""
    if config.get("head_dim") is not None:
        return whole(config, "head_dim")
    return whole(config, "hidden_size") // whole(config, "num_attention_heads")


def llama_fields(checkpoint: Checkpoint, config: Config) -> Fields:
    """Return the hyper-parameters that only Llama models have."""
    return {
        "llama.vocab_size": field("UINT32", whole(config, "vocab_size")),
        "llama.rope.dimension_count": field("UINT32", head_dimension(config)),
    }


def llama_reorder(config: Config, name: str, rows: int) -> Reorder | None:
    """Undo the order that Hugging Face gives the rows of queries and keys.

    Llama rotates neighbouring values, transformers rotates halves; the rows were permuted for the
    latter (`LlamaModel.permute`).
    """
    part = name.rsplit(".", 2)[-2]
    if part not in ("attn_q", "attn_k"):
        return None
    heads = whole(config, "num_attention_heads" if part == "attn_q" else "num_key_value_heads")
    if rows % (2 * heads):
        raise UnsafeInput(
            f"{name!r} has {rows} rows, not a multiple of 2 x {heads} heads", where=FILE
        )
    return Reorder(rows // heads)


def rope_factors(config: Config) -> tuple[float, ...]:
    """Return by what Llama 3.1 slows each frequency of the rotary embedding; empty without it.

    Single precision throughout, as the official converter computes it.
    """
    import numpy as np

    rope = rope_parameters(config)
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return ()
    defaults = {
        "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    base, factor, low, high, context = (
        number({**{key: default}, **{k: v for k, v in rope.items() if v is not None}}, key)
        or default
        for key, default in defaults.items()
    )
    one = np.float32
    dimension = head_dimension(config)
    exponents = np.arange(0, dimension, 2, dtype=one) / one(dimension)
    lengths = one(2 * math.pi) / (one(1) / one(base) ** exponents)
    smooth = (one(context) / lengths - one(low)) / one(high - low)
    between = one(1) / ((one(1) - smooth) / one(factor) + smooth)
    slow = np.where(lengths > context / low, one(factor), between)
    return tuple(np.where(lengths < context / high, one(1), slow).tolist())


def llama_computed(config: Config) -> Sequence[OutputTensor]:
    """Return the tensor of rope factors that Llama 3.1 and later need."""
    factors = rope_factors(config)
    plan = TensorPlan("rope_freqs.weight", "F32", (len(factors),))
    return [OutputTensor(plan, None, values=factors)] if factors else []


def llama_tokenizer(checkpoint: Checkpoint, config: Config) -> Fields:
    """Return the fields of whichever kind of tokenizer the checkpoint has."""
    fields: Fields = {}
    prefix = checkpoint.optional_json("tokenizer_config.json").get("add_prefix_space")
    if prefix is not None:
        fields["tokenizer.ggml.add_space_prefix"] = field("BOOL", bool(prefix))
    vocabulary = whole(config, "vocab_size")
    fields |= any_tokenizer(checkpoint, vocabulary)
    if vocabulary == CODE_LLAMA_TOKENS:
        fields |= _infill_fields(checkpoint)
    if vocabulary == SPACELESS_TOKENS:
        fields["tokenizer.ggml.add_bos_token"] = field("BOOL", False)
    return fields


def any_tokenizer(checkpoint: Checkpoint, vocabulary: int) -> Fields:
    """Return the fields of a SentencePiece or byte-level BPE tokenizer."""
    if SENTENCEPIECE in checkpoint:
        return sentencepiece_fields(checkpoint, vocabulary)
    if "tokenizer.json" not in checkpoint:
        raise UnsafeInput(
            "there is neither tokenizer.model nor tokenizer.json",
            hint="tekken.json alone cannot be converted; use a copy with tokenizer.json, or a GGUF file",
        )
    if is_sentencepiece_like(checkpoint):
        return sentencepiece_like_fields(checkpoint)
    return byte_pair_fields(checkpoint, vocabulary)


def _infill_fields(checkpoint: Checkpoint) -> Fields:
    """CodeLlama's end of infilling; the other three tokens llama.cpp finds by their text."""
    kinds = ("prefix", "suffix", "middle", "eot")
    return special_fields(checkpoint, kinds=kinds, forced={"eot": 32010})


LLAMA = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "LlamaModel"),
    names=NameMap(DECODER_NAMES, prefix="model."),
    tokenizer=llama_tokenizer,
    fields=llama_fields,
    reorder=llama_reorder,
    computed=llama_computed,
)
