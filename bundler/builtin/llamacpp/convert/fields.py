"""Hyper-parameters as GGUF fields, in the order in which the official converter writes them.

Source: `TextModel.set_gguf_parameters` and `_try_set_pooling_type` in `conversion/base.py` of the
llama.cpp source inside the llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.config import (
    FILE,
    number,
    optional_whole,
    rope_parameters,
    whole,
)
from bundler.errors import UnsafeInput
from bundler.weights import GgufField, field

Fields = dict[str, GgufField]

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""`general.file_type` (`LlamaFileType`): what most of the tensors are stored as."""

_WHOLE = (
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
)
POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}
"""`PoolingType` in gguf-py/gguf/constants.py."""


def model_fields(architecture: str, config: Mapping[str, Any], file_type: str) -> Fields:
    """Return the fields that every text model has."""
    fields: Fields = {"block_count": field("UINT32", whole(config, "num_hidden_layers"))}
    for key, name in _WHOLE:
        if (value := optional_whole(config, key)) is not None:
            fields[name] = field("UINT32", value)
    if config.get("is_causal") is False:
        fields["attention.causal"] = field("BOOL", False)
    fields |= _rope_fields(config)
    for key, name in (
        ("rms_norm_eps", "layer_norm_rms_epsilon"),
        ("layer_norm_eps", "layer_norm_epsilon"),
    ):
        if (epsilon := number(config, key)) is not None:
            fields[f"attention.{name}"] = field("FLOAT32", epsilon)
    if (head_dim := optional_whole(config, "head_dim")) is not None:
        fields["attention.key_length"] = field("UINT32", head_dim)
        fields["attention.value_length"] = field("UINT32", head_dim)
    result = {f"{architecture}.{name}": given for name, given in fields.items()}
    return result | {"general.file_type": field("UINT32", FILE_TYPES[file_type])}


def _rope_fields(config: Mapping[str, Any]) -> Fields:
    rope = rope_parameters(config)
    fields: Fields = {}
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn") and rope.get("factor") is not None:
        fields["rope.scaling.type"] = field("STRING", kind)
        fields["rope.scaling.factor"] = field("FLOAT32", number(rope, "factor") or 0.0)
        fields |= _yarn_fields(rope) if kind == "yarn" else {}
    elif kind not in (None, "default", "llama3", "linear", "yarn"):
        raise UnsafeInput(
            f"rope scaling {kind!r} is not one of linear, llama3 and yarn", where=FILE,
            hint="use a GGUF file of this model that its publisher made",
        )  # fmt: skip
    if (theta := number(rope, "rope_theta")) is not None:
        fields["rope.freq_base"] = field("FLOAT32", theta)
    return fields


def _yarn_fields(rope: Mapping[str, Any]) -> Fields:
    fields = {
        "rope.scaling.original_context_length": field(
            "UINT32", whole(rope, "original_max_position_embeddings")
        )
    }
    attention = "attention_factor" if "attention_factor" in rope else "attn_factor"
    for key, name in (
        ("extrapolation_factor", "yarn_ext_factor"), (attention, "yarn_attn_factor"),
        ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"),
    ):  # fmt: skip
        if (value := number(rope, key)) is not None:
            fields[f"rope.scaling.{name}"] = field("FLOAT32", value)
    return fields


def pooling_fields(architecture: str, checkpoint: Checkpoint) -> Fields:
    """Return how a sentence-transformers model makes one vector of many, if it says so."""
    mode = pooling_mode(checkpoint)
    if mode is None:
        return {}
    return {f"{architecture}.pooling_type": field("UINT32", POOLING[mode])}


def pooling_mode(checkpoint: Checkpoint) -> str | None:
    """Return `mean`, `cls` or `lasttoken`; None when the model has no pooling module."""
    if "modules.json" not in checkpoint:
        return None
    # modules.json is an array; the reader of objects is given it as one.
    modules = checkpoint.array("modules.json")
    folder = next(
        (
            m["path"]
            for m in modules
            if isinstance(m, dict) and str(m.get("type")).endswith("Pooling")
        ),
        None,
    )
    if folder is None:
        return None
    name = f"{folder}/config.json"
    pooling = checkpoint.json(name)
    for key, mode in (("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "lasttoken")):
        if pooling.get(f"pooling_mode_{key}"):
            return mode
    if pooling.get("pooling_mode") in POOLING:
        return str(pooling["pooling_mode"])
    raise UnsafeInput("the pooling is none of mean, cls and lasttoken", where=name)
