"""`config.json` with the defaults that its own library would fill in.

A published config leaves out what equals the default of its class, and the official converter
reads it through that class. The defaults are those of transformers 4.57.6,
`models/<model_type>/configuration_<model_type>.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundler.errors import UnsafeInput

FILE = "config.json"

_DECODER = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN = _DECODER | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _DECODER | {
        "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": None,
        "max_position_embeddings": 2048, "head_dim": None, "bos_token_id": 1, "eos_token_id": 2,
    },
    "mistral": _DECODER | {
        "vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "sliding_window": 4096,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "qwen2": _QWEN | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": _QWEN | {
        "head_dim": 128, "use_sliding_window": False, "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "bert": {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    },
}  # fmt: skip
"""Default of each setting that a conversion reads, by `model_type`."""


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with defaults filled in and checked to be usable.

    Raises UnsafeInput for values that are not the numbers they should be.
    """
    full = DEFAULTS.get(str(config.get("model_type")), {}) | dict(config)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        whole(full, key)
    if full.get("num_key_value_heads", 0) is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if config.get("model_type") == "llama" and full.get("head_dim") is None:
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    if full.get("use_sliding_window") is False:
        full["sliding_window"] = None
    return full


def whole(config: Mapping[str, Any], key: str, *, least: int = 1, most: int = 1 << 31) -> int:
    """Return a whole number of the config. Raises UnsafeInput when it is none, or absurd."""
    value = config.get(key)
    if type(value) is not int or not least <= value <= most:
        raise UnsafeInput(f"{key} is {value!r}, not a whole number from {least}", where=FILE)
    return value


def optional_whole(config: Mapping[str, Any], key: str) -> int | None:
    """Return a whole number of the config, or None when it is absent or null."""
    return None if config.get(key) is None else whole(config, key)


def number(config: Mapping[str, Any], key: str, where: str = FILE) -> float | None:
    """Return a number of the config, or None when it is absent or null."""
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e38:
        raise UnsafeInput(f"{key} is {value!r}, not a number", where=where)
    return float(value)


def first_architecture(config: Mapping[str, Any]) -> str:
    """Return the name of the model's class, such as `LlamaForCausalLM`."""
    names = config.get("architectures")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UnsafeInput("`architectures` does not say what model this is", where=FILE)
    return str(names[0])


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary embedding as one object, wherever the config has them."""
    found = config.get("rope_parameters", config.get("rope_scaling")) or {}
    if not isinstance(found, Mapping):
        raise UnsafeInput(f"rope_scaling is {found!r}, not an object", where=FILE)
    rope = dict(found)
    for key in ("rope_theta", "original_max_position_embeddings"):
        rope.setdefault(key, config.get(key))
    if "rope_type" not in rope and "type" in rope:
        rope["rope_type"] = rope["type"]
    if rope.get("rope_type") is not None and not isinstance(rope["rope_type"], str):
        raise UnsafeInput(f"rope_type is {rope['rope_type']!r}, not a name", where=FILE)
    return rope
