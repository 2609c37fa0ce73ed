"""One call of llama.cpp's quantizer: what it is asked, and what its log says meanwhile."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.schemes import Scheme, scheme_named
from bundler.errors import RecipeError, StepFailed
from bundler.weights.ggml_types import BY_NAME

Importance = Mapping[str, npt.NDArray[np.float32]]

_PROGRESS = re.compile(r"\[\s*\d+/\s*\d+\] (\S+)\s+- \[")


@dataclass(frozen=True, slots=True)
class Request:
    """What to make of what."""

    model: Path
    output: Path
    scheme: Scheme
    imatrix: Path | None
    overrides: tuple[tuple[str, str], ...]
    """(tensor name, type) pairs which beat the scheme."""
    allow_fallback: bool
    allow_requantize: bool
    threads: int
    metadata: tuple[tuple[str, str | float], ...] = ()
    """Keys that the file's header gets on top: texts (127 bytes at most) and numbers (FLOAT32)."""

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Request:
        """Read a job's arguments; raises RecipeError for unknown schemes or types."""
        overrides = tuple((str(name), str(kind)) for name, kind in given.get("overrides") or ())
        if wrong := sorted({kind for _, kind in overrides} - set(BY_NAME)):
            raise RecipeError(
                f"no tensor types of llama.cpp: {', '.join(wrong)}", where="overrides"
            )
        return cls(
            Path(given["model"]), Path(given["output"]), scheme_named(given["quant"]),
            Path(given["imatrix"]) if given.get("imatrix") else None, overrides,
            bool(given.get("allow_fallback")), bool(given.get("allow_requantize")),
            int(given.get("threads") or 0),
        )  # fmt: skip


def call_quantizer(
    request: Request, importance: Importance | None, output: bytes, *, dry_run: bool
) -> int:
    """Call llama_model_quantize; returns its code."""
    library = native.llama()
    given = library.llama_model_quantize_default_params()
    given.ftype = request.scheme.number
    given.nthread = request.threads
    given.allow_requantize = request.allow_requantize
    given.dry_run = dry_run
    # The pattern is a search and the first match wins: one anchored, escaped pattern per tensor.
    patterns = [
        (f"^{re.escape(name)}$".encode(), BY_NAME[kind].number) for name, kind in request.overrides
    ]
    kept: list[Any] = []  # what C points into must live until the call is over
    if importance:
        entries = (library.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            flat = np.ascontiguousarray(values, np.float32).ravel()
            entry.name, entry.size = name.encode(), flat.size
            entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            kept.append(flat)
        given.imatrix = ctypes.cast(entries, type(given.imatrix))
        kept.append(entries)
    if patterns:
        rules = (library.llama_model_tensor_override * (len(patterns) + 1))()
        for rule, (pattern, number) in zip(rules, patterns, strict=False):
            rule.pattern, rule.type = pattern, number
        given.tt_overrides = ctypes.cast(rules, type(given.tt_overrides))
        kept.append(rules)
    if request.metadata:
        table = _overridden(library, request.metadata)
        given.kv_overrides = ctypes.cast(table, type(given.kv_overrides))
        kept.append(table)
    code = int(
        library.llama_model_quantize(os.fsencode(request.model), output, ctypes.byref(given))
    )
    if code != 0 and dry_run:
        raise StepFailed(
            f"llama.cpp cannot quantize this model: {native.last_errors()}",
            where="model.gguf",
        )
    return code


_FLOAT, _STRING = 1, 3  # enum llama_model_kv_override_type


def _overridden(library: Any, metadata: tuple[tuple[str, str | float], ...]) -> Any:
    """Return keys and values as llama.cpp takes them, with the empty one that ends the list."""
    table = (library.llama_model_kv_override * (len(metadata) + 1))()
    for entry, (key, value) in zip(table, metadata, strict=False):
        entry.key = key.encode()
        entry.tag = _STRING if isinstance(value, str) else _FLOAT
        if isinstance(value, str):
            entry.value.val_str = value.encode()[:127]
        else:
            entry.value.val_f64 = float(value)
    return table


class LogProgress:
    """Progress out of the log, which is the only place llama.cpp tells it, weighted by size."""

    def __init__(self, weights: Mapping[str, float], report: Any) -> None:
        self._weights = weights
        self._report = report
        self._pending = ""
        self._current = 0.0
        self._done = 0.0
        self.total = sum(weights.values())

    def hear(self, piece: str) -> None:
        self._pending = (self._pending + piece)[-4096:]
        while match := _PROGRESS.search(self._pending):
            self._done += self._current
            self._current = self._weights.get(match[1], 0.0)
            self._pending = self._pending[match.end() :]
            self._report(self._done, self.total, "bytes")
