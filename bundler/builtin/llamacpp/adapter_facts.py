"""Facts of a LoRA adapter from its GGUF header, held against the model that it is for.

What `llama_adapter_lora_init_impl` (src/llama-adapter.cpp) would refuse is refused here, where the
base model need not be loaded; so is what it takes and then aborts on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from bundler.errors import Problem, UnsafeInput
from bundler.lock import AdapterFacts, LockedFile, ModelFacts, Resolution, TensorFact

if TYPE_CHECKING:
    from bundler.weights import GgufHeader

MAX_RANK = 4096
"""Ranks in use end at 512; beyond the width of a model an adapter saves nothing."""
MAX_ALPHA = 1e6
_SHOWN = 6
_EMBEDDINGS = "token_embd.weight"
_CONVERT = (
    "convert it with llama.cpp's convert_lora_to_gguf.py (--base BASE ADAPTER), or name a GGUF file"
)


class Pair(NamedTuple):
    """The two thin matrices that change one of the model's, as (rows, columns)."""

    down: TensorFact
    up: TensorFact


def only_gguf(resolution: Resolution, what: str, hint: str) -> LockedFile:
    """Return the one GGUF file of a source. Raises UnsafeInput."""
    found = [file for file in resolution.files if file.path.lower().endswith(".gguf")]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(file.path for file in found)[:_SHOWN])
    raise UnsafeInput(
        f"{len(found)} GGUF files ({names}) where one {what} is wanted" if found
        else f"there is no GGUF file of {what} in it",
        where=resolution.reference,
        hint="name one of them with `include`" if found else hint,
    )  # fmt: skip


def adapter_facts(
    resolution: Resolution, read: Callable[[LockedFile, int, int], bytes], base: ModelFacts
) -> AdapterFacts:
    """Read an adapter's header. Raises UnsafeInput for all that does not fit, at once."""
    file = only_gguf(resolution, "a LoRA adapter", _CONVERT)
    from bundler.weights import read_gguf_header

    header = read_gguf_header(
        lambda start, length: read(file, start, length), file.size_bytes, where=file.path
    )
    problems = _kind_problems(header, base)
    if not problems:
        problems = _tensor_problems(header, base)
    if problems:
        raise UnsafeInput([Problem(p, file.path, _HINT) for p in problems])
    return AdapterFacts(
        architecture=base.architecture,
        alpha=float(str(header.metadata.get("adapter.lora.alpha", 0.0))),
        tensors=tuple(
            TensorFact(name=t.name, type=t.type, shape=t.shape)
            for t in header.tensors
            if t.name.endswith((".lora_a", ".lora_b"))
        ),
    )


_HINT = "take an adapter that was made for this very model"


def _kind_problems(header: GgufHeader, base: ModelFacts) -> list[str]:
    found = header.metadata
    problems = [
        f"{key} is {str(found.get(key, 'missing'))[:40]!r}, not {wanted!r}"
        for key, wanted in (
            ("general.type", "adapter"), ("adapter.type", "lora"),
            ("general.architecture", base.architecture),
        )
        if found.get(key) != wanted
    ]  # fmt: skip
    alpha = found.get("adapter.lora.alpha", 0.0)
    fine = isinstance(alpha, float) and math.isfinite(alpha) and abs(alpha) <= MAX_ALPHA
    if not fine:
        problems.append(f"adapter.lora.alpha is {str(alpha)[:40]}, not a number of type FLOAT32")
    if "adapter.alora.invocation_tokens" in found:
        problems.append(
            "it is an activated LoRA, which acts only behind certain words: that is not supported"
        )
    return problems


def _tensor_problems(header: GgufHeader, base: ModelFacts) -> list[str]:
    known = {tensor.name: tensor for tensor in base.tensors}
    halves: dict[str, dict[str, TensorFact]] = {}
    problems = []
    for tensor in header.tensors:
        name, dot, half = tensor.name.rpartition(".lora_")
        if dot and half in ("a", "b"):
            fact = TensorFact(name=tensor.name, type=tensor.type, shape=tensor.shape)
            halves.setdefault(name, {})[half] = fact
        elif not tensor.name.endswith("_norm.weight"):  # llama.cpp reads past those
            problems.append(f"{tensor.name} is no part of a LoRA adapter")
    if not halves:
        problems.append("it changes nothing: there is no pair of .lora_a and .lora_b")
    for name, found in halves.items():
        problems += _pair_problems(name, found, known.get(name), base)
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more of this kind"]
    return problems


def _pair_problems(
    name: str, found: Mapping[str, TensorFact], changed: TensorFact | None, base: ModelFacts
) -> list[str]:
    if len(found) != 2:
        return [f"{name} has .lora_{'b' if 'a' not in found else 'a'} alone, not the pair"]
    if changed is None:
        return [f"it changes {name}, which the model does not have"]
    down, up = found["a"], found["b"]
    if name == _EMBEDDINGS:
        return _embedding_problems(down, up, changed, base)
    if len(changed.shape) < 2 or name.endswith(".bias"):
        return [f"it changes {name}, which is no matrix"]
    *experts, rows, columns = changed.shape
    rank = down.shape[-2] if len(down.shape) >= 2 else 0
    wanted = ((*experts, rank, columns), (*experts, rows, rank))
    if not 0 < rank <= MAX_RANK or (down.shape, up.shape) != wanted:
        return [
            f"{name} is {_times(changed.shape)}, its pair {_times(down.shape)} and "
            f"{_times(up.shape)}: they do not multiply"
        ]
    return []


def _embedding_problems(
    down: TensorFact, up: TensorFact, table: TensorFact, base: ModelFacts
) -> list[str]:
    """Embeddings are looked up: their pair lies the other way round (`build_inp_embd`)."""
    if base.tied_embeddings:
        return [
            f"it changes {_EMBEDDINGS}, which is this model's output as well: llama.cpp would "
            "multiply by the pair the wrong way round and abort"
        ]
    rows, columns = table.shape
    rank = down.shape[-1]
    if not 0 < rank <= MAX_RANK or (down.shape, up.shape) != ((rows, rank), (columns, rank)):
        return [f"{_EMBEDDINGS} is {_times(table.shape)}, its pair has other sides"]
    return []


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def pairs(facts: AdapterFacts) -> dict[str, Pair]:
    """Return an adapter's pairs by the name of the tensor that each changes."""
    by_name = {tensor.name: tensor for tensor in facts.tensors}
    return {
        name.removesuffix(".lora_a"): Pair(tensor, by_name[name.removesuffix("a") + "b"])
        for name, tensor in by_name.items()
        if name.endswith(".lora_a")
    }
