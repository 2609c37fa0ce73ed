"""Correct a quantized model by an adapter within a byte budget. Runs only in a child process.

The quantized file is not touched. Corrected are the plain matrices of the layers and an output
matrix of its own; experts and the embedding are left out, which the result says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bundler.builtin.llamacpp import ggml, native
from bundler.builtin.llamacpp.allocation.matrices import Weights
from bundler.builtin.llamacpp.divergence import Scores
from bundler.builtin.llamacpp.reshaping.lora_file import write_lora
from bundler.builtin.llamacpp.reshaping.low_rank import (
    METHODS,
    RANK_STEP,
    Correction,
    Doubles,
    Floats,
    Roots,
    correction,
    pair_bytes,
    rank_worth_having,
    roots_of,
    spend,
)
from bundler.builtin.llamacpp.session import (
    Model,
    adapters_of,
    open_context,
    open_model,
    usable_threads,
)
from bundler.builtin.llamacpp.texts import windows
from bundler.errors import DoesNotFit, RecipeError, StepFailed, UnsafeInput
from bundler.value import format_size
from bundler.weights.gguf import GgufTensor, read_gguf_file

MOMENT_BYTES = 1 << 30
"""Second moments kept at once: more matrices are done in further passes over the text."""
_F32 = 0  # enum ggml_type
_LEAST_ROWS = 16


class Moments:
    """Sums `x x^T` of the inputs of wanted matrices; `callback` is what llama.cpp calls."""

    def __init__(self, wanted: Sequence[str]) -> None:
        ggml.check_layout()
        self.sums: dict[str, Doubles] = {}
        self.counts: dict[str, int] = dict.fromkeys(wanted, 0)
        self.failure: BaseException | None = None
        self._product = ggml.operation("MUL_MAT")
        self._shared: dict[int, str] = {}
        self.twins: dict[str, str] = {}
        """A matrix → another with the same inputs, whose sums are its own."""
        self.callback = native.llama().ggml_backend_sched_eval_callback(self._called)

    def begin(self) -> None:
        """Start a window: addresses of the graph before it mean nothing any more."""
        self._shared.clear()

    def of(self, name: str) -> Doubles | None:
        """Return a matrix's second moments, or None where it saw nothing."""
        twin = self.twins.get(name, name)
        return self.sums[twin] / self.counts[twin] if twin in self.sums else None

    def _called(self, address: int, ask: bool, _data: Any) -> bool:
        try:
            node = ggml.tensor_at(address)
            if node.op != self._product:
                return False
            name = ggml.weight_name(ggml.tensor_at(node.src[0]))
            source = ggml.tensor_at(node.src[1])
            if name not in self.counts or source.type != _F32 or source.ne[1] < _LEAST_ROWS:
                return False
            if ask:
                return self._is_new(name, node.src[1])
            rows = ggml.read_floats(node.src[1])
            rows = rows.reshape(-1, rows.shape[-1])
            self.sums[name] = self.sums.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
            self.counts[name] += len(rows)
        except BaseException as error:  # noqa: BLE001 - ctypes would swallow it
            self.failure = self.failure or error
            return False
        return True

    def _is_new(self, name: str, address: int) -> bool:
        """Tell whether these inputs were not summed for another matrix of this window."""
        first = self._shared.setdefault(address, name)
        if first == name:
            return True
        self.twins[name] = first
        return False


def correct_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: write an adapter; returns facts.

    Arguments: model (quantized), reference (as it was), text, window_tokens, tokens, output,
    budget_bytes, method, type ("Q8_0" or "F16").

    Raises:
        UnsafeInput: the two files are not of one model.
        DoesNotFit: the budget does not pay for the smallest correction.
        RecipeError: an unknown method, or too short a text.
    """
    method = arguments["method"]
    if method not in METHODS:
        raise RecipeError(f"{method!r} is no method", hint=f"there are: {', '.join(METHODS)}")
    reference, model = Path(arguments["reference"]), Path(arguments["model"])
    weights, stored = Weights(reference), Quantized(model)
    weights.check_finite()
    names = _matrices(weights, stored)
    type_name, budget = str(arguments["type"]), int(arguments["budget_bytes"])
    _check_budget(weights, names, budget, type_name)
    found = _all_corrections(weights, stored, names, arguments, report)
    ranks = spend(found, budget, type_name)
    kept = {name: found[name].truncated(rank) for name, rank in ranks.items()}
    size = write_lora(Path(arguments["output"]), kept, stored.architecture, type_name)
    return {
        "size_bytes": size, "ranks": ranks, "method": method, "type": type_name,
        "not_corrected": sorted(set(stored.tensors) - set(names) - _vectors(stored)),
    }  # fmt: skip


def _check_budget(weights: Weights, names: Sequence[str], budget: int, type_name: str) -> None:
    shapes = [weights.matrix(name).shape for name in names]
    least = min((pair_bytes(rows, columns, RANK_STEP, type_name) for rows, columns in shapes),
                default=0)  # fmt: skip
    if not names:
        raise UnsafeInput("no matrix of it is quantized: there is nothing to correct")
    if budget < least:
        raise DoesNotFit(
            f"{format_size(budget)} pay for no correction: the smallest takes {format_size(least)}"
        )


def _all_corrections(
    weights: Weights, stored: Quantized, names: Sequence[str], arguments: Mapping[str, Any],
    report: Any,
) -> dict[str, Correction]:  # fmt: skip
    """Work matrix by matrix, in passes whose second moments fit into memory."""
    passes = _passes(weights, names)
    sizes = [(rows, columns) for rows, columns in (weights.matrix(name).shape for name in names)]
    most = rank_worth_having(sizes, int(arguments["budget_bytes"]), str(arguments["type"]))
    found: dict[str, Correction] = {}
    for part in passes:
        moments = _collect(part, arguments)
        roots: dict[str, Roots] = {}
        for name in part:
            same = moments.twins.get(name, name)
            if same not in roots:
                columns = weights.matrix(name).row_values
                roots[same] = roots_of(moments.of(name), arguments["method"], columns)

        def corrected(
            name: str, moments: Moments = moments, roots: Mapping[str, Roots] = roots
        ) -> Correction:
            matrix = weights.matrix(name)
            return correction(
                matrix.read(slice(None)), stored.read(name), moments.of(name),
                arguments["method"], min(most, *matrix.shape),
                roots[moments.twins.get(name, name)],
            )  # fmt: skip

        with ThreadPoolExecutor(usable_threads(Path(arguments["reference"]))) as pool:
            for name, one in zip(part, pool.map(corrected, part), strict=True):
                found[name] = one
                report(len(found), len(names), "tensors")
    return found


def _passes(weights: Weights, names: Sequence[str]) -> list[list[str]]:
    passes: list[list[str]] = [[]]
    taken = 0
    for name in names:
        size = 8 * weights.matrix(name).row_values ** 2
        if passes[-1] and taken + size > MOMENT_BYTES:
            passes.append([])
            taken = 0
        passes[-1].append(name)
        taken += size
    return passes


def _collect(names: Sequence[str], arguments: Mapping[str, Any]) -> Moments:
    collector = Moments(names)
    window = int(arguments["window_tokens"])
    text = Path(arguments["text"])
    with (
        open_model(Path(arguments["reference"]), gpu=False) as model,
        open_context(
            model, context_tokens=window, batch_tokens=window, micro_batch_tokens=window,
            cb_eval=collector.callback,
        ) as context,
    ):  # fmt: skip
        most = max(1, int(arguments["tokens"]) // window)
        for part in windows(model, {text.name: text}, window_tokens=window, most=most):
            collector.begin()
            context.clear()
            context.decode(part, logits_from=0)
            if collector.failure is not None:
                raise collector.failure
    for name, sums in collector.sums.items():
        if not np.isfinite(sums).all():
            raise StepFailed(
                f"activations overflow at {name}", hint="take the model in BF16 or F32"
            )
    return collector


class Quantized:
    """A quantized file whose matrices are read back as floats."""

    def __init__(self, path: Path) -> None:
        header = read_gguf_file(path, where="model.gguf")
        self._path, self._start = path, header.data_offset
        self.tensors: dict[str, GgufTensor] = {tensor.name: tensor for tensor in header.tensors}
        self.architecture = str(header.metadata.get("general.architecture", ""))

    def read(self, name: str) -> Floats:
        """Return a matrix as it comes back from its quantized form."""
        tensor = self.tensors[name]
        with self._path.open("rb") as stream:
            stream.seek(self._start + tensor.offset)
            raw = np.frombuffer(stream.read(tensor.size_bytes), np.uint8)
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[tensor.type])
        back: Floats = np.asarray(values, np.float32).reshape(tensor.shape)
        return back


def _vectors(stored: Quantized) -> set[str]:
    return {name for name, tensor in stored.tensors.items() if len(tensor.shape) < 2}


def _matrices(weights: Weights, stored: Quantized) -> list[str]:
    """Return the matrices that an adapter can correct, in the file's order. Raises UnsafeInput."""
    shapes = {tensor.name: tensor.shape for tensor in weights.header.tensors}
    strange = [n for n, t in stored.tensors.items() if shapes.get(n) != t.shape]
    if strange or weights.header.metadata.get("general.architecture") != stored.architecture:
        raise UnsafeInput(
            f"the quantized file was not made from this model ({(strange or ['architecture'])[0]})",
            where="model.gguf", hint="give the file from which it was quantized",
        )  # fmt: skip
    return [
        name
        for name, tensor in stored.tensors.items()
        if len(tensor.shape) == 2 and (name.startswith("blk.") or name == "output.weight")
        and "ffn_gate_inp" not in name and tensor.type not in ("F32", "F16", "BF16")
    ]  # fmt: skip


# -- what it is worth ------------------------------------------------------------------------------


def compare_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: how far a model with adapters diverges from the reference without them.

    Arguments: model, reference, adapters, text, window_tokens, tokens.
    """
    text, window = Path(arguments["text"]), int(arguments["window_tokens"])
    scores = Scores()
    with (
        open_model(Path(arguments["reference"]), gpu=False, title="reference.gguf") as base,
        open_model(
            Path(arguments["model"]), gpu=False, adapters=adapters_of(arguments)
        ) as model,
        open_context(base, context_tokens=window, batch_tokens=window) as before,
        open_context(model, context_tokens=window, batch_tokens=window) as after,
    ):  # fmt: skip
        parts = _windows(base, text, arguments)
        for number, part in enumerate(parts):
            first = len(part) // 2
            for context in (before, after):
                context.clear()
                context.decode(part, logits_from=first)
            rows = len(part) - first
            following = np.array(part[first + 1 :], np.int64)
            scores.add(before.logits(rows)[:-1], after.logits(rows)[:-1], following)
            report((number + 1) * window, len(parts) * window, "tokens")
    return dict(scores.summary())


def _windows(model: Model, text: Path, arguments: Mapping[str, Any]) -> list[list[int]]:
    window = int(arguments["window_tokens"])
    most = max(1, int(arguments["tokens"]) // window)
    return windows(model, {text.name: text}, window_tokens=window, most=most)
