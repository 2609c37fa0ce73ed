"""Whether a model's norms have gates, read from its configuration and the names of its tensors. Pure.

GatedNorm: `y = RMSNorm(x)`, then `y * sigmoid(up(silu(down(y))))` with a narrow `down` (rank 16);
ZeroCenteredGatedNorm multiplies by twice that and has gains around zero; PreAffine multiplies `x` by
a learned vector before the norm (Qiu et al., arXiv 2601.22966). All of them come from training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from bundler.inspection import GatedNorm

_Kind = Literal["GatedNorm", "ZeroCenteredGatedNorm", "PreAffine", "output gate"]
_NOT_HERE = (
    "It was trained with the model to do without outliers, so four bits cost it little. The llama.cpp "
    "that this bundler is made for has no such norm: it cannot run this model, and leaving the gates "
    "out would be another model."
)
_WORDS: Mapping[_Kind, str] = {
    "GatedNorm": f"Each norm is followed by a learned gate. {_NOT_HERE}",
    "ZeroCenteredGatedNorm": f"Each norm has gains around zero and a learned gate behind it. {_NOT_HERE}",
    "PreAffine": f"A learned vector scales what goes into each norm. {_NOT_HERE}",
    "output gate": "The attention's output goes through a learned gate, which is the same remedy for "
    "attention sinks at another place. llama.cpp runs it; it is not a gated norm.",
}  # fmt: skip
_NORM_TYPES = ("norm_type", "normalization_type", "layernorm_type", "norm_class")
_FLAGS: Mapping[str, _Kind] = {
    "gated_norm": "GatedNorm", "use_gated_norm": "GatedNorm", "gated_rmsnorm": "GatedNorm",
    "gated_norm_rank": "GatedNorm", "layernorm_gating_weight": "ZeroCenteredGatedNorm",
    "pre_affine": "PreAffine", "use_pre_affine": "PreAffine", "attn_output_gate": "output gate",
}  # fmt: skip
_TENSORS: tuple[tuple[re.Pattern[str], _Kind], ...] = (
    (re.compile(r"norm[^/]*\.gate_(?:up|down)_projection\.weight$"), "GatedNorm"),
    (
        re.compile(r"norm[^/]*\.(?:gate_(?:up|down)|w_(?:up|down)|down_proj|up_proj)\.weight$"),
        "GatedNorm",
    ),
    (re.compile(r"norm_gate_(?:up|down)\.weight$"), "GatedNorm"),
    (re.compile(r"norm[^/]*\.(?:pre_affine|lambda|pre_scale)(?:\.weight)?$"), "PreAffine"),
)
_LONGEST = 200


def gated_norms(config: Mapping[str, Any], tensors: Iterable[str]) -> tuple[GatedNorm, ...]:
    """Return the gates that a model's configuration (or GGUF fields) and tensors tell of."""
    found: dict[_Kind, str] = {}
    for key, value in config.items():
        kind = _of_key(key.rpartition(".")[2], value)
        if kind:
            found.setdefault(kind, f"{key} = {value!r}"[:_LONGEST])
    for name in tensors:
        for pattern, kind in _TENSORS:
            # The zero-centred kind has the same tensors; only its configuration tells.
            if pattern.search(name) and not (
                kind == "GatedNorm" and "ZeroCenteredGatedNorm" in found
            ):
                found.setdefault(kind, f"the tensor {name}"[:_LONGEST])
    return tuple(
        GatedNorm(kind=kind, evidence=evidence, words=_WORDS[kind])
        for kind, evidence in found.items()
    )


def _of_key(key: str, value: Any) -> _Kind | None:
    if key in _NORM_TYPES and isinstance(value, str):
        flat = value.lower().replace("_", "").replace("-", "")
        if "gatednorm" in flat or "gatedrmsnorm" in flat:
            return "ZeroCenteredGatedNorm" if "zerocent" in flat else "GatedNorm"
        return "PreAffine" if "preaffine" in flat else None
    # A flag that says no, or a rank of none, is not there.
    return _FLAGS.get(key) if value else None
