"""What llama.cpp itself says it holds in memory, by backend.

Runs only in a child process. `llama_get_memory_breakdown` is C++ and returns a `std::map`: where
the library is built with libstdc++ the map is walked by ctypes and checked; elsewhere the figures
come from the log, rounded to 0.01 MiB.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import defaultdict
from typing import Any, NamedTuple

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.session import Context
from bundler.errors import StepFailed

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
_LINE = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB", re.MULTILINE)
_COLUMN = {"model": 0, "KV": 1, "RS": 1, "output": 1, "compute": 2}
_MOST_BACKENDS = 64


class Buffers(NamedTuple):
    """Bytes one backend holds."""

    weights: int
    context: int
    """KV cache, recurrent state and output buffer."""
    compute: int

    @property
    def total(self) -> int:
        return sum(self)


class _Map(ctypes.Structure):
    """`std::map` of libstdc++: comparator, the header node, the count. 48 bytes."""

    _fields_ = (
        ("compare", ctypes.c_size_t), ("color", ctypes.c_size_t), ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p), ("right", ctypes.c_void_p), ("count", ctypes.c_size_t),
    )  # fmt: skip


class _Node(ctypes.Structure):
    """A node of the red-black tree, with its key (a buffer type) and value."""

    _fields_ = (
        ("color", ctypes.c_size_t), ("parent", ctypes.c_void_p), ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p), ("buffer_type", ctypes.c_void_p),
        ("weights", ctypes.c_size_t), ("context", ctypes.c_size_t), ("compute", ctypes.c_size_t),
    )  # fmt: skip


def memory_by_backend(
    context: Context, *, not_allocated: bool = False
) -> tuple[dict[str, Buffers], str]:
    """Return what each backend holds for this context and its model, and how it is known.

    The second value is `breakdown` (exact) or `log`. What is `not_allocated` only the breakdown
    knows: the log then has no sizes of weights and cache.

    Raises:
        StepFailed: nothing is allocated and this build has no breakdown that can be read.
    """
    logged = from_log(context.model.log + context.log)
    if sys.platform == "linux" and native.has_symbol(_SYMBOL):
        exact = _walk(context)
        if exact is not None and (not_allocated or _agree(exact, logged)):
            return exact, "breakdown"
    if not_allocated:
        raise StepFailed(
            "this build of llama.cpp does not say what it would allocate",
            hint="use llama-cpp-python 0.3.36 on Linux, or measure on such a machine",
        )
    return logged, "log"


def from_log(log: str) -> dict[str, Buffers]:
    """Add up the log's lines about buffers, by backend; mapped weights belong to the CPU."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for backend, what, mebibytes in _LINE.findall(log):
        name = backend.removesuffix("_Mapped")
        sums[name][_COLUMN[what]] += round(float(mebibytes) * 2**20)
    return {name: Buffers(*figures) for name, figures in sorted(sums.items())}


def _walk(context: Context) -> dict[str, Buffers] | None:
    """Walk the map; None when it does not look like one of libstdc++."""
    get = native.symbol(_SYMBOL, _Map, ctypes.c_void_p)
    name_of = native.symbol("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    found = get(context.pointer)
    if not 0 < found.count <= _MOST_BACKENDS:
        return None
    out: dict[str, Buffers] = {}
    pending = [found.parent]
    while pending and len(out) <= found.count:
        address = pending.pop()
        if not address:
            continue
        node: Any = _Node.from_address(address)
        name = name_of(node.buffer_type).decode("utf-8", "replace")
        out[name] = Buffers(node.weights, node.context, node.compute)
        pending += [node.left, node.right]
    return dict(sorted(out.items())) if len(out) == found.count else None


def _agree(exact: dict[str, Buffers], logged: dict[str, Buffers]) -> bool:
    """Hold the walked totals against the log's, which are rounded line by line."""
    walked, said = (sum(b.total for b in side.values()) for side in (exact, logged))
    return abs(walked - said) <= 0.001 * said + 2**18
