"""The importance matrix: how strongly each input channel of each weight is used on a text.

Runs only in a child process. llama.cpp calls us for every node of the graph (`cb_eval`); for each
matrix product with a weight of the model we add up the squares of its input, per channel and, in a
mixture of experts, per expert. The result is what llama-imatrix would write.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import ggml, native
from bundler.builtin.llamacpp.allocation.candidates import free_tensors
from bundler.builtin.llamacpp.allocation.matrices import Weights
from bundler.builtin.llamacpp.allocation.tables import facts_of
from bundler.builtin.llamacpp.calibration_state import Kept
from bundler.builtin.llamacpp.calibration_text import Listener, warnings_about
from bundler.builtin.llamacpp.imatrix import Entry, write_imatrix
from bundler.builtin.llamacpp.session import open_context, open_model
from bundler.builtin.llamacpp.texts import windows
from bundler.errors import StepFailed
from bundler.store import hash_file

_F32 = 0  # enum ggml_type
# A product with the embedding is the output of a model that ties the two.
_OUTPUTS = ("output.weight", "token_embd.weight")
_LEAST_ROWS = 16  # llama-imatrix skips smaller products: they are not the text's


class Collector:
    """Sums squares of inputs; `callback` is what llama.cpp calls for each node."""

    def __init__(self, *, output: bool) -> None:
        ggml.check_layout()
        self.squares: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self.failure: BaseException | None = None
        self._output = output
        self._counting = True
        self._dense, self._experts = ggml.operation("MUL_MAT"), ggml.operation("MUL_MAT_ID")
        self._seen: dict[int, tuple[npt.NDArray[np.float64], int]] = {}
        self.callback = native.llama().ggml_backend_sched_eval_callback(self._called)

    def begin(self, *, counting: bool = True) -> None:
        """Start a decode: addresses of the graph before it mean nothing any more."""
        self._seen.clear()
        self._counting = counting

    def finish(self) -> None:
        """Raise what went wrong inside the callback, from where it could not be raised."""
        if self.failure is not None:
            raise self.failure

    def _called(self, address: int, ask: bool, _data: Any) -> bool:
        # ctypes prints and swallows exceptions: keep the first one for `finish`.
        try:
            node = ggml.tensor_at(address)
            return self._wanted(node) if ask else self._collect(node)
        except BaseException as error:  # noqa: BLE001
            self.failure = self.failure or error
            return False

    def _wanted(self, node: Any) -> bool:
        if not self._counting or node.op not in (self._dense, self._experts):
            return False
        source = ggml.tensor_at(node.src[1])
        weight = ggml.weight_name(ggml.tensor_at(node.src[0]))
        if not (weight.startswith("blk.") or (self._output and weight in _OUTPUTS)):
            return False
        if source.type != _F32:
            return False
        if node.op == self._experts:
            return True
        if source.ne[1] < _LEAST_ROWS:
            return False
        # Query, key and value read one input, gate and up another: sum each input once.
        if node.src[1] in self._seen:
            self._add(weight, *self._seen[node.src[1]])
            return False
        return True

    def _collect(self, node: Any) -> bool:
        weight = ggml.weight_name(ggml.tensor_at(node.src[0]))
        inputs = ggml.read_floats(node.src[1])
        if node.op == self._experts:
            self._collect_experts(node, weight, inputs[0])
            return True
        rows = inputs.reshape(-1, inputs.shape[-1])
        squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        self._seen[node.src[1]] = (squares, rows.shape[0])
        self._add(weight, squares, rows.shape[0])
        return True

    def _add(self, weight: str, squares: npt.NDArray[np.float64], count: int) -> None:
        if weight not in self.squares:
            self.squares[weight] = np.zeros((1, squares.size))
            self.counts[weight] = np.zeros(1, np.int64)
        self.squares[weight][0] += squares
        self.counts[weight][0] += count

    def _collect_experts(self, node: Any, weight: str, inputs: npt.NDArray[np.float32]) -> None:
        """Give each token's input to the experts chosen for it; `inputs` is (tokens, slots, n)."""
        experts = int(ggml.tensor_at(node.src[0]).ne[2])
        chosen = ggml.read_integers(node.src[2])
        if weight not in self.squares:
            self.squares[weight] = np.zeros((experts, inputs.shape[-1]))
            self.counts[weight] = np.zeros(experts, np.int64)
        for slot in range(chosen.shape[1]):
            # Up and gate see one input per token; down sees one per token and slot.
            given = inputs[:, slot % inputs.shape[1]]
            for expert in np.unique(chosen[:, slot]):
                rows = given[chosen[:, slot] == expert]
                self.squares[weight][expert] += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
                self.counts[weight][expert] += len(rows)


def calibrate_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: collect over `texts` and write `output`; returns facts.

    Arguments: model, texts (name → path), output, context_tokens, chunks, include_output, kept (a
    file in which sums are kept meanwhile, or none: one that was cut off goes on from there).
    """
    weights = Weights(Path(arguments["model"]))
    weights.check_finite()
    texts = {name: Path(path) for name, path in arguments["texts"].items()}
    window = int(arguments["context_tokens"])
    gpu = any(device.is_gpu for device in native.best_devices())
    collector = Collector(output=bool(arguments.get("include_output")))
    with (
        open_model(Path(arguments["model"]), gpu=gpu) as model,
        open_context(
            model, context_tokens=window, batch_tokens=window, micro_batch_tokens=window,
            cb_eval=collector.callback,
        ) as context,
    ):  # fmt: skip
        parts = windows(model, texts, window_tokens=window, most=int(arguments["chunks"]))
        kept = _kept(arguments, weights, parts)
        done, listener = kept.load(collector.squares, collector.counts), Listener()
        for number, part in enumerate(parts):
            if number < done and not listener.wants(number):
                continue
            collector.begin(counting=number >= done)
            context.clear()
            # Logits for all: llama.cpp drops rows without output before the last feed-forward.
            context.decode(part, logits_from=0)
            collector.finish()
            if listener.wants(number):
                listener.hear(context.logits(len(part)), part)
            kept.keep(collector.squares, collector.counts, max(done, number + 1))
            report((number + 1) * window, len(parts) * window, "tokens")
        warnings = warnings_about(model, parts, listener.perplexity)
    entries = _checked(collector)
    write_imatrix(
        Path(arguments["output"]), entries, datasets=sorted(texts),
        chunks=len(parts), chunk_tokens=window,
    )  # fmt: skip
    kept.drop()
    unused = {name: int((e.counts == 0).sum()) for name, e in entries.items()}
    return {
        **_coverage(weights, entries),
        "warnings": warnings + _unused_warnings(unused, entries),
        "perplexity": listener.perplexity,
        "resumed_at": done,
        "tensors": len(entries),
        "chunks": len(parts),
        "chunk_tokens": window,
        "tokens": len(parts) * window,
        "texts": {name: hash_file(texts[name]) for name in sorted(texts)},
        "experts_never_used": {name: count for name, count in sorted(unused.items()) if count},
        "device": native.best_devices()[0].description,
    }


def _kept(arguments: Mapping[str, Any], weights: Weights, parts: list[list[int]]) -> Kept:
    """Return where sums are kept; they depend on the weights, the tokens and what is collected."""
    path = Path(arguments["kept"]) if arguments.get("kept") else None
    identity = {
        "model": hash_file(Path(arguments["model"])) if path is not None else "",
        "tensors": len(weights.header.tensors),
        "windows": parts,
        "include_output": bool(arguments.get("include_output")),
    }
    return Kept(path, identity if path is not None else {})


def _coverage(weights: Weights, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Say which weights have no entry, and how often the least used expert of each was chosen."""
    matrices = [tensor.name for tensor in free_tensors(facts_of(weights.header).tensors)]
    fewest = {
        name: int(entry.counts.min()) for name, entry in sorted(entries.items())
        if entry.counts.size > 1
    }  # fmt: skip
    return {
        "matrices": len(matrices),
        "not_covered": sorted(set(matrices) - set(entries)),
        "tokens_of_least_used_expert": fewest,
    }


def _unused_warnings(unused: Mapping[str, int], entries: Mapping[str, Entry]) -> list[str]:
    bad = {name: count for name, count in unused.items() if count}
    if not bad:
        return []
    worst = max(sorted(bad), key=lambda name: bad[name])
    return [
        f"{sum(bad.values())} experts in {len(bad)} tensors were never chosen on the calibration text "
        f"(most in {worst}: {bad[worst]} of {entries[worst].counts.size}); their channels count alike"
    ]


def _checked(collector: Collector) -> dict[str, Entry]:
    """Refuse sums that would spoil every quantization made with them."""
    entries = {
        name: Entry(squares, collector.counts[name]) for name, squares in collector.squares.items()
    }
    if not entries:
        raise StepFailed("llama.cpp showed no matrix product of this model: nothing to calibrate")
    bad = sorted(name for name, entry in entries.items() if not np.isfinite(entry.squares).all())
    if bad:
        raise StepFailed(
            f"activations overflow in {len(bad)} tensors, first {bad[0]}",
            hint="convert the model to BF16 or F32 instead of F16, or check its weights",
        )
    return entries
