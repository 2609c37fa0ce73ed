"""Graphs of mixtures of experts that are not Llama's with other feed forwards.

`gpt-oss` (src/models/openai-moe.cpp) and `deepseek2` (src/models/deepseek2.cpp), which includes
DeepSeek V2 and V3, GigaChat 3, Kimi K2 and Mistral Large 3.
"""

from __future__ import annotations

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.blocks import Blocks
from bundler.builtin.llamacpp.graph.heads import add_logits
from bundler.builtin.llamacpp.graph.pieces import AttentionInputs
from bundler.builtin.llamacpp.graph.shape import hyperparameters, is_latent, slides
from bundler.builtin.llamacpp.graph.tensors import Tensor, like, product

_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def gpt_oss(blocks: Blocks) -> None:
    """Windows on every other layer, sinks, and experts with biases."""
    state = blocks.embeddings()
    positions = blocks.positions()
    full, window = blocks.attention_inputs(), blocks.attention_inputs(sliding=True)
    rows = blocks.output_numbers()
    for layer in blocks.layers:
        blocks.graph.layer_inputs.append(state)
        found = blocks.norm(state, blocks.needed(layer, "attn_norm.weight"))
        queries, keys, values = blocks.queries_keys_values(layer, found)
        queries, keys = like("ROPE", queries, positions), like("ROPE", keys, positions)
        found = blocks.cached_attention(
            layer, window if slides(blocks.facts, layer) else full, queries, keys, values,
            sinks=blocks.needed(layer, "attn_sinks.weight"),
        )  # fmt: skip
        added = like("ADD", found, state)
        found = blocks.norm(added, blocks.needed(layer, "post_attention_norm.weight"))
        found = blocks.experts(layer, found, sums_to_one=False, gate="late softmax")
        state = like("ADD", found, added)
    state.is_output = True  # drafting heads may want it
    state = ggml.get_rows(state, rows)
    add_logits(blocks, blocks.norm(state, blocks.outside("output_norm.weight", blocks.homes[-1])))


def deepseek(blocks: Blocks) -> None:
    """Latent attention, with or without its absorbed form, and shared experts."""
    state = blocks.embeddings()
    scale = (
        ggml.given("F32", 1, 1, blocks.tokens, name="attn_scale")
        if hyperparameters(blocks.facts).get("attention.temperature_scale")
        else None
    )
    positions = blocks.positions()
    latent = is_latent(blocks.facts)
    inputs = blocks.key_inputs() if latent else blocks.attention_inputs()
    rows = blocks.output_numbers()
    last = blocks.layers[-1]
    for layer in blocks.layers:
        blocks.graph.layer_inputs.append(state)
        found = blocks.norm(state, blocks.needed(layer, "attn_norm.weight"))
        attend = _absorbed if latent else _expanded
        found = attend(blocks, layer, inputs, found, positions, scale)
        if layer == last:
            found, state = ggml.get_rows(found, rows), ggml.get_rows(state, rows)
        added = like("ADD", found, state)
        found = blocks.norm(added, blocks.needed(layer, "ffn_norm.weight"))
        state = like("ADD", _mixed(blocks, layer, found), added)
    normed = blocks.norm(state, blocks.outside("output_norm.weight", blocks.homes[-1]))
    add_logits(blocks, normed, adapted=False)


def _mixed(blocks: Blocks, layer: int, source: Tensor) -> Tensor:
    """The first layers are dense; later ones have experts and one that all tokens share."""
    if "ffn_gate_inp.weight" not in blocks.weights.layers[layer]:
        return blocks.feed_forward(layer, source)
    given = hyperparameters(blocks.facts)
    factor = given.get("expert_weights_scale", 0.0)
    groups, used = given.get("expert_group_count", 0), given.get("expert_group_used_count", 0)
    found = blocks.experts(
        layer, source, sums_to_one=bool(given.get("expert_weights_norm", False)),
        gate="sigmoid" if given.get("expert_gating_func") == _SIGMOID else "softmax",
        scaled=factor not in (0.0, 1.0), groups=int(str(groups)), groups_used=int(str(used)),
    )  # fmt: skip
    return like("ADD", found, blocks.feed_forward(layer, source, "_shexp"))


def _queries(blocks: Blocks, layer: int, source: Tensor, width: int) -> Tensor:
    if "attn_q.weight" in blocks.weights.layers[layer]:
        found = product(blocks.needed(layer, "attn_q.weight"), source)
    else:
        found = product(blocks.needed(layer, "attn_q_a.weight"), source)
        found = blocks.norm(found, blocks.weight(layer, "attn_q_a_norm.weight"))
        found = product(blocks.needed(layer, "attn_q_b.weight"), found)
    return ggml.reshape(found, width, blocks.facts.heads, blocks.tokens)


def _compressed(
    blocks: Blocks, layer: int, source: Tensor, positions: Tensor, rank: int, turned: int
) -> tuple[Tensor, Tensor]:
    """Return the latent state of keys and values, and the part of keys that has a position."""
    both = product(blocks.needed(layer, "attn_kv_a_mqa.weight"), source)
    step = ggml.row_bytes("F32", rank + turned)
    state = ggml.view(both, (rank, blocks.tokens), (step,))
    keys = like("ROPE", ggml.view(both, (turned, 1, blocks.tokens), (step, step)), positions)
    return blocks.norm(state, blocks.weight(layer, "attn_kv_a_norm.weight")), keys


def _absorbed(
    blocks: Blocks, layer: int, inputs: AttentionInputs, source: Tensor, positions: Tensor,
    scale: Tensor | None,
) -> Tensor:  # fmt: skip
    tokens, heads = blocks.tokens, blocks.facts.heads
    plain, rank, _ = blocks.needed(layer, "attn_k_b.weight").ne[:3]
    turned = blocks.facts.head_dim_key - rank
    queries = _queries(blocks, layer, source, plain + turned)
    state, turned_keys = _compressed(blocks, layer, source, positions, rank, turned)
    steps = queries.nb[1:3]
    plain_queries = ggml.view(queries, (plain, heads, tokens), steps)
    turned_queries = like("ROPE", ggml.view(queries, (turned, heads, tokens), steps), positions)
    plain_queries = ggml.permute(plain_queries, 0, 2, 1, 3)
    taken = product(blocks.needed(layer, "attn_k_b.weight"), plain_queries)
    queries = ggml.concat(ggml.permute(taken, 0, 2, 1, 3), turned_queries, 0)
    values = ggml.reshape(state, rank, 1, tokens)
    keys = ggml.concat(values, turned_keys, 0)
    if scale is not None:
        queries = like("MUL", queries, scale)
    return blocks.key_attention(
        layer, inputs, queries, keys, values, blocks.needed(layer, "attn_v_b.weight")
    )


def _expanded(
    blocks: Blocks, layer: int, inputs: AttentionInputs, source: Tensor, positions: Tensor,
    scale: Tensor | None,
) -> Tensor:  # fmt: skip
    tokens, heads = blocks.tokens, blocks.facts.heads
    width, deep = blocks.facts.head_dim_key, blocks.facts.head_dim_value
    matrix = blocks.needed(layer, "attn_kv_b.weight")
    plain, rank = matrix.ne[1] // heads - deep, matrix.ne[0]
    turned = width - plain
    queries = _queries(blocks, layer, source, width)
    state, turned_keys = _compressed(blocks, layer, source, positions, rank, turned)
    both = product(matrix, state)
    step = ggml.row_bytes("F32", plain + deep)
    steps = (step, step * heads)
    plain_keys = ggml.view(both, (plain, heads, tokens), steps)
    values = ggml.contiguous(ggml.view(both, (deep, heads, tokens), steps))
    queries = like("ROPE", queries, positions)
    repeated = ggml.new("F32", turned, heads, tokens, op="REPEAT", sources=(turned_keys,))
    keys = ggml.concat(plain_keys, repeated, 0)
    if scale is not None:
        queries = like("MUL", queries, scale)
    return blocks.cached_attention(layer, inputs, queries, keys, values)
