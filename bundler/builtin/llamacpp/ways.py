"""Which schemes and mixes are tried for a model, with the types and sizes each one means. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bundler.builtin.llamacpp.allocation.budgets import PREFIX, asked, is_mix
from bundler.builtin.llamacpp.allocation.offered import offered_mixes
from bundler.builtin.llamacpp.allocation.planned import Mix
from bundler.builtin.llamacpp.memory import NO_CACHE
from bundler.builtin.llamacpp.placements import GENERATING
from bundler.builtin.llamacpp.schemes import UNQUANTIZED
from bundler.builtin.llamacpp.sharding import largest_tensor_bytes
from bundler.builtin.llamacpp.types import (
    Inventory,
    TypeChoice,
    choose_types,
    data_section_bytes,
    find_scheme,
    tensors_bytes,
)
from bundler.errors import BundlerError, DoesNotFit, Problem, RecipeError
from bundler.hardware import Target
from bundler.lock import ModelFacts, TensorFact
from bundler.recipe import ModelRequest

AUTO_SCHEMES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M",
                "Q3_K_S", "Q2_K")  # fmt: skip
"""What `auto` tries for chat and code beside the unquantized model. K-quants cover the range;
IQ4_XS fills the gap under Q4_K_S. Below Q2_K models break more often than they help."""
AUTO_SMALL_SCHEMES = ("Q8_0",)
"""What `auto` tries for embedders, rerankers and drafts, whose errors nobody sees."""
# Schemes whose rounding is not guided by an importance matrix (`ggml_quantize_chunk` ignores it).
_UNGUIDED = frozenset({"Q8_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0"}) | UNQUANTIZED
# Tokenizer and settings in a GGUF header: 61 bytes for each token of Llama 3 with its merges, the
# largest of those we know (Qwen2.5: 39, Llama 2: 22).
_HEADER_BYTES_PER_TOKEN = 64
_HEADER_BYTES = 1 << 16
_TENSOR_ENTRY_BYTES = 100
_SHOWN = 6


@dataclass(frozen=True)
class Way:
    """One scheme for one model, before its KV cache is chosen."""

    scheme: str
    guided: bool
    """Whether an importance matrix is made for it."""
    types: Mapping[str, str]
    file_bytes: int
    bits_per_weight: float
    largest_tensor_bytes: int = 0
    mix: Mix | None = None


def ways_of(request: ModelRequest, inventory: Inventory, target: Target) -> list[Way]:
    """Return the schemes to offer with the types each one means for this model."""
    facts = inventory.facts
    schemes = _asked_schemes(request, inventory)
    found: list[Way] = []
    problems: list[Problem] = []
    too_small: DoesNotFit | None = None
    for scheme in schemes:
        guided = _is_guided(request, facts, scheme)
        if is_mix(scheme):
            try:
                found += _mixed_ways(request, inventory, scheme, target, guided=guided)
            except DoesNotFit as error:
                too_small = error
            continue
        choice = choose_types(inventory, scheme, guided)
        if choice.fallbacks and not request.allow_fallback:
            problems.append(_fallback_problem(request, scheme, choice, inventory))
        elif choice.needs_importance_matrix and not guided:
            problems.append(
                Problem(
                    f"llama.cpp makes {scheme} only with an importance matrix",
                    hint='importance_matrix = "auto", or another scheme',
                    key="importance_matrix",
                )
            )
        else:
            bits = tensors_bytes(facts, choice.types) * 8 / facts.parameters
            size, largest = (
                file_bytes(facts, choice.types), largest_tensor_bytes(facts, choice.types),
            )  # fmt: skip
            found.append(Way(scheme, guided, choice.types, size, bits, largest))
    if not found:
        raise RecipeError(problems) if too_small is None else too_small
    return found


def _mixed_ways(
    request: ModelRequest, inventory: Inventory, name: str, target: Target, *, guided: bool
) -> list[Way]:
    facts = inventory.facts
    header = _header_bytes(facts)
    stored = choose_types(inventory, inventory.stored, has_imatrix=False).types
    largest = largest_tensor_bytes(facts, stored)
    return [
        Way(mix.name, guided, mix.types, mix.budget_bytes + header, mix.bits_per_weight,
             min(largest, mix.budget_bytes), mix)
        for mix in offered_mixes(
            request, inventory, name, target, header_bytes=header, guided=guided
        )
    ]  # fmt: skip


def _asked_schemes(request: ModelRequest, inventory: Inventory) -> list[str]:
    if request.quant != ("auto",):
        names = [name.removeprefix(PREFIX) for name in request.quant]
        problems = [problem for name in names for problem in _unknown(name)]
        if problems:
            raise RecipeError(problems)
        return list(dict.fromkeys(names))
    schemes = AUTO_SCHEMES if request.role in GENERATING else AUTO_SMALL_SCHEMES
    return [inventory.stored, *schemes]


def _unknown(name: str) -> Sequence[Problem]:
    try:
        if is_mix(name):
            asked(name)
        else:
            find_scheme(name)
    except BundlerError as error:
        return [replace(problem, key="quant") for problem in error.problems]
    return ()


def _is_guided(request: ModelRequest, facts: ModelFacts, scheme: str) -> bool:
    """Tell whether an importance matrix is worth making. Encoders have none to make it from."""
    return (
        request.importance_matrix == "auto"
        and scheme not in _UNGUIDED
        and facts.architecture not in NO_CACHE
    )


def _fallback_problem(
    request: ModelRequest, scheme: str, choice: TypeChoice, inventory: Inventory
) -> Problem:
    fitting = [name for name in (*AUTO_SCHEMES, "Q5_0", "Q4_0") if _fits_rows(inventory, name)]
    return Problem(
        f"{scheme} cannot be made of {request.source}: {_rows(choice.fallbacks)} do "
        "not divide into its blocks, and llama.cpp would put other types in their place",
        hint=f"quant that fit its rows: {', '.join([inventory.stored, *fitting])}; or accept "
        "the replacements: allow_fallback = true",
        key="quant",
    )


def _rows(tensors: Sequence[TensorFact]) -> str:
    lengths = sorted({tensor.shape[-1] for tensor in tensors})
    names = ", ".join(tensor.name for tensor in tensors[:2])
    more = f" and {len(tensors) - 2} more" if len(tensors) > 2 else ""
    return f"rows of {', '.join(map(str, lengths[:_SHOWN]))} ({names}{more})"


def _fits_rows(inventory: Inventory, scheme: str) -> bool:
    return not choose_types(inventory, scheme, has_imatrix=True).fallbacks


def file_bytes(facts: ModelFacts, types: Mapping[str, str]) -> int:
    """Return the size of the finished file: its tensors exactly, its header as at most."""
    return data_section_bytes(facts, types) + _header_bytes(facts)


def _header_bytes(facts: ModelFacts) -> int:
    return (
        _HEADER_BYTES
        + facts.vocabulary * _HEADER_BYTES_PER_TOKEN
        + len(facts.tensors) * _TENSOR_ENTRY_BYTES
    )
