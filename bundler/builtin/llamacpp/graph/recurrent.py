"""Graphs with recurrent layers: Mamba 2, alone or between layers with attention.

`build_rs` of src/llama-graph.cpp, `build_mamba2_layer` of src/models/mamba-base.cpp and
src/models/granite-hybrid.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.blocks import Blocks
from bundler.builtin.llamacpp.graph.heads import add_logits
from bundler.builtin.llamacpp.graph.shape import StateSizes, hyperparameters, state_sizes
from bundler.builtin.llamacpp.graph.tensors import Tensor, given, held, like


@dataclass(frozen=True)
class StateInputs:
    """Which states go on, and which are only moved (`llm_graph_input_rs`)."""

    kept: Tensor
    moved: Tensor


def _state_inputs(blocks: Blocks) -> StateInputs:
    users = blocks.run.parallel
    copies = given("I32", users, name="rs_s_copy")
    return StateInputs(ggml.view(copies, (users,)), ggml.view(copies, (0,)))


def _clear(blocks: Blocks, cache: Tensor, size: int) -> Tensor:
    """Clear the state of a new text; return all states."""
    states = ggml.reshape(cache, size, cache.ne[1])
    first = ggml.view(states, (size,))
    cleared = Tensor("SCALE", first.type, first.ne, first.nb, (first,), first)
    blocks.graph.expand(cleared)
    return states


def _move_the_rest(blocks: Blocks, cache: Tensor, states: Tensor, inputs: StateInputs) -> None:
    rest = ggml.get_rows(states, inputs.moved)
    place = ggml.view(cache, (states.ne[0], 0), (cache.nb[1],))
    blocks.graph.expand(ggml.copy_into(rest, place))


def _mamba2(blocks: Blocks, layer: int, inputs: StateInputs, source: Tensor) -> Tensor:
    """One layer: a convolution over the last tokens, then the scan over states."""
    sizes, users = state_sizes(blocks.facts), blocks.run.parallel
    each = blocks.tokens // users
    home = blocks.homes[layer]
    heads, inner, state, groups = sizes.heads, sizes.inner, sizes.state, sizes.groups
    width = inner + 2 * groups * state
    conv_cache = held("F32", sizes.conv_values, users, backend=home, name=f"cache_r_l{layer}")
    scan_cache = held("F32", sizes.scan_values, users, backend=home, name=f"cache_s_l{layer}")

    states = _clear(blocks, conv_cache, sizes.conv_values)
    before = ggml.get_rows(states, inputs.kept)
    blocks.graph.expand(before)
    _move_the_rest(blocks, conv_cache, states, inputs)
    before = ggml.reshape(before, sizes.kernel - 1, width, users)

    projected = blocks.adapted(blocks.needed(layer, "ssm_in.weight"), source)
    projected = ggml.reshape(projected, projected.ne[0], each, users)
    head = inner // heads
    steps = (4 * head, *projected.nb[1:3])
    gate = ggml.view(projected, (head, heads, each, users), steps)
    mixed = ggml.view(projected, (width, each, users), projected.nb[1:3])
    times = ggml.view(projected, (heads, each, users), projected.nb[1:3])

    window = ggml.concat(before, ggml.transpose(mixed), 0)
    last = ggml.view(window, (sizes.kernel - 1, width, users), window.nb[1:3])
    place = ggml.view(conv_cache, (sizes.conv_values, users), (conv_cache.nb[1],))
    blocks.graph.expand(ggml.copy_into(last, place))
    kernel = blocks.needed(layer, "ssm_conv1d.weight")
    mixed = ggml.new("F32", width, each, users, op="SSM_CONV", sources=(window, kernel))
    bias = blocks.weight(layer, "ssm_conv1d.bias")
    mixed = like("UNARY", like("ADD", mixed, bias) if bias is not None else mixed)
    return _scan(blocks, layer, inputs, sizes, scan_cache, mixed, times, gate)


def _scan(
    blocks: Blocks, layer: int, inputs: StateInputs, sizes: StateSizes, cache: Tensor,
    mixed: Tensor, times: Tensor, gate: Tensor,
) -> Tensor:  # fmt: skip
    users, each = blocks.run.parallel, blocks.tokens // blocks.run.parallel
    heads, inner, state, groups = sizes.heads, sizes.inner, sizes.state, sizes.groups
    head = inner // heads
    values = ggml.view(mixed, (head, heads, each, users), (4 * head, *mixed.nb[1:3]))
    keys, queries = (
        ggml.view(mixed, (state, groups, each, users), (4 * state, *mixed.nb[1:3]))
        for _ in range(2)
    )
    times = like("ADD", ggml.contiguous(times), blocks.needed(layer, "ssm_dt.bias"))
    states = _clear(blocks, cache, sizes.scan_values)
    shaped = ggml.reshape(states, state, head, heads, users)
    decay = blocks.needed(layer, "ssm_a")
    found = ggml.new(
        "F32", values.values + sizes.scan_values * users, op="SSM_SCAN",
        sources=(shaped, values, times, decay, keys, queries, inputs.kept),
    )  # fmt: skip
    blocks.graph.expand(found)
    _move_the_rest(blocks, cache, states, inputs)
    row = 4 * sizes.scan_values
    after = ggml.view(found, (sizes.scan_values, users, 1), (row, row * users))
    place = ggml.view(cache, (sizes.scan_values, users, 1), (cache.nb[1], row * users))
    blocks.graph.expand(ggml.copy_into(after, place))

    step = values.nb[1]
    steps = (step, heads * step, each * heads * step)
    result = ggml.view(found, (head, heads, each, users), steps)
    result = like("ADD", result, like("MUL", values, blocks.needed(layer, "ssm_d")))
    result = ggml.gated(ggml.contiguous(gate), result)
    norm = blocks.weight(layer, "ssm_norm.weight")
    if norm is not None:
        result = blocks.norm(ggml.reshape(result, inner // groups, groups, each, users), norm)
    result = ggml.reshape(result, inner, each * users)
    return blocks.adapted(blocks.needed(layer, "ssm_out.weight"), result)


def granite_hybrid(blocks: Blocks) -> None:
    """Granite 4: Mamba 2 layers with a few of attention between them."""
    factors = hyperparameters(blocks.facts)
    state = blocks.embeddings()
    if factors.get("embedding_scale"):
        state = like("SCALE", state)
        blocks.graph.expand(state)
    states, attention = _state_inputs(blocks), blocks.attention_inputs()
    rows = blocks.output_numbers()
    positions = None if factors.get("rope.scaling.finetuned") is False else blocks.positions()
    last = blocks.layers[-1]
    for layer in blocks.layers:
        blocks.graph.layer_inputs.append(state)
        found = blocks.norm(state, blocks.needed(layer, "attn_norm.weight"))
        if blocks.facts.kv_heads[layer] == 0:
            found = _mamba2(blocks, layer, states, found)
        else:
            queries, keys, values = blocks.queries_keys_values(layer, found)
            if positions is not None:
                queries, keys = like("ROPE", queries, positions), like("ROPE", keys, positions)
            found = blocks.cached_attention(layer, attention, queries, keys, values)
        if layer == last:
            found, state = ggml.get_rows(found, rows), ggml.get_rows(state, rows)
        state = _feed_forward(blocks, layer, found, state, bool(factors.get("residual_scale")))
    state = blocks.norm(state, blocks.outside("output_norm.weight", blocks.homes[-1]))
    add_logits(blocks, state, scaled=bool(factors.get("logit_scale")))


def _feed_forward(blocks: Blocks, layer: int, found: Tensor, state: Tensor, scaled: bool) -> Tensor:
    found = like("SCALE", found) if scaled else found
    added = like("ADD", found, state)
    source = blocks.norm(added, blocks.needed(layer, "ffn_norm.weight"))
    names = blocks.weights.layers[layer]
    if "ffn_gate_inp.weight" not in names:
        found = blocks.feed_forward(layer, source)
    else:
        found = blocks.experts(layer, source, sums_to_one=True)
        if "ffn_up_shexp.weight" in names:
            found = like("ADD", found, blocks.feed_forward(layer, source, "_shexp"))
    found = like("SCALE", found) if scaled else found
    return like("ADD", found, added)
