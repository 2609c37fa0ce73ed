"""What a quantization would do, and whether it may: asked of llama.cpp before anything is written."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.quantizer import Importance, Request, call_quantizer
from bundler.builtin.llamacpp.schemes import UNQUANTIZED, needs_importance, output_type_wanted
from bundler.errors import BundlerError, DoesNotFit, Problem, RecipeError, StepFailed, UnsafeInput
from bundler.value import format_size
from bundler.weights.ggml_types import tensor_bytes
from bundler.weights.gguf import GgufHeader

_FALLBACK = re.compile(
    r"warning: (\S+)\s+- ncols\s+\d+ not divisible by\s+\d+ \(required for type\s+(\S+)\)"
    r"[^\n]*?-> falling back to\s+(\S+)"
)
_DRY = re.compile(
    r"\[\s*\d+/\s*\d+\] (\S+)\s+- \[[^\]]*\], type =\s+(\S+), size = [^\n(]*(?:\((\S+)\))?"
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,63}")
_SHOWN = 8
# `ggml_quantize_requires_imatrix` of ggml.c: without an entry ggml aborts, also where llama.cpp's own
# check lets embeddings and outputs pass.
_ABORTING = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose type llama.cpp replaced, because its rows cannot hold the one asked for."""

    tensor: str
    wanted: str
    got: str


def check_source(header: GgufHeader, request: Request) -> None:
    """Refuse names that would break a pattern, unknown overrides, and quantized sources."""
    problems: list[Problem] = []
    names = {tensor.name for tensor in header.tensors}
    if odd := sorted(name for name in names if not _PLAIN_NAME.fullmatch(name)):
        raise UnsafeInput(f"has tensors with odd names: {odd[:_SHOWN]}", where="model.gguf")
    if unknown := sorted({name for name, _ in request.overrides} - names):
        raise RecipeError(f"overrides name tensors that are not there: {some(unknown)}")
    if request.overrides and request.scheme.name in UNQUANTIZED:
        raise RecipeError(
            f"overrides have no effect with {request.scheme.name}: llama.cpp ignores them",
            hint="name a quantized scheme as the base",
        )
    quantized = Counter(
        tensor.type
        for tensor in header.tensors
        if tensor.type not in UNQUANTIZED
        and not tensor.type.startswith(("I8", "I16", "I32", "I64"))
    )
    if quantized and not request.allow_requantize:
        kinds = ", ".join(f"{count} x {name}" for name, count in sorted(quantized.items()))
        problems.append(
            Problem(
                f"is quantized already ({kinds}): doing it again adds the errors of both",
                where="model.gguf",
                hint="start from the F16, BF16 or F32 model, or take this file as it is",
            )
        )
    if problems:
        raise UnsafeInput(problems)


class Decision(NamedTuple):
    """What llama.cpp will do."""

    types: dict[str, str]
    """Tensor → the type it gets."""
    fallbacks: list[Fallback]
    """Of which these are not what was asked for, sorted by tensor."""
    overrides: tuple[tuple[str, str], ...]
    """What it has to be told to do just that."""


def decide(header: GgufHeader, request: Request, importance: Importance | None) -> Decision:
    """Ask llama.cpp what it would do: each tensor's type, and which it would replace.

    An overridden tensor is left out of the counts by which llama.cpp spreads better types over the
    layers, so that one override changes other tensors too. With overrides it is therefore asked
    twice, the second time with a type for every tensor that it quantizes.

    Raises:
        RecipeError: an override names a tensor that llama.cpp never quantizes.
        StepFailed: it refuses the model or its log cannot be understood.
    """
    plain = replace(request, overrides=())
    types, fallbacks = _dry_run(header, plain, importance)
    for quiet in _quiet_fallbacks(header, request, types):
        fallbacks[quiet.tensor] = quiet
    if not request.overrides:
        return Decision(types, [fallbacks[name] for name in sorted(fallbacks)], ())
    stored = {tensor.name: tensor.type for tensor in header.tensors}
    asked = dict(request.overrides)
    full = {name: kind for name, kind in types.items() if kind != stored[name]} | asked
    overrides = tuple(sorted(full.items()))
    mixed, replaced = _dry_run(header, replace(request, overrides=overrides), importance)
    kept = {name: f for name, f in fallbacks.items() if name not in asked} | replaced
    ignored = sorted(name for name in asked if mixed[name] != asked[name] and name not in replaced)
    if ignored:
        raise RecipeError(f"llama.cpp never changes the type of {some(ignored)}", where="overrides")
    if moved := sorted(name for name in types if name not in asked and mixed[name] != types[name]):
        raise StepFailed(f"the overrides would change other tensors as well: {some(moved)}")
    return Decision(mixed, [kept[name] for name in sorted(kept)], overrides)


def _dry_run(
    header: GgufHeader, request: Request, importance: Importance | None
) -> tuple[dict[str, str], dict[str, Fallback]]:
    with native.listening() as said:
        call_quantizer(request, importance, b"unused", dry_run=True)
        log = said()
    types = {name: (after or before).upper() for name, before, after in _DRY.findall(log)}
    missing = {tensor.name for tensor in header.tensors} - set(types)
    if missing:
        raise StepFailed(
            f"llama.cpp's dry run does not name {len(missing)} of {len(header.tensors)} tensors: "
            + some(sorted(missing)),
            hint="this llama.cpp writes another log than the one bundler knows",
        )
    return types, {
        name: Fallback(name, wanted.upper(), got.upper())
        for name, wanted, got in _FALLBACK.findall(log)
    }


def _quiet_fallbacks(
    header: GgufHeader, request: Request, planned: Mapping[str, str]
) -> list[Fallback]:
    """Find the output tensor's replacement, of which llama.cpp says nothing."""
    if request.scheme.name in UNQUANTIZED:
        return []
    names = {tensor.name for tensor in header.tensors}
    name = "output.weight" if "output.weight" in names else "token_embd.weight"
    architecture = str(header.metadata.get("general.architecture", ""))
    for tensor in header.tensors:
        if tensor.name == name:
            wanted = output_type_wanted(request.scheme, tensor.shape[-1], architecture)
            if wanted is not None and planned[name] != wanted:
                return [Fallback(name, wanted, planned[name])]
    return []


def check_importance(
    header: GgufHeader,
    request: Request,
    planned: Mapping[str, str],
    importance: Importance | None,
) -> None:
    """Refuse what llama.cpp would refuse half-way: missing or wrongly sized entries."""
    given = importance or {}
    lacking, wrong = [], []
    for tensor in header.tensors:
        wanted = math.prod(tensor.shape[:-2]) * tensor.shape[-1] if tensor.shape else 0
        if tensor.name in given:
            if given[tensor.name].size != wanted:
                wrong.append(f"{tensor.name} ({given[tensor.name].size} instead of {wanted})")
        elif planned[tensor.name] != tensor.type and (
            planned[tensor.name] in _ABORTING
            or needs_importance(tensor.name, planned[tensor.name], request.scheme)
        ):
            lacking.append(tensor.name)
    problems = []
    if wrong:
        problems.append(Problem(f"the importance matrix is of another model: {some(wrong)}"))
    if importance is not None and not set(given) & {tensor.name for tensor in header.tensors}:
        problems.append(Problem("the importance matrix names no tensor of this model"))
    if lacking:
        problems.append(
            Problem(
                f"{request.scheme.name} needs an importance matrix for {len(lacking)} tensors "
                f"and there is none: {some(lacking)}",
                hint="calibrate first (importance_matrix = 'auto' with a calibration text), or "
                "choose a scheme of 3 bits or more such as Q3_K_M",
            )
        )
    if problems:
        raise RecipeError(problems)


def check_space(header: GgufHeader, request: Request, planned: Mapping[str, str]) -> None:
    """Refuse with both figures what the disk cannot hold, before writing any of it."""
    needed = header.data_offset + sum(
        tensor_bytes(planned[tensor.name], tensor.shape) for tensor in header.tensors
    )
    free = shutil.disk_usage(request.output.parent).free
    if needed > free:
        raise DoesNotFit(
            f"{request.scheme.name} makes {format_size(needed)}, but only {format_size(free)} "
            "are free on the disk",
            where=str(request.output.parent),
            hint="free some space and run the same command again",
        )


def refused(fallbacks: Sequence[Fallback], request: Request) -> BundlerError:
    """Make the error that names every replaced type."""
    listed = some([f"{f.tensor}: {f.wanted} -> {f.got}" for f in fallbacks])
    return StepFailed(
        f"{request.scheme.name} cannot hold {len(fallbacks)} tensors of this model, whose rows are "
        f"not a multiple of its block; llama.cpp would put in other types: {listed}",
        where="model.gguf",
        hint="set allow_fallback = true to accept them, or choose a type of 32-value blocks such "
        "as Q8_0, Q5_0 or IQ4_NL",
    )


def some(things: Sequence[str]) -> str:
    """Join the first few for a message and count the rest."""
    shown = ", ".join(things[:_SHOWN])
    return shown + (f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else "")
