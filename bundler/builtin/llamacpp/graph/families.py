"""The graph of each architecture (`src/models/*.cpp`): which pieces, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.blocks import Blocks
from bundler.builtin.llamacpp.graph.heads import add_logits, pool
from bundler.builtin.llamacpp.graph.mixtures import deepseek, gpt_oss
from bundler.builtin.llamacpp.graph.recurrent import granite_hybrid
from bundler.builtin.llamacpp.graph.shape import hyperparameters, slides
from bundler.builtin.llamacpp.graph.tensors import Tensor, like
from bundler.lock import ModelFacts

Builder = Callable[[Blocks], None]


@dataclass(frozen=True)
class Decoder:
    """How a decoder's layers differ from Llama's."""

    scaled_embeddings: bool = False
    scaled_queries: bool = False
    normed_heads: bool = False
    """Queries and keys have norms of their own."""
    norms_behind: bool = False
    """Attention and feed forward have norms behind them as well."""
    capped_scores: bool = False
    capped_logits: bool = False
    expert_weights_sum_to_one: bool = True
    shared_expert: bool = False
    adds_state_first: bool = False
    """The sum behind the feed forward has the state as its first part (Phi)."""
    fused_gate: bool = False
    """`ffn_up` holds the gate as well."""

    def __call__(self, blocks: Blocks) -> None:
        """Build the graph."""
        state = blocks.embeddings()
        if self.scaled_embeddings:
            state = like("SCALE", state)
        positions = blocks.positions()
        full = blocks.attention_inputs()
        window = (
            blocks.attention_inputs(sliding=True) if blocks.facts.sliding_window_tokens else full
        )
        rows = blocks.output_numbers()
        last = blocks.layers[-1]
        for layer in blocks.layers:
            blocks.graph.layer_inputs.append(state)
            found = blocks.norm(state, blocks.needed(layer, "attn_norm.weight"))
            queries, keys, values = blocks.queries_keys_values(layer, found)
            queries, keys = self._positioned(blocks, layer, queries, keys, positions)
            found = blocks.cached_attention(
                layer, window if slides(blocks.facts, layer) else full, queries, keys, values,
                capped=self.capped_scores,
            )  # fmt: skip
            if layer == last:
                found, state = ggml.get_rows(found, rows), ggml.get_rows(state, rows)
            state = self._feed_forward(blocks, layer, found, state)
        normed = blocks.norm(state, blocks.outside("output_norm.weight", blocks.homes[-1]))
        add_logits(blocks, normed, capped=self._caps_logits(blocks))

    def _caps_logits(self, blocks: Blocks) -> bool:
        """Gemma 2 always caps its logits, Gemma 3 where its header says so."""
        given = hyperparameters(blocks.facts).get("final_logit_softcapping", 0.0)
        return self.capped_logits or (self.scaled_embeddings and bool(given))

    def _positioned(
        self, blocks: Blocks, layer: int, queries: Tensor, keys: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        factors = self._rope_factors(blocks, layer)
        more = () if factors is None else (factors,)
        if self.normed_heads:
            queries = blocks.norm(queries, blocks.weight(layer, "attn_q_norm.weight"))
        queries = like("ROPE", queries, positions, *more)
        if self.normed_heads:
            keys = blocks.norm(keys, blocks.weight(layer, "attn_k_norm.weight"))
        keys = like("ROPE", keys, positions, *more)
        if self.scaled_queries:
            queries = like("SCALE", queries)
        return queries, keys

    def _rope_factors(self, blocks: Blocks, layer: int) -> Tensor | None:
        """`get_rope_factors`: Llama 3 has one set, Phi 3 one for short and one for long contexts."""
        home = blocks.homes[layer]
        found = blocks.outside("rope_freqs.weight", home)
        return found if found is not None else blocks.outside("rope_factors_long.weight", home)

    def _feed_forward(self, blocks: Blocks, layer: int, found: Tensor, state: Tensor) -> Tensor:
        if self.norms_behind:
            found = blocks.norm(found, blocks.needed(layer, "post_attention_norm.weight"))
        added = like("ADD", found, state)
        found = blocks.norm(added, blocks.needed(layer, "ffn_norm.weight"))
        found = self._mixed(blocks, layer, found)
        if self.norms_behind:
            found = blocks.norm(found, blocks.needed(layer, "post_ffw_norm.weight"))
        return like("ADD", added, found) if self.adds_state_first else like("ADD", found, added)

    def _mixed(self, blocks: Blocks, layer: int, source: Tensor) -> Tensor:
        if "ffn_gate_inp.weight" not in blocks.weights.layers[layer]:
            if self.fused_gate:
                return blocks.fused_feed_forward(layer, source)
            return blocks.feed_forward(layer, source)
        found = blocks.experts(layer, source, sums_to_one=self.expert_weights_sum_to_one)
        if not self.shared_expert:
            return found
        gate = blocks.adapted(blocks.needed(layer, "ffn_gate_inp_shexp.weight"), source)
        share = like("DIV", like("UNARY", gate), gate)
        return like("ADD", found, like("MUL", blocks.feed_forward(layer, source, "_shexp"), share))


def encoder(blocks: Blocks) -> None:
    """BERT and its kin: no cache, norms behind, and vectors instead of logits."""
    positions = blocks.positions()
    state = blocks.embeddings()
    types = blocks.outside("token_types.weight", blocks.cpu)
    if types is not None:
        state = like("ADD", state, ggml.view(types, (types.ne[0],)))
    table = blocks.outside("position_embd.weight", blocks.cpu)
    if table is not None:
        state = like("ADD", ggml.get_rows(table, positions), state)
    state = blocks.norm(
        state, blocks.outside("token_embd_norm.weight", blocks.homes[0]),
        blocks.outside("token_embd_norm.bias", blocks.homes[0]), "NORM",
    )  # fmt: skip
    mask = blocks.uncached_inputs()
    rows = blocks.output_numbers()
    last = blocks.layers[-1]
    for layer in blocks.layers:
        blocks.graph.layer_inputs.append(state)
        queries, keys, values = blocks.queries_keys_values(layer, state)
        if table is None:  # positions are turned into queries and keys instead
            queries, keys = like("ROPE", queries, positions), like("ROPE", keys, positions)
        for tensor in (queries, keys, values):
            blocks.graph.expand(tensor)
        found = blocks.dense(layer, "attn_output", blocks.attention(queries, keys, values, mask))
        if layer == last:
            found, state = ggml.get_rows(found, rows), ggml.get_rows(state, rows)
        found = _normed(blocks, layer, "attn_output_norm", like("ADD", found, state))
        state = like("ADD", blocks.feed_forward(layer, found), found)
        state = _normed(blocks, layer, "layer_output_norm", state)
    state.is_output = True
    blocks.graph.expand(state)
    pool(blocks, state)


def _normed(blocks: Blocks, layer: int, name: str, source: Tensor) -> Tensor:
    weight, bias = (blocks.weight(layer, f"{name}.{part}") for part in ("weight", "bias"))
    return blocks.norm(source, weight, bias, "NORM")


FAMILIES: dict[str, Builder] = {
    "llama": Decoder(),
    "qwen2": Decoder(),
    "qwen2moe": Decoder(expert_weights_sum_to_one=False, shared_expert=True),
    "qwen3": Decoder(normed_heads=True),
    "qwen3moe": Decoder(normed_heads=True),
    "gemma": Decoder(scaled_embeddings=True, scaled_queries=True),
    "gemma2": Decoder(
        scaled_embeddings=True, scaled_queries=True, norms_behind=True, capped_scores=True,
        capped_logits=True,
    ),
    "gemma3": Decoder(
        scaled_embeddings=True, scaled_queries=True, normed_heads=True, norms_behind=True
    ),
    "phi3": Decoder(scaled_queries=True, fused_gate=True, adds_state_first=True),
    "gpt-oss": gpt_oss,
    "deepseek2": deepseek,
    "granitehybrid": granite_hybrid,
    "bert": encoder,
    "nomic-bert": encoder,
}  # fmt: skip
"""llama.cpp's name of an architecture → what builds its graph."""


def why_not(facts: ModelFacts) -> str:
    """Return why a model's graph is not described here; empty when it is."""
    if facts.architecture not in FAMILIES:
        return f"the architecture {facts.architecture!r} is not described"
    if hyperparameters(facts).get("nextn_predict_layers"):
        return "it has layers that predict several tokens at once"
    if hyperparameters(facts).get("attention.clamp_kqv"):
        return "its attention is clamped"
    return ""
