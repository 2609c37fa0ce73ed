"""Quantize a GGUF file with llama.cpp, and hold what came out against what was asked for.

Runs only in a child process: llama.cpp cannot be stopped from inside. The output is written as
`*.partial` and renamed when it is whole and its header says what it should.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.builtin.llamacpp.quantize_plan import (
    Fallback,
    check_importance,
    check_source,
    check_space,
    decide,
    refused,
    some,
)
from bundler.builtin.llamacpp.quantizer import Importance, LogProgress, Request, call_quantizer
from bundler.errors import StepFailed
from bundler.store import full_disk_is_an_error, sync_folder
from bundler.weights.gguf import GgufHeader, read_gguf_file

_NEARLY_FULL_BYTES = 1 << 20


def quantize_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: quantize; returns the facts of what was made."""
    return quantize(Request.from_json(arguments), report)


def quantize(request: Request, report: Any) -> dict[str, Any]:
    """Make `request.output`; report bytes of the source that are done.

    Raises:
        UnsafeInput: the model's header cannot be trusted, or it is quantized already.
        RecipeError: overrides or scheme ask for what cannot be; an importance matrix is missing.
        StepFailed: a type would be replaced and that is not allowed, or llama.cpp failed.
    """
    header = read_gguf_file(request.model, where="model.gguf")
    importance = read_imatrix(request.imatrix) if request.imatrix else None
    check_source(header, request)
    decision = decide(header, request, importance)
    check_importance(header, request, decision.types, importance)
    if decision.fallbacks and not request.allow_fallback:
        raise refused(decision.fallbacks, request)
    check_space(header, request, decision.types)
    partial = request.output.with_name(request.output.name + ".partial")
    with full_disk_is_an_error(request.output.parent, request.output.name):
        try:
            _write(
                header, replace(request, overrides=decision.overrides), importance, partial, report
            )
            made = read_gguf_file(partial, where="the quantized model.gguf")
            _check_made(made, decision.types)
            _sync(partial)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        os.replace(partial, request.output)
        sync_folder(request.output.parent)
    return _facts(request, header, made, decision.fallbacks, importance)


def _write(
    header: GgufHeader,
    request: Request,
    importance: Importance | None,
    partial: Path,
    report: Any,
) -> None:
    progress = LogProgress({t.name: float(t.size_bytes) for t in header.tensors}, report)
    with native.listening(progress.hear):
        code = call_quantizer(request, importance, os.fsencode(partial), dry_run=False)
    if code != 0:
        reason = native.last_errors()
        if shutil.disk_usage(partial.parent).free < _NEARLY_FULL_BYTES:
            raise OSError(errno.ENOSPC, f"llama.cpp could not write: {reason}")
        raise StepFailed(f"llama.cpp could not quantize: {reason}", where="model.gguf")
    report(progress.total, progress.total, "bytes")


def _check_made(made: GgufHeader, planned: Mapping[str, str]) -> None:
    """Hold the types in the written header against the plan."""
    found = {tensor.name: tensor.type for tensor in made.tensors}
    wrong = [
        f"{name}: {found.get(name, 'missing')} instead of {kind}"
        for name, kind in planned.items()
        if found.get(name) != kind
    ]
    if wrong:
        raise StepFailed(f"llama.cpp wrote other types than it announced: {some(wrong)}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _facts(
    request: Request,
    header: GgufHeader,
    made: GgufHeader,
    fallbacks: Sequence[Fallback],
    importance: Importance | None,
) -> dict[str, Any]:
    elements = sum(math.prod(tensor.shape) for tensor in made.tensors)
    stored_bytes = sum(tensor.size_bytes for tensor in made.tensors)
    before = {tensor.name: tensor.type for tensor in header.tensors}
    changed = [tensor.name for tensor in made.tensors if tensor.type != before[tensor.name]]
    return {
        "quant": request.scheme.name,
        "size_bytes": request.output.stat().st_size,
        "tensor_bytes": stored_bytes,
        "elements": elements,
        "bits_per_weight": round(stored_bytes * 8 / elements, 4) if elements else 0.0,
        "types": dict(sorted(Counter(tensor.type for tensor in made.tensors).items())),
        "fallbacks": [{"tensor": f.tensor, "wanted": f.wanted, "got": f.got} for f in fallbacks],
        "without_importance": sorted(set(changed) - set(importance))
        if importance is not None
        else [],
        "overridden": len(request.overrides),
    }
