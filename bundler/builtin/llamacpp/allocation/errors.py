"""What each type does to each tensor: the relative error, weighted by how its inputs are used.

For a weight W with mean squared inputs m (the importance matrix) the error of a type is
`sum m (W - W')^2 / sum m W^2`: the noise that rounding adds to the layer's output, relative to that
output (inputs taken as uncorrelated). W' is what ggml's own code gives back. Rows are rounded
independently of each other, so a part of a large tensor's rows tells as much as all of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.allocation.candidates import SLOW_TYPES, all_choices
from bundler.builtin.llamacpp.allocation.matrices import Floats, Matrix, Weights
from bundler.builtin.llamacpp.allocation.rounding import round_trip
from bundler.builtin.llamacpp.allocation.tables import ErrorTable, TensorErrors, facts_of
from bundler.builtin.llamacpp.imatrix import read_imatrix

SAMPLED_VALUES = 1 << 20
"""Weights of a tensor that are rounded with each type; more change its error by less than 1 %."""
SLOW_SAMPLED_VALUES = 1 << 18
"""The same for types that take ten times as long."""
_LEAST_ROWS = 16
# Milliseconds per million weights on one core, for progress that keeps its pace.
_COSTS = {"Q8_0": 4, "Q3_K": 36, "Q6_K": 30, "IQ4_XS": 180, "IQ3_S": 420, "IQ3_XXS": 520,
          "IQ2_XXS": 860, "IQ2_XS": 1750, "IQ2_S": 2200}  # fmt: skip
_USUAL_COST = 110


class _Job(NamedTuple):
    name: str
    type: str
    cost: float


def errors_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: measure every candidate type on every tensor and write `output`.

    Arguments: model, imatrix (or none), output, types.
    """
    weights = Weights(Path(arguments["model"]))
    importance = read_imatrix(Path(arguments["imatrix"])) if arguments.get("imatrix") else {}
    table = measure(weights, importance, tuple(arguments["types"]), report)
    Path(arguments["output"]).write_text(table.to_json(), encoding="utf-8")
    sampled = sum(one.sampled_values for one in table.tensors.values())
    return {
        "tensors": len(table.tensors),
        "weights": sum(one.values for one in table.tensors.values()),
        "sampled_weights": sampled,
        "without_importance": sorted(n for n, one in table.tensors.items() if not one.guided),
    }


def measure(
    weights: Weights, importance: Mapping[str, Floats], types: Sequence[str], report: Any
) -> ErrorTable:
    """Return the table. Raises UnsafeInput where weights are not finite."""
    native.llama()
    facts = facts_of(weights.header)
    choices = all_choices(facts.tensors, types, importance)
    sizes = {name: weights.matrix(name).rows * weights.matrix(name).row_values for name in choices}
    jobs = [
        _Job(name, one.type, _cost(one.type, min(sizes[name], _sampled(one.type))))
        for name, found in choices.items()
        for one in found
    ]
    errors = _all_errors(weights, importance, jobs, sizes, report)
    tensors = {
        name: TensorErrors(
            values=sizes[name],
            sampled_values=min(sizes[name], SAMPLED_VALUES),
            guided=name in importance,
            sizes={one.type: one.size_bytes for one in found},
            errors={one.type: errors[name, one.type] for one in found},
        )
        for name, found in choices.items()
    }
    return ErrorTable(tensors=tensors)


def _all_errors(
    weights: Weights,
    importance: Mapping[str, Floats],
    jobs: Sequence[_Job],
    sizes: Mapping[str, int],
    report: Any,
) -> dict[tuple[str, str], float]:
    """Do the jobs on all cores; what costs most goes first, so that none is waited for in the end."""
    total, done = sum(job.cost for job in jobs), 0.0
    errors: dict[tuple[str, str], float] = {}
    ordered = sorted(jobs, key=lambda job: -job.cost)
    with ThreadPoolExecutor(_threads()) as pool:
        pending: dict[Future[float], _Job] = {
            pool.submit(_error, weights.matrix(job.name), importance.get(job.name), job.type): job
            for job in ordered
        }
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                job = pending.pop(future)
                errors[job.name, job.type] = future.result()
                done += job.cost
            report(done / total * len(sizes), len(sizes), "tensors")
    return errors


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def _cost(type_name: str, values: int) -> float:
    return _COSTS.get(type_name, _USUAL_COST) * values / 1e6


def _sampled(type_name: str) -> int:
    return SLOW_SAMPLED_VALUES if type_name in SLOW_TYPES else SAMPLED_VALUES


def _error(matrix: Matrix, importance: Floats | None, type_name: str) -> float:
    """Return the relative error of one tensor stored as one type."""
    noise = signal = 0.0
    for rows, means in _samples(matrix, importance, _sampled(type_name)):
        values = matrix.read(rows)
        back = round_trip(values, type_name, means)
        weighting = np.ones(matrix.row_values, np.float32) if means is None else means
        noise += _weighted_squares(values - back, weighting)
        signal += _weighted_squares(values, weighting)
    return noise / signal if signal else 0.0


def _weighted_squares(values: Floats, weighting: Floats) -> float:
    columns: npt.NDArray[np.float64] = np.einsum("ij,ij->j", values, values, dtype=np.float64)
    return float(columns @ weighting.astype(np.float64))


def _samples(
    matrix: Matrix, importance: Floats | None, most_values: int
) -> list[tuple[npt.NDArray[np.int64], Floats | None]]:
    """Return evenly spread rows of each of a tensor's matrices, with that matrix's importance."""
    per_expert = matrix.rows // matrix.experts
    most_rows = max(_LEAST_ROWS, most_values // matrix.row_values)
    experts = min(matrix.experts, max(1, most_rows // _LEAST_ROWS))
    wanted = min(per_expert, max(_LEAST_ROWS, math.ceil(most_rows / experts)))
    found = []
    for expert in _spread(matrix.experts, experts):
        rows = _spread(per_expert, wanted) + expert * per_expert
        means = None
        if importance is not None:
            length = matrix.row_values
            means = importance[expert * length : (expert + 1) * length]
        found.append((rows, means))
    return found


def _spread(total: int, count: int) -> npt.NDArray[np.int64]:
    """Return `count` numbers below `total`, evenly apart."""
    return np.unique(np.linspace(0, total - 1, count).round().astype(np.int64))
