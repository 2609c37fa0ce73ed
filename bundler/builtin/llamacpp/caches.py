"""What a model remembers between tokens: keys and values, and the states of recurrent layers. Pure.

Exact to the byte: what src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp and
src/llama-memory-recurrent.cpp of the llama.cpp inside the llama-cpp-python 0.3.36 sdist allocate.
"""

from __future__ import annotations

from bundler.builtin.llamacpp.graph.backends import CPU, Backend
from bundler.builtin.llamacpp.graph.shape import (
    KV_TYPES,
    Run,
    is_latent,
    model_of,
    padded,
    sliding_cells,
    state_sizes,
)
from bundler.builtin.llamacpp.graph.tensors import held
from bundler.lock import ModelFacts

NO_CACHE = frozenset({"bert", "nomic-bert", "jina-bert-v2", "jina-bert-v3", "modern-bert"})
"""Encoders: `llama_model::create_memory` makes no KV cache for them."""

RECURRENT = frozenset({"granitehybrid"})
"""Architectures whose layers without key/value heads keep states instead."""


def kv_cache_bytes(facts: ModelFacts, run: Run, backend: Backend = CPU) -> list[int]:
    """Return the bytes of each layer's KV cache, for all users (`llama_kv_cache`).

    `backend` is where they lie: alignment, and what a device adds behind quantized rows.
    """
    if facts.architecture in NO_CACHE:
        return [0] * facts.layers
    kinds = model_of(facts).cache_kinds
    sizes = {kind: _layer_bytes(facts, run, backend, *kind) for kind in set(kinds)}
    if facts.architecture in RECURRENT:
        sizes[0, False] = state_bytes(facts, run, backend)
    return [sizes[kind] for kind in kinds]


def state_bytes(facts: ModelFacts, run: Run, backend: Backend = CPU) -> int:
    """Return the states of one recurrent layer, for all users (`llama_memory_recurrent`)."""
    sizes = state_sizes(facts)
    values = (sizes.conv_values, sizes.scan_values)
    return sum(padded(4 * each * run.parallel, backend.buffers.alignment) for each in values)


def _layer_bytes(facts: ModelFacts, run: Run, backend: Backend, heads: int, sliding: bool) -> int:
    """Return one layer's: a row of keys and one of values for each cell of each user."""
    cells = sliding_cells(facts, run) if sliding else run.cells
    type_ = KV_TYPES[run.kv_cache]
    # Latent attention keeps one row from which values are made as well.
    widths = (facts.head_dim_key, *(() if is_latent(facts) else (facts.head_dim_value,)))
    tensors = [held(type_, heads * width, cells, run.parallel) for width in widths]
    return sum(padded(backend.size(tensor), backend.buffers.alignment) for tensor in tensors)
