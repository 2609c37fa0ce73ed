"""The families of models that can be converted, and which one a config belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundler.builtin.llamacpp.convert.bert import BERT
from bundler.builtin.llamacpp.convert.config import FILE, first_architecture
from bundler.builtin.llamacpp.convert.family import Family
from bundler.builtin.llamacpp.convert.llama import LLAMA
from bundler.builtin.llamacpp.convert.qwen import QWEN2, QWEN3
from bundler.errors import UnsafeInput

FAMILIES: tuple[Family, ...] = (LLAMA, QWEN2, QWEN3, BERT)

GGUF_HINT = "use a GGUF file of this model that its publisher made"


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint. Raises UnsafeInput listing those known."""
    name = first_architecture(config)
    if config.get("quantization_config"):
        raise UnsafeInput(
            "the weights are quantized already", where=FILE,
            hint="choose the original weights of this model, or a GGUF file",
        )  # fmt: skip
    for family in FAMILIES:
        if name in family.classes:
            return family
    known = sorted(name for family in FAMILIES for name in family.classes)
    raise UnsafeInput(
        f"{name} cannot be converted; known are {', '.join(known)}", where=FILE, hint=GGUF_HINT
    )
