"""Which tensor goes where, as what, and how its bytes are turned: planning without reading data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from bundler.builtin.llamacpp.convert.checkpoint import StoredTensor
from bundler.errors import Problem, UnsafeInput
from bundler.weights import TensorPlan

if TYPE_CHECKING:
    import numpy as np

READABLE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Stored types a weight may have, and bytes per value."""

_ALWAYS_F32 = re.compile(r"(position_embd|token_types)\.weight")
"""Kept exact whatever the output type (`prepare_tensors` in `conversion/base.py`)."""

_SKIPPED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
"""Buffers that old checkpoints stored among their weights."""


@dataclass(frozen=True)
class Reorder:
    """Rows of each head, stored as two halves, are to be interleaved."""

    head_rows: int

    def __call__(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Turn whole heads, rows first."""
        halves = array.reshape(-1, 2, self.head_rows // 2, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the GGUF file."""

    plan: TensorPlan
    source: StoredTensor | None
    """Where its values come from; None when they are `values`."""
    reorder: Reorder | None = None
    values: tuple[float, ...] = ()


def stored_type(tensors: Sequence[StoredTensor]) -> str:
    """Return what `auto` means: the first half-precision type among matrices, else F16."""
    return next((t.type for t in tensors if len(t.shape) > 1 and t.type in ("BF16", "F16")), "F16")


def output_type(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """Return the type a tensor is written as when most of the file is `wanted`."""
    exact = len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight")
    return "F32" if exact or _ALWAYS_F32.fullmatch(name) else wanted


class NameMap:
    """Published tensor names → llama.cpp's, by patterns in which `{n}` is the layer."""

    def __init__(
        self, names: Mapping[str, str], *, prefix: str = "", ignored: Sequence[str] = ()
    ) -> None:
        self._names = dict(names)
        self._prefix = prefix
        self._ignored = tuple(re.compile(pattern) for pattern in ignored)

    def rename(self, name: str, layers: int) -> str | None:
        """Return llama.cpp's name; None for a tensor that is left out.

        Raises KeyError for an unknown name or a layer that the config does not have.
        """
        if name.endswith(_SKIPPED) or any(pattern.match(name) for pattern in self._ignored):
            return None
        base, dot, suffix = name.removeprefix(self._prefix).rpartition(".")
        found = re.search(r"(?:^|\.)(0|[1-9]\d{0,5})(?=\.|$)", base)
        pattern = base
        if found is not None:
            if int(found[1]) >= layers:
                raise KeyError(name)
            pattern = base[: found.start(1)] + "{n}" + base[found.end(1) :]
        if suffix not in ("weight", "bias"):
            raise KeyError(name)
        mapped = self._names[pattern]
        return mapped.replace("{n}", found[1] if found else "") + dot + suffix


def rename_all(
    tensors: Sequence[StoredTensor], rename: Callable[[str], str | None]
) -> list[tuple[str, StoredTensor]]:
    """Pair each tensor that is kept with its new name. Raises UnsafeInput naming all problems."""
    problems: list[Problem] = []
    result: list[tuple[str, StoredTensor]] = []
    for tensor in tensors:
        try:
            name = rename(tensor.name)
        except KeyError:
            problems.append(
                Problem(f"tensor {tensor.name!r} is not part of this model", tensor.file)
            )
            continue
        if name is None:
            continue
        if tensor.type not in READABLE:
            problems.append(
                Problem(f"tensor {tensor.name!r} is stored as {tensor.type}", tensor.file)
            )
        result.append((name, tensor))
    counts = Counter(name for name, _ in result)
    problems += [
        Problem(f"{count} tensors become {name!r}") for name, count in counts.items() if count > 1
    ]
    if problems:
        raise UnsafeInput(problems[:20])
    return result


def main_type(tensors: Sequence[OutputTensor], wanted: str) -> str:
    """Return the type that most of the file is written as."""
    if wanted != "auto":
        return wanted.upper()
    return stored_type([tensor.source for tensor in tensors if tensor.source is not None])


def count_values(tensors: Sequence[OutputTensor]) -> int:
    """Return how many values all tensors have together."""
    return sum(prod(tensor.plan.shape) for tensor in tensors)
