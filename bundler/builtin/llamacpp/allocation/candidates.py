"""The types a tensor may get, and what each would take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bundler.builtin.llamacpp.schemes import SCHEMES, UNQUANTIZED, needs_importance
from bundler.builtin.llamacpp.types import quantizable, stored_bytes
from bundler.lock import TensorFact
from bundler.weights.ggml_types import BY_NAME

WIDE_TYPES = (
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K",
    "Q6_K", "Q8_0",
)  # fmt: skip
"""For rows that are a multiple of 256, smallest first."""
NARROW_TYPES = ("IQ4_NL", "Q5_0", "Q5_1", "Q8_0")
"""For other rows that are a multiple of 32."""
SLOW_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S")
"""Rounded by a search that takes one to two seconds per million weights and core: ten to twenty times
as long as Q2_K. They are tried only where the budget leaves little else."""
SLOW_BELOW_BITS = 3.6
"""At more bits per weight than this no tensor was seen to want one of them."""
ALIGNMENT_BYTES = 32
"""Of a GGUF file's tensors when its header names no other."""


# llama.cpp lets embeddings and outputs pass without an entry, and ggml then aborts at some of these
# types (`ggml_quantize_requires_imatrix`): none of them is tried without one, whatever the tensor.
_BASE = SCHEMES["Q4_K_M"]


class Choice(NamedTuple):
    """One type that one tensor may get."""

    type: str
    size_bytes: int
    """In the file, padded."""


def candidate_types(bits_per_weight: float | None = None) -> tuple[str, ...]:
    """Return the types worth trying at a budget; all of them where there is none."""
    slow = bits_per_weight is None or bits_per_weight < SLOW_BELOW_BITS
    wide = WIDE_TYPES if slow else tuple(name for name in WIDE_TYPES if name not in SLOW_TYPES)
    return tuple(dict.fromkeys((*wide, *NARROW_TYPES)))


def choices_of(
    tensor: TensorFact, stored: str, types: Iterable[str], *, guided: bool
) -> tuple[Choice, ...]:
    """Return what a tensor may become, smallest first; what it is stored as is always among it.

    A type that its rows cannot hold is no choice: nothing is ever put in its place. Nor is one that
    llama.cpp makes only with an importance matrix, where there is no entry (`guided`).
    """
    row = tensor.shape[-1]
    wide = row % 256 == 0
    fitting = [
        name
        for name in types
        if row % BY_NAME[name].block_values == 0
        and name in (WIDE_TYPES if wide else NARROW_TYPES)
        and (guided or not needs_importance("", name, _BASE))
    ]
    found = [Choice(name, file_bytes(name, tensor.shape)) for name in (*fitting, stored)]
    return tuple(sorted(dict.fromkeys(found), key=lambda choice: (choice.size_bytes, choice.type)))


def file_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Return what a tensor takes in a file, padding included."""
    return -(-stored_bytes(type_name, shape) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def free_tensors(tensors: Iterable[TensorFact]) -> Iterator[TensorFact]:
    """Give the tensors whose type is open: those that llama.cpp quantizes and stores as floats."""
    for tensor in tensors:
        if quantizable(tensor) and tensor.type in UNQUANTIZED:
            yield tensor


def all_choices(
    tensors: Iterable[TensorFact], types: Iterable[str], guided: Mapping[str, object] | None
) -> dict[str, tuple[Choice, ...]]:
    """Return the choices of every free tensor; `guided` names those with an importance entry."""
    names = tuple(types)
    return {
        tensor.name: choices_of(
            tensor, tensor.type, names, guided=guided is not None and tensor.name in guided
        )
        for tensor in free_tensors(tensors)
    }
