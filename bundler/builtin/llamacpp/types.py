"""Which type llama.cpp gives each tensor under a quantization scheme. Pure.

A port of `llama_tensor_get_type`, `llama_tensor_get_type_impl`, `tensor_allows_quantization` and
`tensor_type_fallback` in `src/llama-quant.cpp` of the llama.cpp inside the llama-cpp-python 0.3.36
sdist, in the same order of decisions; the tests hold it against that library's own dry run. So a
model's size under each scheme is known before anything is downloaded.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bundler.builtin.llamacpp.layers import layers_of
from bundler.builtin.llamacpp.schemes import (
    SCHEMES,
    UNQUANTIZED,
    Scheme,
    needs_importance,
    output_type_wanted,
)
from bundler.errors import Problem, RecipeError
from bundler.lock import ModelFacts, TensorFact
from bundler.weights.ggml_types import BY_NAME, tensor_bytes


def find_scheme(name: str) -> Scheme:
    """Return a scheme by the name a recipe gives it; RecipeError with a suggestion for others."""
    if name in SCHEMES:
        return SCHEMES[name]
    close = difflib.get_close_matches(name.upper().replace("-", "_"), SCHEMES, n=1, cutoff=0.5)
    raise RecipeError(
        Problem(
            f"llama.cpp has no quantization {name!r}",
            hint=(f"did you mean {close[0]!r}? " if close else "")
            + f"it has: auto, {', '.join(sorted(SCHEMES))}",
        )
    )


@dataclass(frozen=True)
class TypeChoice:
    """What becomes of a model's tensors under one scheme."""

    types: Mapping[str, str]
    """Tensor name → ggml type."""
    fallbacks: tuple[TensorFact, ...]
    """Tensors whose rows cannot hold the type the scheme asks for, so llama.cpp takes another."""
    needs_importance_matrix: bool
    """llama.cpp refuses to make some of these types without one."""


def tensor_types(facts: ModelFacts, scheme: str, has_imatrix: bool) -> dict[str, str]:
    """Return the ggml type of every tensor of a model quantized with `scheme`.

    Args:
        facts: of a model whose tensors are (or will be converted to) F32, F16 or BF16.
        scheme: name of a scheme, such as `Q4_K_M`.
        has_imatrix: whether an importance matrix will be given; it changes a few choices.

    Raises:
        RecipeError: there is no such scheme.
    """
    return dict(choose_types(Inventory.of(facts), scheme, has_imatrix).types)


def choose_types(model: Inventory, scheme: str, has_imatrix: bool) -> TypeChoice:
    """Return `tensor_types` with what was put in for rows that do not divide."""
    wanted = find_scheme(scheme)
    state = _State.of(model, wanted, has_imatrix)
    stored = scheme if scheme in UNQUANTIZED else model.stored
    types = {entry.name: "F32" if entry.exact else stored for entry in model.entries}
    fallbacks: list[TensorFact] = []
    for entry in () if scheme in UNQUANTIZED else model.quantizable:
        asked = state.settled.get(entry.category) or _choose(state, entry)
        got = types[entry.name] = fitting_type(asked, entry.row_length)
        if got != asked or (got == "Q8_0" and _output_replaced(state, entry)):
            fallbacks.append(entry.fact)
    return TypeChoice(types, tuple(fallbacks), _needs_importance(types, wanted))


class _Entry(NamedTuple):
    """A tensor with what does not depend on the scheme."""

    fact: TensorFact
    name: str
    row_length: int
    category: str
    exact: bool
    """Whether the conversion writes it as F32."""


@dataclass(frozen=True)
class Inventory:
    """A model's tensors in llama.cpp's order, looked through once for all schemes."""

    facts: ModelFacts
    entries: tuple[_Entry, ...]
    quantizable: tuple[_Entry, ...]
    """Those whose type a scheme decides."""
    stored: str
    """What `output_type = "auto"` makes of its matrices."""
    tied: bool
    """Whether the embedding is the output as well."""
    values_total: int
    """Value (or fused) attention weights."""

    @classmethod
    def of(cls, facts: ModelFacts) -> Inventory:
        """Look through a model's tensors."""
        ordered = sorted(facts.tensors, key=lambda tensor: _file_order(tensor.name))
        entries = tuple(map(_entry, ordered))
        decided = tuple(entry for entry in entries if quantizable(entry.fact))
        categories = [entry.category for entry in entries]
        return cls(
            facts, entries, decided, converted_type(facts), "output" not in categories,
            sum(category in _VALUES for category in categories),
        )  # fmt: skip


def _entry(tensor: TensorFact) -> _Entry:
    name = tensor.name
    return _Entry(
        tensor, name, tensor.shape[-1], _category(_unnumbered(name)), _always_exact(tensor)
    )


def _needs_importance(types: Mapping[str, str], scheme: Scheme) -> bool:
    """Tell whether any tensor does. Only the smallest schemes have such types."""
    return scheme.name.startswith(("IQ1", "IQ2", "IQ3", "Q2_K_S")) and any(
        needs_importance(name, type_, scheme) for name, type_ in types.items()
    )


def converted_type(facts: ModelFacts) -> str:
    """Return what `output_type = "auto"` makes of a model's matrices: the first half type, or F16."""
    matrices = (tensor.type for tensor in facts.tensors if len(tensor.shape) > 1)
    return next((type_ for type_ in matrices if type_ in ("BF16", "F16")), "F16")


def tensors_bytes(facts: ModelFacts, types: Mapping[str, str]) -> int:
    """Return the bytes of all tensors under `types`, without padding."""
    return sum(size for _, (size, _) in layers_of(facts).each(types, _stored_sizes))


def data_section_bytes(facts: ModelFacts, types: Mapping[str, str]) -> int:
    """Return the size of a GGUF file's data section: each tensor padded to 32 bytes."""
    return sum(size for _, (_, size) in layers_of(facts).each(types, _stored_sizes))


def _stored_sizes(tensors: Sequence[tuple[TensorFact, str]]) -> tuple[int, int]:
    """Return the bytes of some tensors without padding, and padded to 32 bytes each."""
    sizes = [stored_bytes(kind, tensor.shape) for tensor, kind in tensors]
    return sum(sizes), sum((size + 31) // 32 * 32 for size in sizes)


stored_bytes = functools.lru_cache(maxsize=1 << 14)(tensor_bytes)
"""`tensor_bytes`, remembered: a model has few different shapes."""


# -- which tensors are quantized at all ------------------------------------------------------------

# Parts of names that `tensor_allows_quantization` leaves alone, for every architecture.
_LEFT_ALONE = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_LEFT_ALONE_WHOLE = ("position_embd.weight", "token_types.weight")


def quantizable(tensor: TensorFact) -> bool:
    """Tell whether llama.cpp quantizes this tensor (`tensor_allows_quantization`)."""
    return _quantizable_name(_unnumbered(tensor.name)) and _dimensions(tensor.shape) >= 2


@functools.lru_cache(maxsize=1 << 12)
def _quantizable_name(name: str) -> bool:
    return (
        name.endswith("weight")
        and name not in _LEFT_ALONE_WHOLE
        and not any(part in name for part in _LEFT_ALONE)
    )


def _dimensions(shape: tuple[int, ...]) -> int:
    """Return the number of dimensions as ggml counts them: outer ones of length 1 do not count."""
    dimensions = len(shape)
    while dimensions > 1 and shape[-dimensions] == 1:
        dimensions -= 1
    return dimensions


def _always_exact(tensor: TensorFact) -> bool:
    """Tell whether the conversion writes it as F32 (`prepare_tensors` in conversion/base.py)."""
    name = tensor.name
    return (
        len(tensor.shape) <= 1
        or not name.endswith(".weight")
        or name.endswith(("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight"))
        or name in _LEFT_ALONE_WHOLE
    )


@functools.lru_cache(maxsize=1 << 12)
def fitting_type(asked: str, row_length: int) -> str:
    """Return the type llama.cpp stores rows of this length as (`tensor_type_fallback`)."""
    if row_length % BY_NAME[asked].block_values == 0:
        return asked
    instead = _FALLBACKS.get(asked, asked)
    return instead if row_length % BY_NAME[instead].block_values == 0 else "F16"


_FALLBACKS = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

# -- which type each one gets ----------------------------------------------------------------------

# Order matters: the first part found in the name decides (`tensor_get_category`).
_CATEGORIES = (
    "attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight", "attn_k.weight", "attn_q.weight",
    "attn_output.weight", "ffn_up", "ffn_gate", "ffn_down",
)  # fmt: skip
_VALUES = ("attn_qkv", "attn_kv_b", "attn_v")
_BLOCK = re.compile(r"blk\.(\d+)\.")
# Architectures whose 80-layer model llama.cpp calls 70B (`load_arch_hparams`).
_SEVENTY_B = ("llama", "qwen2", "deci", "olmo")


def _unnumbered(name: str) -> str:
    """Return a name without its layer's number: the same for all layers, so it is worth remembering."""
    return "blk." + name.partition(".")[2].partition(".")[2] if name.startswith("blk.") else name


def _file_order(name: str) -> tuple[int, str]:
    """Sort as llama.cpp's `weight_name_comparer`: by layer, then by name."""
    match = _BLOCK.match(name)
    return (int(match[1]) if match else -1, name)


@functools.lru_cache(maxsize=1 << 12)
def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    found = next((part for part in _CATEGORIES if part in name), "other")
    return found.removesuffix(".weight")


@dataclass
class _State:
    """What the choice depends on, with the counters that llama.cpp keeps over a file."""

    scheme: str
    base: str
    architecture: str
    layers: int
    heads_per_kv: int
    experts: int
    is_70b: bool
    has_imatrix: bool
    tied: bool
    values_total: int
    seen: dict[str, int] = field(default_factory=dict)
    settled: dict[str, str] = field(default_factory=dict)
    """Category → type, where that is the same for every tensor of it."""

    @classmethod
    def of(cls, model: Inventory, scheme: Scheme, has_imatrix: bool) -> _State:
        facts = model.facts
        kv_heads = facts.kv_heads[0] if facts.kv_heads else 0
        return cls(
            scheme=scheme.name,
            base=scheme.base_type,
            architecture=facts.architecture,
            layers=facts.layers,
            heads_per_kv=facts.heads // kv_heads if kv_heads else 0,
            experts=facts.experts,
            is_70b=_is_70b(facts, kv_heads),
            has_imatrix=has_imatrix,
            tied=model.tied,
            values_total=model.values_total,
        )

    def count(self, what: str) -> int:
        """Return how many of this kind came before, and count this one."""
        before = self.seen.get(what, 0)
        self.seen[what] = before + 1
        return before


def _is_70b(facts: ModelFacts, kv_heads: int) -> bool:
    if facts.architecture == "llama":
        return facts.layers == 80 and facts.experts != 8 and facts.heads != kv_heads
    if facts.architecture == "jais2":
        return facts.layers == 68
    return facts.architecture in _SEVENTY_B and facts.layers == 80


def _more_bits(layer: int, layers: int) -> bool:
    """Tell whether a layer is among the first and last eighth or every third between."""
    eighth = layers // 8
    # C++ truncates towards zero; the first case is taken before the difference can be negative.
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _choose(state: _State, tensor: _Entry) -> str:
    """Return the type asked for one tensor (`llama_tensor_get_type_impl`)."""
    category = tensor.category
    if category == "output" or (state.tied and category == "token_embd"):
        return _output_type(state, tensor.row_length)
    if state.scheme == "MXFP4_MOE":
        shape = tensor.fact.shape
        return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
    if category == "token_embd":
        return _EMBEDDING_TYPES.get(state.scheme, state.base)
    if state.scheme in _TINY:
        return _tiny_type(state, category)
    if category in _VALUES:
        return _value_type(state)
    chooser = _CHOOSERS.get(category)
    found = chooser(state, tensor.name) if chooser else state.base
    if category not in _BY_LAYER and state.scheme != "IQ3_XS":  # which tells layers apart in more
        state.settled[category] = found
    return found


_BY_LAYER = ("ffn_down",)
_TINY = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")
_EMBEDDING_TYPES = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}


def _output_type(state: _State, row_length: int) -> str:
    if state.scheme == "MXFP4_MOE" or state.architecture == "falcon":
        return "Q8_0"
    if row_length % BY_NAME[state.base].block_values:
        return "Q8_0"
    if state.scheme in (*_TINY, "IQ3_XXS"):
        return "Q5_K"
    return state.base if state.base == "Q8_0" else "Q6_K"


def _output_replaced(state: _State, tensor: _Entry) -> bool:
    """Tell whether an output tensor silently became Q8_0 since its rows do not divide."""
    is_output = tensor.name == "output.weight" or (
        state.tied and tensor.name == "token_embd.weight"
    )
    wanted = output_type_wanted(SCHEMES[state.scheme], tensor.row_length, state.architecture)
    return is_output and wanted is not None


def _tiny_type(state: _State, category: str) -> str:
    """Return the type under the schemes of about two bits and less."""
    larger = state.scheme in ("IQ2_S", "IQ2_M")
    if category in _VALUES:
        state.count("values")
        if state.heads_per_kv >= 4 or state.experts >= 4:
            return "Q4_K"
        return "IQ3_S" if larger else "Q2_K"
    if category == "attn_k" and state.experts == 8:
        return "Q4_K"
    if category == "ffn_down":
        early = state.count("down") < state.layers // 8
        return ("IQ3_S" if larger else "Q2_K") if early else state.base
    if category == "attn_output":
        if state.experts == 8:
            return "Q5_K"
        if state.scheme in ("IQ1_S", "IQ1_M"):
            return "IQ2_XXS"
        return "IQ3_S" if larger else state.base
    return state.base


def _value_type(state: _State) -> str:
    """Return the type of value (or fused) attention weights: small, and they matter."""
    index = state.count("values")
    asked = _asked_value_type(state, index)
    if state.is_70b and asked in ("Q3_K", "Q4_K"):
        asked = "Q5_K"
    return "Q8_0" if state.experts == 8 else asked


def _asked_value_type(state: _State, index: int) -> str:
    scheme, grouped = state.scheme, state.heads_per_kv >= 4
    if scheme == "Q2_K":
        return "Q4_K" if grouped else "Q3_K"
    if scheme == "IQ3_XXS":
        return "Q4_K" if grouped else "IQ3_XXS" if state.has_imatrix else "IQ3_S"
    if grouped and scheme in ("Q2_K_S", "IQ3_XS", "IQ3_S"):
        return "Q4_K"
    if grouped and scheme in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K"
    if scheme in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(index, state.values_total) else state.base
    if scheme == "Q3_K_M":
        return "Q5_K" if index < 2 else "Q4_K"
    if scheme == "Q4_K_S" and index < 4:
        return "Q5_K"
    return {"IQ3_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(scheme, state.base)


def _key_type(state: _State, name: str) -> str:
    return "Q8_0" if state.experts == 8 else _query_type(state, name)


def _query_type(state: _State, name: str) -> str:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(state.scheme, state.base)


def _layer(state: _State, what: str, name: str) -> int:
    """Return the layer as llama.cpp reckons it: by counting, or by name where experts are."""
    index = state.count(what)
    match = _BLOCK.match(name)
    if state.experts > 1 and match:
        return int(match[1])
    return index


def _down_type(state: _State, name: str) -> str:
    scheme, layers = state.scheme, state.layers
    layer = _layer(state, "down", name)
    early, more = layer < layers // 8, _more_bits(layer, layers)
    falcon = state.architecture == "falcon"
    if scheme == "Q2_K":
        return "Q3_K"
    if scheme == "Q3_K_M":
        if layer < layers // 16:
            return "Q5_K"
        return "Q4_K" if not falcon or more else "Q3_K"
    if scheme == "Q3_K_L":
        return "Q4_K" if falcon else "Q5_K"
    if scheme == "Q4_K_M" and falcon:
        return "Q6_K" if layer < layers // 16 else "Q5_K" if more else "Q4_K"
    if scheme in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if more else state.base
    if scheme == "IQ3_XXS" and not state.has_imatrix:
        return "Q4_K" if early else "Q3_K"
    if scheme == "IQ3_M" and (early or (state.experts == 8 and more)):
        return "Q4_K"
    return _early_down_type(state) if early else state.base


def _early_down_type(state: _State) -> str:
    """Return what the first eighth of the down projections gets under the remaining schemes."""
    scheme = state.scheme
    if scheme == "Q2_K_S":
        return "Q4_K"
    if scheme in ("IQ4_NL", "IQ4_XS") and not state.has_imatrix:
        return "Q5_K"
    if scheme == "Q4_K_S" and state.architecture != "falcon":
        return "Q5_K"
    if scheme in ("Q4_0", "Q5_0") and state.has_imatrix:
        return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[scheme]
    return state.base


_MOE_OUTPUT = (
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S",
    "IQ3_M", "IQ4_XS",
)  # fmt: skip
_ATTENTION_OUTPUT = {
    "Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K",
}  # fmt: skip


def _attention_output_type(state: _State, name: str) -> str:
    if state.architecture == "falcon":
        return "Q4_K" if state.scheme == "Q3_K_L" else state.base
    if state.experts == 8:
        return "Q5_K" if state.scheme in _MOE_OUTPUT else state.base
    return _ATTENTION_OUTPUT.get(state.scheme, state.base)


def _gate_type(state: _State, name: str) -> str:
    return _middle_type(state, _layer(state, "gate", name))


def _up_type(state: _State, name: str) -> str:
    return _middle_type(state, _layer(state, "up", name))


def _middle_type(state: _State, layer: int) -> str:
    middle = state.layers // 8 <= layer < 7 * state.layers // 8
    return "IQ3_XXS" if state.scheme == "IQ3_XS" and middle else state.base


_CHOOSERS: dict[str, Callable[[_State, str], str]] = {
    "attn_k": _key_type,
    "attn_q": _query_type,
    "ffn_down": _down_type,
    "attn_output": _attention_output_type,
    "ffn_gate": _gate_type,
    "ffn_up": _up_type,
}
