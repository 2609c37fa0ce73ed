"""Models whose tensors are not those of Llama's family, as shapes: published sizes, literal names."""

from __future__ import annotations

from math import prod
from typing import Any

from bundler.lock import ModelFacts, TensorFact
from tests.shapes import is_f32

Shapes = dict[str, tuple[int, ...]]


def _facts(
    architecture: str, layers: list[Shapes], outside: Shapes, *, heads: int, kv_heads: int,
    key: int, value: int, wide: int, context: int, hyperparameters: dict[str, Any] | None = None,
    **more: Any,
) -> ModelFacts:  # fmt: skip
    shapes = dict(outside)
    for number, layer in enumerate(layers):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in layer.items()}
    vocabulary, hidden = shapes["token_embd.weight"]
    tensors = tuple(
        TensorFact(name=name, type="F32" if is_f32(name, shape) else "F16", shape=shape)
        for name, shape in shapes.items()
    )
    return ModelFacts(
        format="gguf", architecture=architecture, parameters=sum(prod(t.shape) for t in tensors),
        context_tokens=context, layers=len(layers), hidden=hidden, feed_forward=wide, heads=heads,
        kv_heads=(kv_heads,) * len(layers), head_dim_key=key, head_dim_value=value,
        vocabulary=vocabulary, tensors=tensors, extra={"hyperparameters": hyperparameters or {}},
        **more,
    )  # fmt: skip


def _gated(hidden: int, wide: int, suffix: str = "") -> Shapes:
    return {
        f"ffn_gate{suffix}.weight": (wide, hidden), f"ffn_up{suffix}.weight": (wide, hidden),
        f"ffn_down{suffix}.weight": (hidden, wide),
    }  # fmt: skip


def _experts(hidden: int, wide: int, count: int) -> Shapes:
    return {
        "ffn_gate_inp.weight": (count, hidden), "ffn_gate_exps.weight": (count, wide, hidden),
        "ffn_up_exps.weight": (count, wide, hidden), "ffn_down_exps.weight": (count, hidden, wide),
    }  # fmt: skip


def _attention(hidden: int, query: int, narrow: int) -> Shapes:
    return {
        "attn_norm.weight": (hidden,), "attn_q.weight": (query, hidden),
        "attn_k.weight": (narrow, hidden), "attn_v.weight": (narrow, hidden),
        "attn_output.weight": (hidden, query),
    }  # fmt: skip


def _ends(vocabulary: int, hidden: int, *, tied: bool = False) -> Shapes:
    found: Shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    return found if tied else found | {"output.weight": (vocabulary, hidden)}


def gemma() -> ModelFacts:
    """Gemma 2B."""
    layer = {**_attention(2048, 2048, 256), "ffn_norm.weight": (2048,), **_gated(2048, 16384)}
    return _facts(
        "gemma", [layer] * 18, _ends(256000, 2048, tied=True), heads=8, kv_heads=1, key=256,
        value=256, wide=16384, context=8192, tied_embeddings=True,
    )  # fmt: skip


def qwen2moe() -> ModelFacts:
    """Qwen1.5-MoE-A2.7B."""
    layer = {
        **_attention(2048, 2048, 2048), "ffn_norm.weight": (2048,), **_experts(2048, 1408, 60),
        **{f"attn_{which}.bias": (2048,) for which in "qkv"},
        **_gated(2048, 5632, "_shexp"), "ffn_gate_inp_shexp.weight": (2048,),
    }  # fmt: skip
    return _facts(
        "qwen2moe", [layer] * 24, _ends(151936, 2048), heads=16, kv_heads=16, key=128, value=128,
        wide=5632, context=8192, experts=60, experts_used=4,
        hyperparameters={"expert_shared_feed_forward_length": 5632},
    )  # fmt: skip


def gpt_oss() -> ModelFacts:
    """gpt-oss-20b."""
    layer = {
        **_attention(2880, 4096, 512), "post_attention_norm.weight": (2880,),
        **_experts(2880, 2880, 32), "attn_sinks.weight": (64,), "attn_output.bias": (2880,),
        "attn_q.bias": (4096,), "attn_k.bias": (512,), "attn_v.bias": (512,),
        "ffn_gate_inp.bias": (32,),
        **{f"ffn_{which}_exps.bias": (32, 2880) for which in ("gate", "up", "down")},
    }  # fmt: skip
    return _facts(
        "gpt-oss", [layer] * 24, _ends(201088, 2880), heads=64, kv_heads=8, key=64, value=64,
        wide=2880, context=131072, experts=32, experts_used=4, sliding_window_tokens=128,
        sliding_window_pattern=2,
    )  # fmt: skip


def phi3() -> ModelFacts:
    """Phi-3.5-mini."""
    layer = {
        "attn_norm.weight": (3072,), "attn_qkv.weight": (9216, 3072),
        "attn_output.weight": (3072, 3072), "ffn_norm.weight": (3072,),
        "ffn_up.weight": (16384, 3072), "ffn_down.weight": (3072, 8192),
    }  # fmt: skip
    factors: Shapes = {f"rope_factors_{which}.weight": (48,) for which in ("long", "short")}
    return _facts(
        "phi3", [layer] * 32, _ends(32064, 3072) | factors, heads=32, kv_heads=32, key=96,
        value=96, wide=8192, context=131072,
        hyperparameters={"rope.scaling.original_context_length": 4096, "rope.dimension_count": 96},
    )  # fmt: skip


def nomic_bert() -> ModelFacts:
    """nomic-embed-text-v1.5."""
    layer = {
        "attn_qkv.weight": (2304, 768), "attn_output.weight": (768, 768), **_gated(768, 3072),
        **{f"{name}.{part}": (768,) for name in ("attn_output_norm", "layer_output_norm")
           for part in ("weight", "bias")},
    }  # fmt: skip
    outside: Shapes = {
        "token_embd.weight": (30522, 768), "token_types.weight": (2, 768),
        "token_embd_norm.weight": (768,), "token_embd_norm.bias": (768,),
    }  # fmt: skip
    return _facts(
        "nomic-bert", [layer] * 12, outside, heads=12, kv_heads=12, key=64, value=64, wide=3072,
        context=8192,
    )  # fmt: skip


def deepseek_v2_lite(*, absorbed: bool) -> ModelFacts:
    """DeepSeek-V2-Lite, with and without its absorbed latent attention."""
    own = {
        "attn_norm.weight": (2048,), "attn_q.weight": (16 * 192, 2048),
        "attn_kv_a_mqa.weight": (512 + 64, 2048), "attn_kv_a_norm.weight": (512,),
        "attn_output.weight": (2048, 2048), "ffn_norm.weight": (2048,),
    }  # fmt: skip
    if absorbed:
        own |= {"attn_k_b.weight": (16, 512, 128), "attn_v_b.weight": (16, 128, 512)}
    else:
        own |= {"attn_kv_b.weight": (16 * 256, 512)}
    sparse = {**own, **_experts(2048, 1408, 64), **_gated(2048, 2816, "_shexp")}
    latent = {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
    return _facts(
        "deepseek2", [{**own, **_gated(2048, 10944)}, *[sparse] * 26], _ends(102400, 2048),
        heads=16, kv_heads=1 if absorbed else 16, key=576 if absorbed else 192,
        value=512 if absorbed else 128, wide=10944, context=163840, experts=64, experts_used=6,
        hyperparameters={
            "attention.kv_lora_rank": 512, "rope.dimension_count": 64, "expert_shared_count": 2,
            "leading_dense_block_count": 1, "expert_weights_scale": 1.0,
            **(latent if absorbed else {}),
        },
    )  # fmt: skip


def deepseek_v3() -> ModelFacts:
    """DeepSeek-V3's attention and routing, with few layers."""
    own = {
        "attn_norm.weight": (7168,), "attn_q_a.weight": (1536, 7168),
        "attn_q_a_norm.weight": (1536,), "attn_q_b.weight": (128 * 192, 1536),
        "attn_kv_a_mqa.weight": (512 + 64, 7168), "attn_kv_a_norm.weight": (512,),
        "attn_k_b.weight": (128, 512, 128), "attn_v_b.weight": (128, 128, 512),
        "attn_output.weight": (7168, 128 * 128), "ffn_norm.weight": (7168,),
    }  # fmt: skip
    sparse = {**own, **_experts(7168, 2048, 256), **_gated(7168, 2048, "_shexp"),
              "exp_probs_b.bias": (256,)}  # fmt: skip
    dense = {**own, **_gated(7168, 18432)}
    return _facts(
        "deepseek2", [*[dense] * 3, *[sparse] * 9], _ends(129280, 7168), heads=128, kv_heads=1,
        key=576, value=512, wide=18432, context=163840, experts=256, experts_used=8,
        hyperparameters={
            "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512,
            "attention.key_length_mla": 192, "attention.value_length_mla": 128,
            "rope.dimension_count": 64, "expert_shared_count": 1, "leading_dense_block_count": 3,
            "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2,
            "expert_group_count": 8, "expert_group_used_count": 4,
        },
    )  # fmt: skip


def granite_hybrid() -> ModelFacts:
    """Granite-4.0-H-Tiny: 40 layers, four of them with attention, all with experts."""
    inner, state, heads, groups, kernel, hidden = 3072, 128, 48, 1, 4, 1536
    width = inner + 2 * groups * state
    mixed = {"ffn_norm.weight": (hidden,), **_experts(hidden, 512, 64),
             **_gated(hidden, 1024, "_shexp")}  # fmt: skip
    recurrent = {
        "attn_norm.weight": (hidden,), "ssm_in.weight": (inner + width + heads, hidden),
        "ssm_conv1d.weight": (width, kernel), "ssm_conv1d.bias": (width,), "ssm_dt.bias": (heads,),
        "ssm_a": (heads, 1), "ssm_d": (heads, 1), "ssm_norm.weight": (groups, inner // groups),
        "ssm_out.weight": (hidden, inner), **mixed,
    }  # fmt: skip
    attending = {**_attention(hidden, 1536, 512), **mixed}
    numbers = (5, 15, 25, 35)
    facts = _facts(
        "granitehybrid", [attending if n in numbers else recurrent for n in range(40)],
        _ends(100352, hidden, tied=True), heads=12, kv_heads=4, key=128, value=128, wide=512,
        context=131072, experts=64, experts_used=6, tied_embeddings=True,
        hyperparameters={
            "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": heads,
            "ssm.group_count": groups, "ssm.conv_kernel": kernel, "logit_scale": 6.0,
            "residual_scale": 0.22, "embedding_scale": 12.0, "attention.scale": 0.0078125,
            "expert_shared_feed_forward_length": 1024, "rope.scaling.finetuned": False,
        },
    )  # fmt: skip
    kv_heads = tuple(4 if number in numbers else 0 for number in range(40))
    return facts.model_copy(update={"kv_heads": kv_heads})


ODD: dict[str, ModelFacts] = {
    "Gemma-2B": gemma(),
    "Qwen1.5-MoE-A2.7B": qwen2moe(),
    "gpt-oss-20b": gpt_oss(),
    "Phi-3.5-mini": phi3(),
    "nomic-embed-text": nomic_bert(),
    "DeepSeek-V2-Lite": deepseek_v2_lite(absorbed=True),
    "DeepSeek-V2-Lite (expanded)": deepseek_v2_lite(absorbed=False),
    "DeepSeek-V3 (12 layers)": deepseek_v3(),
    "Granite-4.0-H-Tiny": granite_hybrid(),
}
