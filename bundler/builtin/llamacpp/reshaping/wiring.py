"""Who reads and who writes what in a model: the places where a channel may be scaled or rotated. Pure.

Only architectures whose graph was read (`src/models/*.cpp` of llama.cpp 0c1e57098) are known here,
and every tensor of the file must have its place: one that is not understood stops the whole, because
a function is preserved only when all that touches a channel takes part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from bundler.errors import Problem, RecipeError
from bundler.weights.gguf import GgufArray, GgufHeader

ARCHITECTURES = {
    "llama": "Llama, Mistral, Mixtral and what is built like them",
    "qwen2": "Qwen 2 and 2.5",
    "qwen2moe": "Qwen 1.5 and 2 MoE",
    "qwen3": "Qwen 3",
    "qwen3moe": "Qwen 3 MoE",
    "phi3": "Phi 3 and 4",
}
"""Those whose norms are RMSNorm before each half of a block, and whose feed-forward is gated."""
_FLOATS = ("F32", "F16", "BF16")
_SHOWN = 6
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")

_ATTENTION_READERS = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight")
_FEED_FORWARD_READERS = (
    "ffn_gate.weight", "ffn_up.weight", "ffn_gate_inp.weight", "ffn_gate_exps.weight",
    "ffn_up_exps.weight", "ffn_gate_inp_shexp.weight", "ffn_gate_shexp.weight",
    "ffn_up_shexp.weight",
)  # fmt: skip
_WRITERS = (
    "attn_output.weight", "attn_output.bias", "ffn_down.weight", "ffn_down.bias",
    "ffn_down_exps.weight", "ffn_down_shexp.weight",
)  # fmt: skip
_NORMS = ("attn_norm.weight", "ffn_norm.weight")
# These see a head or a unit, never a channel of the residual stream.
_APART = (
    "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias", "attn_q_norm.weight",
    "attn_k_norm.weight", "ffn_gate.bias", "ffn_up.bias", "rope_freqs.weight",
    "rope_factors_long.weight", "rope_factors_short.weight", "attn_rot_embd.weight",
)  # fmt: skip
_IN_BLOCK = frozenset((*_ATTENTION_READERS, *_FEED_FORWARD_READERS, *_WRITERS, *_NORMS, *_APART))
_OUTSIDE = frozenset({
    "token_embd.weight", "output_norm.weight", "output.weight", "output.bias", "rope_freqs.weight",
    "rope_factors_long.weight", "rope_factors_short.weight",
})  # fmt: skip
_REASONS = (
    (re.compile(r"post_attention_norm|post_ffw_norm|attn_post_norm|ffn_post_norm"),
     "a norm behind the attention or the feed-forward (a sandwich): its gain stands between a writer "
     "and the residual stream and cannot be moved"),
    (re.compile(r"norm\.bias$"), "LayerNorm: it takes the mean away, which no rotation leaves alone"),
    (re.compile(r"attn_sub_norm|ffn_sub_norm"), "a norm in front of a writer"),
    (re.compile(r"nextn|mtp|eh_proj|enorm|hnorm"),
     "a head that predicts several tokens and reads the same stream"),
    (re.compile(r"per_layer|laurel|altup"), "embeddings or paths of their own in each layer"),
    (re.compile(r"^cls|pooler"), "a head whose result is the hidden state"),
    (re.compile(r"ssm_|time_mix|channel_mix|shortconv"), "a recurrent layer"),
    (re.compile(r"gate_up_projection|gated_norm|norm_gate"), "a gated normalization"),
    (re.compile(r"^(v|mm|a)\."), "a projector inside the file"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a tensor: all of them, or those of one part of a fused one."""

    tensor: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Site:
    """One place where channels can be scaled: what divides them, and what multiplies them again."""

    name: str
    kind: Literal["norm", "up", "value"]
    divided: Rows
    """A norm's gain, or the rows that make the channels."""
    readers: tuple[str, ...]
    channels: int
    experts: int = 1
    """How many matrices both sides are made of, each with channels of its own."""
    groups: int = 1
    """How many heads of the reader share a channel (grouped queries)."""
    head: int = 0
    """Size of a head where channels belong to heads."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """A model's tensors by what they do to the residual stream."""

    architecture: str
    hidden: int
    head: int
    """Size of a value head."""
    shapes: Mapping[str, tuple[int, ...]]
    norms: Mapping[str, tuple[str, ...]]
    """A norm's gain → the matrices that read behind it."""
    writers: tuple[str, ...]
    """Matrices (and biases) whose rows are channels of the residual stream."""
    values: tuple[tuple[Rows, tuple[Rows, ...], str], ...]
    """Of each layer: the rows that make values, their biases, and the matrix that reads them."""
    sites: tuple[Site, ...]
    tied: bool
    """Whether the output matrix is the embedding."""


def wiring_of(header: GgufHeader, where: str = "model.gguf") -> Wiring:
    """Return a model's wiring.

    Raises:
        RecipeError: it cannot be scaled or rotated; every reason is given.
    """
    reasons = refusals(header)
    if reasons:
        raise RecipeError([Problem(f"cannot be reshaped: {reason}", where) for reason in reasons])
    return _wired(header)


def refusals(header: GgufHeader) -> tuple[str, ...]:
    """Return why a model cannot be scaled or rotated; empty where it can."""
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        return (f"its architecture is {str(architecture)[:40]!r}; known are {known}",)
    reasons = [*_key_refusals(header, str(architecture)), *_tensor_refusals(header)]
    return tuple(reasons) or tuple(_shape_refusals(header, str(architecture)))


def _key_refusals(header: GgufHeader, architecture: str) -> Iterable[str]:
    keys = header.metadata
    if keys.get("general.type", "model") != "model":
        yield f"the file is of type {str(keys['general.type'])[:40]!r}, not a model"
    if (
        f"{architecture}.pooling_type" in keys
        or keys.get(f"{architecture}.attention.causal") is False
    ):
        yield "it is an embedding model: the hidden state itself is its result"
    if keys.get(f"{architecture}.nextn_predict_layers", 0):
        yield "a head that predicts several tokens and reads the same stream"
    if keys.get("split.count", 1) not in (0, 1):
        yield "it is one shard of several: join them first"
    for name in ("head_count", "head_count_kv"):
        value = keys.get(f"{architecture}.attention.{name}", 0)
        if isinstance(value, GgufArray) and len(set(value)) > 1:
            yield "its layers have different numbers of heads"


def _tensor_refusals(header: GgufHeader) -> Iterable[str]:
    strange: dict[str, list[str]] = {}
    for tensor in header.tensors:
        block = _BLOCK.fullmatch(tensor.name)
        known = block[2] in _IN_BLOCK if block else tensor.name in _OUTSIDE
        if not known:
            strange.setdefault(_reason(tensor.name), []).append(tensor.name)
    for reason, names in strange.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{reason} ({names[0]}{more})"
    quantized = sorted({t.type for t in header.tensors if t.type not in _FLOATS})
    if quantized:
        yield (
            f"its weights are quantized ({', '.join(quantized[:_SHOWN])}): reshape the model as it was "
            "published, then quantize"
        )


def _reason(name: str) -> str:
    for pattern, reason in _REASONS:
        if pattern.search(name):
            return reason
    return "tensors that are not understood"


def _numbers(header: GgufHeader, architecture: str, name: str, default: int) -> int:
    value = header.metadata.get(f"{architecture}.attention.{name}", default)
    if isinstance(value, GgufArray):
        value = next(iter(value), default)
    return value if isinstance(value, int) else default


def _shape_refusals(header: GgufHeader, architecture: str) -> Iterable[str]:
    """Hold the tensors to the sizes that the changes take for granted."""
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    missing = [n for n in ("token_embd.weight", "output_norm.weight") if n not in shapes]
    if missing:
        yield f"it has no {missing[0]}"
        return
    hidden = shapes["token_embd.weight"][-1]
    heads = _numbers(header, architecture, "head_count", 0)
    kv_heads = _numbers(header, architecture, "head_count_kv", heads)
    for number in _layers(shapes):
        at = f"blk.{number}."
        wrong = _layer_problem(shapes, at, hidden, heads, kv_heads)
        if wrong:
            yield f"layer {number} is not built as expected: {wrong}"
            return


def _layer_problem(
    shapes: Mapping[str, tuple[int, ...]], at: str, hidden: int, heads: int, kv_heads: int
) -> str:
    """Return what is wrong with a layer's tensors, or nothing."""
    needed = [f"{at}{name}" for name in (*_NORMS, "attn_output.weight")]
    absent = [name for name in needed if name not in shapes]
    if absent:
        return f"there is no {absent[0]}"
    if any(shapes[f"{at}{name}"] != (hidden,) for name in _NORMS):
        return f"a norm has not the {hidden} channels of the stream"
    columns = shapes[f"{at}attn_output.weight"][-1]
    if not heads or not kv_heads or heads % kv_heads or columns % heads:
        return f"{heads} heads and {kv_heads} of keys do not divide {columns} columns"
    if not any(f"{at}{name}" in shapes for name in ("attn_v.weight", "attn_qkv.weight")):
        return "there is no matrix that makes values"
    head = columns // heads
    value = shapes.get(f"{at}attn_v.weight")
    if value is not None and value[0] != kv_heads * head:
        return f"attn_v has {value[0]} rows, not {kv_heads} heads of {head}"
    fused = shapes.get(f"{at}attn_qkv.weight")
    if fused is not None and fused[0] != (heads + 2 * kv_heads) * head:
        return f"attn_qkv has {fused[0]} rows, not {heads} + 2 x {kv_heads} heads of {head}"
    return ""


def _layers(shapes: Mapping[str, object]) -> list[int]:
    found = {int(match[1]) for name in shapes if (match := _BLOCK.fullmatch(name))}
    return sorted(found)


def _wired(header: GgufHeader) -> Wiring:
    architecture = str(header.metadata["general.architecture"])
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    heads = _numbers(header, architecture, "head_count", 0)
    kv_heads = _numbers(header, architecture, "head_count_kv", heads)
    layers = _layers(shapes)
    head = shapes[f"blk.{layers[0]}.attn_output.weight"][-1] // heads
    tied = "output.weight" not in shapes
    norms: dict[str, tuple[str, ...]] = {}
    for number in layers:
        at = f"blk.{number}."
        norms[f"{at}attn_norm.weight"] = _there(shapes, at, _ATTENTION_READERS)
        norms[f"{at}ffn_norm.weight"] = _there(shapes, at, _FEED_FORWARD_READERS)
    norms["output_norm.weight"] = () if tied else ("output.weight",)
    values = tuple(_values(shapes, f"blk.{n}.", heads, kv_heads, head) for n in layers)
    return Wiring(
        architecture=architecture,
        hidden=shapes["token_embd.weight"][-1],
        head=head,
        shapes=shapes,
        norms=norms,
        writers=tuple(name for n in layers for name in _there(shapes, f"blk.{n}.", _WRITERS)),
        values=values,
        sites=(
            *(_norm_site(shapes, norm, readers) for norm, readers in norms.items() if readers),
            *(site for n in layers for site in _up_sites(shapes, f"blk.{n}.")),
            *(_value_site(made, reader, heads, kv_heads, head) for made, _, reader in values),
        ),
        tied=tied,
    )


def _there(shapes: Mapping[str, object], at: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{at}{name}" for name in names if f"{at}{name}" in shapes)


def _values(
    shapes: Mapping[str, tuple[int, ...]], at: str, heads: int, kv_heads: int, head: int
) -> tuple[Rows, tuple[Rows, ...], str]:
    fused = f"{at}attn_qkv" if f"{at}attn_qkv.weight" in shapes else ""
    stem, first = (fused, (heads + kv_heads) * head) if fused else (f"{at}attn_v", 0)
    rows = Rows(f"{stem}.weight", first, kv_heads * head)
    bias = f"{stem}.bias"
    biases = (Rows(bias, first, kv_heads * head),) if bias in shapes else ()
    return rows, biases, f"{at}attn_output.weight"


def _norm_site(shapes: Mapping[str, tuple[int, ...]], norm: str, readers: tuple[str, ...]) -> Site:
    channels = prod(shapes[norm])
    return Site(norm, "norm", Rows(norm, 0, channels), readers, channels)


def _up_sites(shapes: Mapping[str, tuple[int, ...]], at: str) -> Iterable[Site]:
    """Give the feed-forward's inner channels: they are a product with the gate, so `up` may be scaled."""
    for suffix in ("", "_exps", "_shexp"):
        up, down = f"{at}ffn_up{suffix}.weight", f"{at}ffn_down{suffix}.weight"
        if up in shapes and down in shapes:
            wide = shapes[down][-1]
            rows = shapes[up][-2]
            experts = prod(shapes[down][:-2])
            gated = f"{at}ffn_gate{suffix}.weight" in shapes
            # Without a gate of its own the tensor holds gate and up, in this order (ggml_swiglu).
            if rows == (wide if gated else 2 * wide):
                yield Site(down, "up", Rows(up, rows - wide, wide), (down,), wide, experts)


def _value_site(made: Rows, reader: str, heads: int, kv_heads: int, head: int) -> Site:
    return Site(
        reader, "value", made, (reader,), kv_heads * head, groups=heads // kv_heads, head=head
    )
