"""Configs of well-known models as their publishers state them: the sizes, and nothing else."""

from __future__ import annotations

from typing import Any


def _config(kind: str, hidden: int, wide: int, layers: int, heads: int, kv_heads: int,
            vocabulary: int, context: int, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "architectures": [kind], "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": context, **more,
    }  # fmt: skip


_LLAMA3 = {"rope_scaling": {"rope_type": "llama3"}}
_TIED = {"tie_word_embeddings": True}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3-8B": _config("LlamaForCausalLM", 4096, 14336, 32, 32, 8, 128256, 8192),
    "Llama-3.2-1B": _config(
        "LlamaForCausalLM", 2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, **_LLAMA3, **_TIED
    ),
    "Llama-3.2-3B": _config(
        "LlamaForCausalLM", 3072, 8192, 28, 24, 8, 128256, 131072, head_dim=128, **_LLAMA3, **_TIED
    ),
    "Qwen2.5-0.5B": _config("Qwen2ForCausalLM", 896, 4864, 24, 14, 2, 151936, 32768, **_TIED),
    "Qwen2.5-7B": _config("Qwen2ForCausalLM", 3584, 18944, 28, 28, 4, 152064, 32768),
    "Qwen2.5-14B": _config("Qwen2ForCausalLM", 5120, 13824, 48, 40, 8, 152064, 32768),
    "Qwen2.5-32B": _config("Qwen2ForCausalLM", 5120, 27648, 64, 40, 8, 152064, 32768),
    "Qwen3-0.6B": _config(
        "Qwen3ForCausalLM", 1024, 3072, 28, 16, 8, 151936, 40960, head_dim=128, **_TIED
    ),
    "Qwen3-8B": _config("Qwen3ForCausalLM", 4096, 12288, 36, 32, 8, 151936, 40960, head_dim=128),
    "Qwen3-30B-A3B": _config(
        "Qwen3MoeForCausalLM", 2048, 6144, 48, 32, 4, 151936, 40960, head_dim=128,
        moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
    ),
    "Mixtral-8x7B": _config(
        "MixtralForCausalLM", 4096, 14336, 32, 32, 8, 32000, 32768, num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "Mistral-7B": _config("MistralForCausalLM", 4096, 14336, 32, 32, 8, 32768, 32768),
    "Mistral-Nemo": _config(
        "MistralForCausalLM", 5120, 14336, 40, 32, 8, 131072, 131072, head_dim=128
    ),
    "DeepSeek-Coder-6.7B": _config(
        "LlamaForCausalLM", 4096, 11008, 32, 32, 32, 32256, 16384
    ),
    "CodeLlama-7B": _config("LlamaForCausalLM", 4096, 11008, 32, 32, 32, 32016, 16384),
    "Gemma-2-9B": _config(
        "Gemma2ForCausalLM", 3584, 14336, 42, 16, 8, 256000, 8192, head_dim=256,
        sliding_window=4096, **_TIED,
    ),
    "Gemma-3-4B": _config(
        "Gemma3ForCausalLM", 2560, 10240, 34, 8, 4, 262208, 131072, head_dim=256,
        sliding_window=1024, **_TIED,
    ),
    "bge-small": _config("BertModel", 384, 1536, 12, 12, 12, 30522, 512),
    "bge-large": _config("BertModel", 1024, 4096, 24, 16, 16, 30522, 512),
}  # fmt: skip

Cell = dict[str, Any]


def cell(context: int, cache: str, flash: bool, batch: int, users: int) -> Cell:
    """Describe how a model is run."""
    return {"context_tokens": context, "kv_cache": cache, "flash_attention": flash,
            "batch_tokens": batch, "parallel": users}  # fmt: skip


CELLS: tuple[Cell, ...] = (
    cell(4096, "f16", True, 512, 1), cell(4096, "f16", False, 512, 1),
    cell(8192, "q8_0", True, 512, 2), cell(32768, "q4_0", True, 512, 1),
    cell(32768, "f16", False, 256, 1), cell(16384, "f16", True, 2048, 4),
    cell(1000, "q8_0", True, 128, 3),
)  # fmt: skip
ENCODER_CELLS: tuple[Cell, ...] = tuple(
    cell(tokens, "f16", flash, tokens, users) | {"embeddings": True}
    for tokens, flash, users in (
        (128, True, 1), (512, True, 1), (512, False, 1), (256, False, 4), (512, True, 8),
    )
)  # fmt: skip
"""Encoders take a text at once: the batch is the context."""
QUANTS = ("Q4_K_M", "Q8_0", "Q5_K_M", "IQ4_XS", "Q6_K", "Q3_K_M", "F16", "Q2_K", "Q4_0")
