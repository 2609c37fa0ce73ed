"""Changing the weights of a model that is open, one tensor at a time. Only in a child process.

The model is opened without mapping its file and without repacked copies, so that its weights lie in
memory of their own, as they are stored. llama.cpp shows each of them when it computes: the first
operand of a matrix product or of a lookup of rows. Writing goes through `ggml_backend_tensor_set`,
which reaches an accelerator's memory as well.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp import ggml, native
from bundler.builtin.llamacpp.allocation.matrices import Floats, Matrix, Stored, Weights, narrowed
from bundler.builtin.llamacpp.session import Context, open_context, open_model
from bundler.errors import StepFailed

_OPERATIONS = ("MUL_MAT", "MUL_MAT_ID", "GET_ROWS")
_NO_MAPPING = 0  # LLAMA_LOAD_MODE_NONE
Change = Callable[[Floats, int], Floats]
"""Rows of one of a tensor's matrices, and that matrix's number → what to put there."""


class Finder:
    """Notes where each weight lies while llama.cpp computes."""

    def __init__(self) -> None:
        ggml.check_layout()
        self.addresses: dict[str, list[int]] = {}
        self.failure: BaseException | None = None
        self._wanted = {ggml.operation(name) for name in _OPERATIONS}
        self.callback = native.llama().ggml_backend_sched_eval_callback(self._called)

    def _called(self, address: int, ask: bool, _data: Any) -> bool:
        try:
            if ask:
                self._look(ggml.tensor_at(address))
        except BaseException as error:  # noqa: BLE001 - ctypes would swallow it: `Live` raises it
            self.failure = self.failure or error
        return False

    def _look(self, node: Any) -> None:
        if node.op not in self._wanted or not node.src[0]:
            return
        tensor = ggml.tensor_at(node.src[0])
        name = str(tensor.name.decode("utf-8", "replace"))
        # A copy that the scheduler made for one product is written anew for each: not the weight.
        if name.endswith(".weight") and "#" not in name:
            found = self.addresses.setdefault(name, [])
            if node.src[0] not in found:
                found.append(node.src[0])


class Live:
    """An open model whose weights can be changed and put back."""

    def __init__(self, weights: Weights, context: Context, finder: Finder) -> None:
        self.context = context
        self._weights = weights
        self._finder = finder
        self._set = native.symbol(
            "ggml_backend_tensor_set", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t,
            ctypes.c_size_t,
        )  # fmt: skip

    def find(self, tokens: Sequence[int]) -> None:
        """Decode once, to learn where the weights are."""
        self.context.clear()
        self.context.decode(tokens, logits_from=0)
        if self._finder.failure is not None:
            raise self._finder.failure

    def seen(self, name: str) -> bool:
        """Tell whether llama.cpp showed this weight."""
        return name in self._finder.addresses

    def change(self, name: str, change: Change) -> None:
        """Put other values in a weight's place."""
        matrix = self._weights.matrix(name)
        for rows in matrix.blocks():
            put = change(matrix.read(rows), matrix.expert_of(rows.start))
            self._write(matrix, rows.start, narrowed(put, matrix.type))

    def restore(self, name: str) -> None:
        """Put the stored values back, bit by bit."""
        matrix = self._weights.matrix(name)
        for rows in matrix.blocks():
            self._write(matrix, rows.start, matrix.stored(rows))

    def _write(self, matrix: Matrix, first_row: int, stored: Stored) -> None:
        raw = np.ascontiguousarray(stored)
        offset = first_row * matrix.row_values * raw.itemsize
        for address in self._finder.addresses[matrix.name]:
            _check_same(matrix, address)
            self._set(address, raw.ctypes.data, offset, raw.nbytes)


def _check_same(matrix: Matrix, address: int) -> None:
    """Refuse to write where another tensor lies than the file's."""
    size = native.symbol("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)(address)
    expected = matrix.rows * matrix.row_values * matrix.item_bytes
    if size != expected:
        raise StepFailed(
            f"llama.cpp holds {matrix.name} in {size} bytes, its file has {expected}",
            where="model.gguf",
        )


@contextlib.contextmanager
def open_live(path: Path, *, window_tokens: int, gpu: bool) -> Iterator[Live]:
    """Open a model whose weights can be changed. Raises UnsafeInput, MemoryError, StepFailed."""
    finder = Finder()
    with (
        open_model(path, gpu=gpu, load_mode=_NO_MAPPING, use_extra_bufts=False) as model,
        open_context(
            model, context_tokens=window_tokens, batch_tokens=window_tokens, cb_eval=finder.callback
        ) as context,
    ):
        yield Live(Weights(path), context, finder)
