"""The two things that the same bytes could be spent on without measuring: what a mix is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from bundler.builtin.llamacpp.allocation.candidates import (
    NARROW_TYPES,
    WIDE_TYPES,
    file_bytes,
)
from bundler.builtin.llamacpp.allocation.damages import Costs
from bundler.builtin.llamacpp.allocation.record import Control
from bundler.builtin.llamacpp.quantize_plan import decide
from bundler.builtin.llamacpp.quantizer import Importance, Request
from bundler.builtin.llamacpp.schemes import SCHEMES, UNQUANTIZED, Scheme, needs_importance
from bundler.weights.ggml_types import BY_NAME
from bundler.weights.gguf import GgufHeader

_TRIED = tuple(
    name for name in SCHEMES
    if name not in UNQUANTIZED and not name.startswith(("Q1", "Q2_0", "TQ", "MXFP4", "IQ1"))
)  # fmt: skip
"""llama.cpp's own mixes; not those for models that were trained for them."""


def controls_for(
    header: GgufHeader, request: Request, importance: Importance | None, costs: Costs,
    budget_bytes: int,
) -> tuple[Control, ...]:  # fmt: skip
    """Return the largest of llama.cpp's mixes and the largest uniform type within the budget.

    Fewer where none fits: a budget can be below all of them.
    """
    found = (
        stock_mix(header, request, importance, costs, budget_bytes),
        uniform_mix(header, costs, budget_bytes),
    )
    return tuple(control for control in found if control is not None)


def stock_mix(
    header: GgufHeader, request: Request, importance: Importance | None, costs: Costs,
    budget_bytes: int,
) -> Control | None:  # fmt: skip
    """Return llama.cpp's own mix of the most bytes within the budget."""
    found = [
        control
        for control in stock_mixes(header, request, importance, costs)
        if control.size_bytes <= budget_bytes
    ]
    return max(found, key=lambda control: (control.size_bytes, control.name), default=None)


def stock_mixes(
    header: GgufHeader, request: Request, importance: Importance | None, costs: Costs
) -> Iterator[Control]:
    """Give every mix of llama.cpp that it can make of this model without putting in other types."""
    for name in _TRIED:
        scheme = SCHEMES[name]
        decision = decide(header, replace(request, scheme=scheme, overrides=()), importance)
        if decision.fallbacks or _refused(decision.types, scheme, importance):
            continue
        yield Control(
            kind="llama.cpp", name=name, scheme=name, overrides={},
            size_bytes=data_bytes(header, decision.types),
            predicted_damage=_damage(decision.types, costs),
        )  # fmt: skip


def _refused(types: Mapping[str, str], scheme: Scheme, importance: Importance | None) -> bool:
    given = importance or {}
    return any(
        tensor not in given and needs_importance(tensor, kind, scheme)
        for tensor, kind in types.items()
    )


def uniform_mix(header: GgufHeader, costs: Costs, budget_bytes: int) -> Control | None:
    """Return the mix of one type for all tensors, of the most bytes within the budget."""
    found = [_uniform(header, costs, name) for name in (*WIDE_TYPES, *NARROW_TYPES)]
    fitting = [control for control in found if control.size_bytes <= budget_bytes]
    return max(fitting, key=lambda control: (control.size_bytes, control.name), default=None)


def _uniform(header: GgufHeader, costs: Costs, wide: str) -> Control:
    """Give every open tensor one type; where it cannot be had, the next larger one that can."""
    stored = {tensor.name: tensor.type for tensor in header.tensors}
    chosen = {name: _nearest(options, wide, stored[name]) for name, options in costs.items()}
    types = {**stored, **chosen}
    return Control(
        kind="uniform", name=wide, scheme="Q4_K_M", overrides=chosen,
        size_bytes=data_bytes(header, types), predicted_damage=_damage(types, costs),
    )  # fmt: skip


def _nearest(options: Mapping[str, object], wide: str, stored: str) -> str:
    """Return a type, or the next larger one where rows or a missing entry rule it out."""
    if wide in options:
        return wide
    larger = [kind for kind in options if kind not in UNQUANTIZED and _bits(kind) >= _bits(wide)]
    return min(larger, key=_bits, default=stored)


def _bits(type_name: str) -> float:
    kind = BY_NAME[type_name]
    return kind.block_bytes * 8 / kind.block_values


def _damage(types: Mapping[str, str], costs: Costs) -> float | None:
    parts = [options.get(types[name]) for name, options in costs.items()]
    if any(part is None for part in parts):
        return None
    return sum(part[1] for part in parts if part is not None)


def data_bytes(header: GgufHeader, types: Mapping[str, str]) -> int:
    """Return the size of a file's data section with tensors of these types."""
    return sum(file_bytes(types[tensor.name], tensor.shape) for tensor in header.tensors)
