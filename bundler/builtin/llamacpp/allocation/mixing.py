"""The file of a mix: decide from what was measured, have llama.cpp write it, keep the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.allocation.controls import (
    controls_for,
    data_bytes,
    stock_mixes,
)
from bundler.builtin.llamacpp.allocation.damages import Costs, costs, sensitivities
from bundler.builtin.llamacpp.allocation.record import Record
from bundler.builtin.llamacpp.allocation.solving import largest, smallest, solve
from bundler.builtin.llamacpp.allocation.tables import ErrorTable, Sensitivity
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.builtin.llamacpp.quantize import quantize
from bundler.builtin.llamacpp.quantizer import Request
from bundler.builtin.llamacpp.schemes import SCHEMES, UNQUANTIZED
from bundler.errors import DoesNotFit, RecipeError
from bundler.value import format_size
from bundler.weights.gguf import GgufHeader, read_gguf_file

_SCHEME_OF = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""What a file calls itself whose commonest type is this; other types have a scheme of their name."""
NAME_KEY, BITS_KEY = "bundler.mix.name", "bundler.mix.bits_per_weight"
DAMAGE_KEY, METHOD_KEY = "bundler.mix.predicted_damage", "bundler.mix.sensitivity"


def mix_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: choose types and write `output` and `record`.

    Arguments: model, imatrix (or none), errors, sensitivity (or none), name, budget_bytes (for the
    data of all tensors), output, record, types (or none: those that may be used), threads.
    """
    model = Path(arguments["model"])
    header = read_gguf_file(model, where="model.gguf")
    table, measured = _tables(arguments)
    _check_same(header, table)
    allowed = arguments.get("types")
    options = costs(table, sensitivities(table, measured))
    if allowed:
        options = _only(options, header, set(allowed))
    record = decided(
        header, options, measured, str(arguments["name"]), int(arguments["budget_bytes"])
    )
    imatrix = arguments.get("imatrix")
    request = Request.from_json(
        {
            "model": str(model), "output": arguments["output"], "quant": "Q4_K_M",
            "imatrix": imatrix, "overrides": sorted(record.types.items()),
            "threads": arguments.get("threads"),
        }
    )  # fmt: skip
    request = replace(
        request, scheme=SCHEMES[_scheme(header, record)], metadata=_metadata(header, record)
    )
    facts = quantize(request, report)
    importance = read_imatrix(Path(imatrix)) if imatrix else None
    record = record.model_copy(
        update={"controls": controls_for(header, request, importance, options, record.budget_bytes)}
    )
    Path(arguments["record"]).write_text(record.to_json(), encoding="utf-8")
    return {
        **facts, "quant": record.name, "budget_bytes": record.budget_bytes,
        "predicted_damage": record.predicted_damage, "gap": record.gap,
        "sensitivity": record.sensitivity,
    }  # fmt: skip


def _tables(arguments: Mapping[str, Any]) -> tuple[ErrorTable, Sensitivity | None]:
    errors = Path(arguments["errors"]).read_text("utf-8")
    table = ErrorTable.from_json(errors, "errors.json")
    if not arguments.get("sensitivity"):
        return table, None
    text = Path(arguments["sensitivity"]).read_text("utf-8")
    return table, Sensitivity.from_json(text, "sensitivity.json")


def _check_same(header: GgufHeader, table: ErrorTable) -> None:
    names = {tensor.name for tensor in header.tensors}
    if strange := sorted(set(table.tensors) - names):
        raise RecipeError(
            f"the measurements are of another model: it has no {', '.join(strange[:4])}",
            where="errors.json",
        )


def _only(options: Costs, header: GgufHeader, allowed: set[str]) -> Costs:
    """Leave what is allowed, and what each tensor is stored as."""
    stored = {tensor.name: tensor.type for tensor in header.tensors}
    return {
        name: {kind: one for kind, one in found.items() if kind in allowed or kind == stored[name]}
        for name, found in options.items()
    }


def decided(
    header: GgufHeader, options: Costs, measured: Sensitivity | None, name: str, budget_bytes: int
) -> Record:
    """Return the decision, without controls.

    Raises:
        DoesNotFit: the budget is below the smallest mix.
    """
    stored = {tensor.name: tensor.type for tensor in header.tensors}
    free_as_stored = sum(options[name][stored[name]][0] for name in options)
    fixed = data_bytes(header, stored) - free_as_stored
    least = fixed + smallest(options)
    if budget_bytes < least:
        raise DoesNotFit(
            f"{name}: its tensors may take {format_size(budget_bytes)}, the smallest mix of this "
            f"model takes {format_size(least)}",
            where="model.gguf",
            hint="a larger budget, or a smaller model",
        )
    budget = min(budget_bytes, fixed + largest(options))
    solution = solve(options, budget - fixed)
    return Record(
        name=name, budget_bytes=budget, size_bytes=fixed + solution.size_bytes,
        types=dict(sorted(solution.types.items())), predicted_damage=solution.damage,
        bound=solution.bound, gap=solution.gap,
        sensitivity=measured.method if measured else "none",
        sensitivity_reason=measured.reason if measured else "it was not asked for",
        evaluations=measured.evaluations if measured else 0,
        evaluation_tokens=measured.tokens if measured else 0,
    )  # fmt: skip


def _scheme(header: GgufHeader, record: Record) -> str:
    """Return the scheme a file is filed under: that of the type most of its weights have.

    `general.file_type` knows only llama.cpp's own mixes; the file's other keys say what it is.
    """
    sizes = {tensor.name: tensor.size_bytes for tensor in header.tensors}
    counted: Counter[str] = Counter()
    for name, kind in record.types.items():
        if kind not in UNQUANTIZED:
            counted[_SCHEME_OF.get(kind, kind)] += sizes[name]
    return max(counted, key=lambda name: (counted[name], name), default="Q8_0")


def _metadata(header: GgufHeader, record: Record) -> tuple[tuple[str, str | float], ...]:
    values = sum(_values(tensor.shape) for tensor in header.tensors)
    return (
        (NAME_KEY, record.name[:100]),
        (BITS_KEY, round(record.size_bytes * 8 / values, 4)),
        (DAMAGE_KEY, record.predicted_damage),
        (METHOD_KEY, record.sensitivity),
    )


def _values(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def stock_mixes_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return size and predicted damage of llama.cpp's own mixes of a model, by scheme.

    Arguments: model, imatrix (or none), errors, sensitivity (or none). Only those that it makes
    without putting in other types.
    """
    table, measured = _tables(arguments)
    options = costs(table, sensitivities(table, measured))
    model = Path(arguments["model"])
    request = Request.from_json({"model": str(model), "output": "unused.gguf", "quant": "Q4_K_M"})
    importance = read_imatrix(Path(arguments["imatrix"])) if arguments.get("imatrix") else None
    header = read_gguf_file(model, where="model.gguf")
    return {
        one.name: [one.size_bytes, one.predicted_damage]
        for one in stock_mixes(header, request, importance, options)
    }
