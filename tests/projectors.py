"""Projectors made from numbers, as GGUF files: real ones, and such with headers only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field

_NUMBERS = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class Lens:
    """Sizes of a projector."""

    kind: str = "mlp"
    layers: int = 3
    hidden: int = 64
    heads: int = 4
    feed_forward: int = 96
    patch: int = 14
    image: int = 56
    projected: int = 256
    type_: str = "F16"
    window_every: int = 0
    scale: int = 2
    swapped: bool = False
    """Whether up and down are the other way round, as old files have them."""
    class_token: bool = True
    post_norm: bool = False


def fields_of(lens: Lens) -> dict[str, GgufField]:
    numbers = {
        "image_size": lens.image, "patch_size": lens.patch, "block_count": lens.layers,
        "embedding_length": lens.hidden, "attention.head_count": lens.heads,
        "projection_dim": lens.projected, "feed_forward_length": lens.feed_forward,
    }  # fmt: skip
    if lens.window_every:
        numbers["n_wa_pattern"] = lens.window_every
    if lens.kind == "gemma3":
        numbers["projector.scale_factor"] = lens.scale
    return {
        "general.architecture": field("STRING", "clip"),
        "clip.projector_type": field("STRING", lens.kind),
        "clip.has_vision_encoder": field("BOOL", True),
        "clip.use_gelu": field("BOOL", True),
        **{f"clip.vision.{name}": field("UINT32", value) for name, value in numbers.items()},
        "clip.vision.attention.layer_norm_epsilon": field("FLOAT32", 1e-6),
        "clip.vision.image_mean": _floats(0.5),
        "clip.vision.image_std": _floats(0.5),
    }


def _floats(value: float) -> GgufField:
    return field("FLOAT32", [value] * 3)


def plans_of(lens: Lens) -> list[TensorPlan]:
    hidden, wide, out = lens.hidden, lens.feed_forward, lens.projected
    qwen = lens.kind.startswith("qwen")
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (hidden, 3, lens.patch, lens.patch)
    }
    count = (lens.image // lens.patch) ** 2
    if qwen:
        shapes["v.patch_embd.weight.1"] = (hidden, 3, lens.patch, lens.patch)
    else:
        shapes["v.patch_embd.bias"] = (hidden,)
        extra = lens.kind == "mlp" and lens.class_token
        shapes["v.position_embd.weight"] = (count + extra, hidden)
        if extra:
            shapes["v.class_embd"] = (hidden,)
            shapes |= {"v.pre_ln.weight": (hidden,), "v.pre_ln.bias": (hidden,)}
    if qwen or lens.kind == "gemma3" or lens.post_norm:
        shapes["v.post_ln.weight"] = (hidden,)
        if not lens.window_every:
            shapes["v.post_ln.bias"] = (hidden,)
    for number in range(lens.layers):
        name = f"v.blk.{number}"
        for part in ("ln1", "ln2"):
            shapes[f"{name}.{part}.weight"] = (hidden,)
            if not lens.window_every:
                shapes[f"{name}.{part}.bias"] = (hidden,)
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes |= {f"{name}.{part}.weight": (hidden, hidden), f"{name}.{part}.bias": (hidden,)}
        up, down = ("ffn_down", "ffn_up") if lens.swapped else ("ffn_up", "ffn_down")
        shapes |= {f"{name}.{up}.weight": (wide, hidden), f"{name}.{up}.bias": (wide,)}
        shapes |= {f"{name}.{down}.weight": (hidden, wide), f"{name}.{down}.bias": (hidden,)}
        if lens.window_every:
            shapes |= {f"{name}.ffn_gate.weight": (wide, hidden),
                       f"{name}.ffn_gate.bias": (wide,)}  # fmt: skip
    if lens.kind == "gemma3":
        shapes |= {
            "mm.input_projection.weight": (hidden, out),
            "mm.soft_emb_norm.weight": (hidden,),
        }
    elif qwen:
        shapes |= {"mm.0.weight": (hidden * 4, hidden * 4), "mm.0.bias": (hidden * 4,),
                   "mm.2.weight": (out, hidden * 4), "mm.2.bias": (out,)}  # fmt: skip
    else:
        shapes |= {"mm.0.weight": (out, hidden), "mm.0.bias": (out,),
                   "mm.2.weight": (out, out), "mm.2.bias": (out,)}  # fmt: skip
    return [
        TensorPlan(name, lens.type_ if len(shape) > 1 and name != "v.position_embd.weight" else "F32",
                   shape)
        for name, shape in shapes.items()
    ]  # fmt: skip


def write_projector(path: Path, lens: Lens, *, seed: int | None = None, **more: GgufField) -> Path:
    """Write a projector; with a hole for its weights where no `seed` makes numbers."""
    plans = plans_of(lens)
    header = encode_header({**fields_of(lens), **more}, plans)
    sizes = [(plan.size_bytes + 31) // 32 * 32 for plan in plans]
    path.write_bytes(header)
    if seed is None:
        os.truncate(path, len(header) + sum(sizes))
        return path
    rng = np.random.default_rng(seed)
    with path.open("ab") as stream:
        for plan, size in zip(plans, sizes, strict=True):
            numbers = rng.standard_normal(plan.shape, dtype=np.float32) * np.float32(0.05)
            stream.write(numbers.astype(_NUMBERS[plan.type]).tobytes().ljust(size, b"\0"))
    return path
