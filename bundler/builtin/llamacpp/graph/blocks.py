"""The pieces that llama.cpp's graphs are made of (`src/llama-graph.cpp`), as shapes."""

from __future__ import annotations

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.attention import Attending
from bundler.builtin.llamacpp.graph.tensors import Tensor, like


class Blocks(Attending):
    """Builds one graph: all of its pieces, feed forwards and mixtures of experts the last."""

    def feed_forward(self, layer: int, source: Tensor, suffix: str = "") -> Tensor:
        """`build_ffn` with a parallel gate, where the model has one."""
        up = self.dense(layer, f"ffn_up{suffix}", source)
        if f"ffn_gate{suffix}.weight" in self.weights.layers[layer]:
            found = ggml.gated(self.dense(layer, f"ffn_gate{suffix}", source), up)
        else:
            found = like("UNARY", up)
        return self.dense(layer, f"ffn_down{suffix}", found)

    def fused_feed_forward(self, layer: int, source: Tensor) -> Tensor:
        """`build_ffn` whose `ffn_up` holds gate and up together (LLM_FFN_SWIGLU)."""
        both = self.dense(layer, "ffn_up", source)
        return self.dense(layer, "ffn_down", ggml.gated_halves(both))

    def experts(
        self, layer: int, source: Tensor, *, sums_to_one: bool, gate: str = "softmax",
        scaled: bool = False, groups: int = 1, groups_used: int = 1,
    ) -> Tensor:  # fmt: skip
        """`build_moe_ffn`.

        `gate` is what makes weights of the router's logits: `softmax`, `sigmoid`, or
        `late softmax`, which is taken of the chosen ones only.
        """
        tokens, used = source.ne[1], self.facts.experts_used
        logits = self.dense(layer, "ffn_gate_inp", source)
        ops = {"softmax": "SOFT_MAX", "sigmoid": "UNARY"}
        weighed = like(ops[gate], logits) if gate in ops else logits
        biased = self.weight(layer, "exp_probs_b.bias")
        ranked = weighed if biased is None else like("ADD", weighed, biased)
        if groups > 1:
            ranked = _best_groups(ranked, groups, groups_used)
        chosen = ggml.best(ranked, used)
        weights = ggml.get_rows(ggml.reshape(weighed, 1, weighed.ne[0], tokens), chosen)
        if gate == "late softmax":
            weights = like("SOFT_MAX", ggml.reshape(weights, used, tokens))
            weights = ggml.reshape(weights, 1, used, tokens)
        if sums_to_one:
            flat = ggml.reshape(weights, used, tokens)
            total = like("CLAMP", ggml.sum_rows(flat))
            weights = ggml.reshape(like("DIV", flat, total), 1, used, tokens)
        if scaled:
            weights = like("SCALE", weights)
        self.graph.expand(weights)
        each = self._each_expert(layer, source, chosen)
        found = like("MUL", each, weights)
        self.graph.expand(found)
        total = self._sum_of_experts(found, tokens)
        self.graph.kept[id(total)] = [each, weights]
        return total

    def _each_expert(self, layer: int, source: Tensor, chosen: Tensor) -> Tensor:
        """All chosen experts' products of each token."""
        source = ggml.reshape(source, source.ne[0], 1, source.ne[1])
        if "ffn_gate_up_exps.weight" in self.weights.layers[layer]:
            both = self._expert(layer, "ffn_gate_up_exps", source, chosen)
            half = (both.ne[0] // 2, *both.ne[1:3])
            found = ggml.gated(ggml.view(both, half, both.nb[1:3]),
                               ggml.view(both, half, both.nb[1:3]))  # fmt: skip
        else:
            up = self._expert(layer, "ffn_up_exps", source, chosen)
            if "ffn_gate_exps.weight" in self.weights.layers[layer]:
                found = ggml.gated(self._expert(layer, "ffn_gate_exps", source, chosen), up)
            else:
                found = like("UNARY", up)
        return self._expert(layer, "ffn_down_exps", found, chosen)

    def _expert(self, layer: int, name: str, source: Tensor, chosen: Tensor) -> Tensor:
        found = self.adapted_experts(self.needed(layer, f"{name}.weight"), source, chosen)
        bias = self.weight(layer, f"{name}.bias")
        return found if bias is None else like("ADD_ID", found, bias, chosen)

    def _sum_of_experts(self, each: Tensor, tokens: int) -> Tensor:
        """Add the chosen experts' results up, one after the other."""
        views = [
            ggml.view(each, (each.ne[0], tokens), (each.nb[2],))
            for _ in range(self.facts.experts_used)
        ]
        for view in views:
            self.graph.expand(view)
        found = views[0]
        for view in views[1:]:
            found = like("ADD", found, view)
            self.graph.expand(found)
        return ggml.contiguous(found) if len(views) == 1 else found


def _best_groups(ranked: Tensor, groups: int, used: int) -> Tensor:
    """Mask the experts of all but the best groups (DeepSeek V3)."""
    experts, tokens = ranked.ne[0], ranked.ne[1]
    each = experts // groups
    grouped = ggml.reshape(ranked, each, groups, tokens)
    scores = ggml.get_rows(ggml.reshape(grouped, 1, each, groups, tokens), ggml.best(grouped, 2))
    scores = ggml.sum_rows(ggml.reshape(scores, *scores.ne[1:]))
    chosen = ggml.best(ggml.reshape(scores, *scores.ne[1:3]), used)
    kept = ggml.get_rows(grouped, chosen)
    empty = like("FILL", grouped)
    return ggml.reshape(ggml.set_rows(empty, kept, chosen), experts, tokens)
