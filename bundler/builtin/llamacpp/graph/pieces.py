"""Weights, inputs and simple layers of a graph in the making (`src/llama-graph.cpp`), as shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.shape import (
    KV_TYPES,
    Model,
    Run,
    Site,
    ThinPair,
    sliding_cells,
)
from bundler.builtin.llamacpp.graph.tensors import (
    Graph,
    Tensor,
    given,
    held,
    like,
    product,
    weight,
)

_QUANTIZED = ("Q8_0", "Q4_0")
ROTATION_STEP = 64


@dataclass
class AttentionInputs:
    """What the host fills in for attention: where rows go, who sees whom, rotations."""

    key_rows: Tensor
    value_rows: Tensor
    mask: Tensor
    cells: int
    key_rotation: Tensor | None = None
    value_rotation: Tensor | None = None


class NotDescribed(Exception):
    """A model is not as the graph of its architecture is described here: what differs."""


class Pieces:
    """Holds the run, the model's shapes and the graph so far."""

    def __init__(self, model: Model, run: Run, site: Site, tokens: int, outputs: int) -> None:
        """`tokens` of one micro batch, logits for `outputs` of them."""
        self.facts = model.facts
        self.weights = model
        self.types = site.types
        self.run = run
        self.graph = Graph()
        self.tokens = tokens
        self.outputs = outputs
        self.homes = site.homes
        self.layers = site.layers
        self.cpu = site.cpu
        self.cache_type = KV_TYPES[run.kv_cache]
        self.used: set[str] = set()
        self._outside: dict[tuple[str, int], Tensor] = {}
        self._thin: dict[str, list[ThinPair]] = {}
        self._applied: set[str] = set()
        for adapter in run.adapters:
            for pair in adapter:
                self._thin.setdefault(pair.name, []).append(pair)

    def check_all_used(self) -> None:
        """Raise NotDescribed for tensors that the graph has no place for: it is another graph then."""
        for layer in self.layers:
            left = [name for name in self.weights.layers[layer] if name not in self.used]
            if left:
                raise NotDescribed(f"it has blk.{layer}.{left[0]}, which is not known here")
        built = tuple(f"blk.{layer}." for layer in self.layers)
        for name in self._thin.keys() - self._applied:
            if name.startswith(built) or not name.startswith("blk."):
                raise NotDescribed(f"llama.cpp applies no adapter to its {name}")

    # -- weights -----------------------------------------------------------------------------------

    def weight(self, layer: int, name: str) -> Tensor | None:
        """Return a layer's tensor, or None when the model has none of that name."""
        shape = self.weights.layers[layer].get(name)
        if shape is None:
            return None
        self.used.add(name)
        full = f"blk.{layer}.{name}"
        return weight(self._type(full), *shape, backend=self.homes[layer], name=full)

    def _type(self, name: str) -> str:
        return self.types.get(name, "F32")

    def needed(self, layer: int, name: str) -> Tensor:
        """Return a layer's tensor that its architecture cannot do without."""
        found = self.weight(layer, name)
        if found is None:
            raise NotDescribed(f"it has no blk.{layer}.{name}")
        return found

    def outside(self, name: str, backend: int) -> Tensor | None:
        """Return a tensor that belongs to no layer: the same one for all layers on a backend."""
        shape = self.weights.outside.get(name)
        if shape is None:
            return None
        key = (name, backend)
        if key not in self._outside:
            self._outside[key] = weight(self._type(name), *shape, backend=backend, name=name)
        return self._outside[key]

    # -- inputs ------------------------------------------------------------------------------------

    def embeddings(self) -> Tensor:
        """`build_inp_embd`: rows of the table, or vectors given instead of them."""
        table = self.outside("token_embd.weight", self.cpu)
        if table is None:
            raise NotDescribed("it has no token_embd.weight")
        tokens = given("I32", self.tokens, name="inp_tokens")
        vectors = given("F32", table.ne[0], self.tokens, name="inp_embd")
        found = ggml.get_rows(table, tokens)
        for down, up in self.thin(table):
            change = like("SCALE", product(up, ggml.get_rows(down, tokens)))
            found = like("ADD", found, change)
        self.graph.expand(found)
        self.graph.expand(vectors)
        return found

    def positions(self) -> Tensor:
        """`build_inp_pos`."""
        return given("I32", self.tokens, name="inp_pos")

    def output_numbers(self) -> Tensor:
        """`build_inp_out_ids`."""
        return given("I32", self.outputs, name="out_ids")

    def attention_inputs(self, *, sliding: bool = False) -> AttentionInputs:
        """`build_attn_inp_kv`, or one half of `build_attn_inp_kv_iswa`."""
        cells = sliding_cells(self.facts, self.run) if sliding else self.run.cells
        streams = self.run.parallel
        key_rows = given("I64", self.tokens, name="k_idxs")
        # Without flash attention values lie transposed, and each of them is a row.
        widest = max(self.facts.kv_heads, default=0) * self.facts.head_dim_value
        each = 1 if self.run.flash_attention else widest
        value_rows = given("I64", self.tokens * each, name="v_idxs")
        type_ = "F16" if self.run.flash_attention else "F32"
        mask = given(type_, cells, self.tokens // streams, 1, streams, name="kq_mask")
        found = AttentionInputs(key_rows, value_rows, mask, cells)
        if self.cache_type in _QUANTIZED:
            if self.facts.head_dim_key % ROTATION_STEP == 0:
                side = _rotation_side(self.facts.head_dim_key)
                found.key_rotation = given("F32", side, side, name="k_rot")
            if self.facts.head_dim_value % ROTATION_STEP == 0:
                side = ROTATION_STEP
                found.value_rotation = given("F32", side, side, name="v_rot")
        return found

    def key_inputs(self) -> AttentionInputs:
        """`build_attn_inp_k`: there are no values, keys hold them."""
        key_rows = given("I64", self.tokens, name="k_idxs")
        streams = self.run.parallel
        type_ = "F16" if self.run.flash_attention else "F32"
        mask = given(type_, self.run.cells, self.tokens // streams, 1, streams, name="kq_mask")
        return AttentionInputs(key_rows, key_rows, mask, self.run.cells)

    def uncached_inputs(self) -> Tensor:
        """`build_attn_inp_no_cache`: the mask alone."""
        type_ = "F16" if self.run.flash_attention else "F32"
        return given(type_, self.tokens, self.tokens, name="kq_mask")

    # -- layers ------------------------------------------------------------------------------------

    def norm(self, source: Tensor, weight: Tensor | None, bias: Tensor | None = None,
             op: str = "RMS_NORM") -> Tensor:  # fmt: skip
        """`build_norm`."""
        found = like(op, source)
        if weight is not None:
            found = like("MUL", found, weight)
        if bias is not None:
            found = like("ADD", found, bias)
        return found

    def adapted(self, matrix: Tensor, source: Tensor) -> Tensor:
        """`build_lora_mm`: a product, with that of an adapter's two thin matrices added to it."""
        found = product(matrix, source)
        for down, up in self.thin(matrix):
            change = like("SCALE", product(up, product(down, source)))
            found = like("ADD", found, change)
        return found

    def adapted_experts(self, matrices: Tensor, source: Tensor, chosen: Tensor) -> Tensor:
        """`build_lora_mm_id`: the same for the chosen experts' products."""
        found = ggml.expert_product(matrices, source, chosen)
        for down, up in self.thin(matrices):
            change = ggml.expert_product(up, ggml.expert_product(down, source, chosen), chosen)
            found = like("ADD", found, like("SCALE", change))
        return found

    def thin(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the pairs that adapters have for a matrix; they lie beside it.

        Their buffers are not marked as weights: they do not draw work to where they lie.
        """
        self._applied.add(matrix.name)
        for pair in self._thin.get(matrix.name, ()):
            home = matrix.held_on
            down = held(pair.down_type, *pair.down, backend=home, name=f"{pair.name}.lora_a")
            yield down, held(pair.up_type, *pair.up, backend=home, name=f"{pair.name}.lora_b")

    def dense(self, layer: int, name: str, source: Tensor) -> Tensor:
        """A matrix with its bias, if there is one."""
        found = self.adapted(self.needed(layer, f"{name}.weight"), source)
        bias = self.weight(layer, f"{name}.bias")
        return found if bias is None else like("ADD", found, bias)

    def queries_keys_values(self, layer: int, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`build_qkv`."""
        facts, tokens = self.facts, self.tokens
        heads, kv_heads = facts.heads, facts.kv_heads[layer]
        key, value = facts.head_dim_key, facts.head_dim_value
        if "attn_qkv.weight" in self.weights.layers[layer]:
            fused = self.dense(layer, "attn_qkv", source)
            step = (4 * key, fused.nb[1])
            return (
                ggml.view(fused, (key, heads, tokens), step),
                ggml.view(fused, (key, kv_heads, tokens), step),
                ggml.view(fused, (value, kv_heads, tokens), (4 * value, fused.nb[1])),
            )
        found = [self.dense(layer, name, source) for name in ("attn_q", "attn_k", "attn_v")]
        return (
            ggml.reshape(found[0], key, heads, tokens),
            ggml.reshape(found[1], key, kv_heads, tokens),
            ggml.reshape(found[2], value, kv_heads, tokens),
        )


def _rotation_side(width: int) -> int:
    """Return the largest power of two from 64 on that divides heads (`build_input_k_rot`)."""
    side = ROTATION_STEP
    while width % (side * 2) == 0:
        side *= 2
    return side
