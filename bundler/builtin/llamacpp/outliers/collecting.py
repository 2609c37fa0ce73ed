"""Sums over activations while llama.cpp computes. Runs only in a child process.

llama.cpp calls us for every node of the graph. Read are what norms give, what goes into the matrices
that no norm feeds, the residual stream behind each layer, and the attention's shares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import ggml, native
from bundler.inspection import NEAR_ZERO

Floats = npt.NDArray[np.float32]
_F32 = 0  # enum ggml_type
_NORM = re.compile(r"(blk\.\d+\.)?(attn_norm|ffn_norm|output_norm|attn_post_norm|ffn_post_norm|"
                   r"post_attention_norm|post_ffw_norm)\.weight")  # fmt: skip
_INPUT = re.compile(r"blk\.\d+\.(attn_output|ffn_down|ffn_down_exps|ffn_down_shexp)\.weight")
_STREAM, _ATTENTION = re.compile(r"l_out-(\d+)"), re.compile(r"kq_soft_max-(\d+)")
_LATER_TOKENS = 16
"""A key is judged by at least so many later queries: the last few draw much from few."""


@dataclass
class Sums:
    """What is added up of one place."""

    kind: str
    squares: npt.NDArray[np.float64]
    fourths: float = 0.0
    largest: float = 0.0
    values: int = 0
    beyond: int = 0
    near_zero: int = 0
    near_zero_worst: float = 0.0

    def add(self, rows: Floats) -> None:
        """Add the values of some tokens: (tokens, channels)."""
        squared = rows.astype(np.float64) ** 2
        self.squares += squared.sum(axis=0)
        self.fourths += float((squared**2).sum())
        self.largest = max(self.largest, float(np.sqrt(squared.max())))
        self.values += squared.size
        self.beyond += int((squared > 36 * squared.mean()).sum())
        small = squared < NEAR_ZERO**2 * squared.mean(axis=1, keepdims=True)
        self.near_zero += int(small.sum())
        self.near_zero_worst = max(self.near_zero_worst, float(small.mean(axis=1).max()))


@dataclass
class Largest:
    """The largest value of one layer's residual stream."""

    value: float = 0.0
    ratio: float = 0.0
    channel: int = 0
    window: int = 0
    position: int = 0


@dataclass
class Shares:
    """Shares of attention by key, added up over windows and heads."""

    by_key: npt.NDArray[np.float64]
    windows: int = 0


@dataclass
class Collector:
    """Collects; `callback` is what llama.cpp calls for each node."""

    sums: dict[str, Sums] = field(default_factory=dict)
    stream: dict[int, Largest] = field(default_factory=dict)
    shares: dict[int, Shares] = field(default_factory=dict)
    failure: BaseException | None = None
    _window: int = -1
    _tokens: int = 0

    def __post_init__(self) -> None:
        ggml.check_layout()
        self._product = ggml.operation("MUL")
        self._matrices = (ggml.operation("MUL_MAT"), ggml.operation("MUL_MAT_ID"))
        self.callback = native.llama().ggml_backend_sched_eval_callback(self._called)

    def begin(self, tokens: Sequence[int]) -> None:
        """Start a window."""
        self._window += 1
        self._tokens = len(tokens)

    def finish(self) -> None:
        """Raise what went wrong inside the callback, from where it could not be raised."""
        if self.failure is not None:
            raise self.failure

    def _called(self, address: int, ask: bool, _data: Any) -> bool:
        try:
            node = ggml.tensor_at(address)
            what = self._what(node)
            if ask or not what:
                return bool(what)
            self._collect(what, node, address)
        except BaseException as error:  # noqa: BLE001 - ctypes would swallow it
            self.failure = self.failure or error
            return False
        return True

    def _what(self, node: Any) -> str:
        """Say what a node is to us: the name of a weight or of the node, or nothing."""
        if node.type != _F32 and node.op not in self._matrices:
            return ""
        if node.op == self._product:
            weight = ggml.weight_name(ggml.tensor_at(node.src[1]))
            return weight if _NORM.fullmatch(weight) else ""
        if node.op in self._matrices:
            weight = ggml.weight_name(ggml.tensor_at(node.src[0]))
            source = ggml.tensor_at(node.src[1])
            return weight if _INPUT.fullmatch(weight) and source.type == _F32 else ""
        name = ggml.weight_name(node)
        return name if _STREAM.fullmatch(name) or _ATTENTION.fullmatch(name) else ""

    def _collect(self, what: str, node: Any, address: int) -> None:
        if match := _STREAM.fullmatch(what):
            self._collect_stream(int(match[1]), _rows(ggml.read_floats(address)))
        elif match := _ATTENTION.fullmatch(what):
            self._collect_attention(int(match[1]), ggml.read_floats(address)[0])
        elif node.op == self._product:
            self._add(what, "norm", _rows(ggml.read_floats(address)))
        else:
            self._add(what, "input", _rows(ggml.read_floats(node.src[1])))

    def _add(self, weight: str, kind: str, rows: Floats) -> None:
        place = weight.removesuffix(".weight")
        if place not in self.sums:
            self.sums[place] = Sums(kind, np.zeros(rows.shape[-1]))
        self.sums[place].add(rows)

    def _collect_stream(self, layer: int, rows: Floats) -> None:
        sizes = np.abs(rows)
        position, channel = np.unravel_index(int(sizes.argmax()), sizes.shape)
        value = float(rows[position, channel])
        best = self.stream.setdefault(layer, Largest())
        if abs(value) > abs(best.value):
            middle = max(float(np.median(sizes[position])), 1e-30)
            self.stream[layer] = Largest(
                value, abs(value) / middle, int(channel), self._window, int(position)
            )

    def _collect_attention(self, layer: int, shares: Floats) -> None:
        """Add up what each token draws of the attention of those after it; (heads, queries, keys)."""
        count = self._tokens
        drawn = shares[:, :count, :count].mean(axis=0, dtype=np.float64)
        keys = max(1, count - _LATER_TOKENS)
        later = np.tril(np.ones((count, count), bool), -1)[:, :keys]
        means = (drawn[:, :keys] * later).sum(axis=0) / np.maximum(later.sum(axis=0), 1)
        found = self.shares.setdefault(layer, Shares(np.zeros(keys)))
        found.by_key[: len(means)] += means
        found.windows += 1


def _rows(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])
