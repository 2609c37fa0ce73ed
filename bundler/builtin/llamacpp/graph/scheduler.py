"""Which backend computes what, and what is copied for it: `ggml_backend_sched_split_graph`.

A port of `ggml/src/ggml-backend.cpp` of the llama.cpp inside the llama-cpp-python 0.3.36 sdist, for
backends that support every operation. Backends are given best first, the CPU last.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundler.builtin.llamacpp.graph.backends import Backend
from bundler.builtin.llamacpp.graph.tensors import VIEWS, Graph, Tensor, new

_FREE = frozenset({"ROPE", "FLASH_ATTN_EXT"})
"""Operations whose small weights do not decide where they run."""
_MOST_SOURCES = 10
PIPELINE_COPIES = 4
"""GGML_SCHED_MAX_COPIES: of all that is handed over, when several devices work in a pipeline."""


def schedule(graph: Graph, backends: Sequence[Backend], *, pipeline: bool = False) -> Graph:
    """Give every tensor a backend; return the graph with the copies that this needs.

    `pipeline` is what llama.cpp does with several devices that hold all layers between them.
    """
    cpu = len(backends) - 1
    if cpu == 0:
        for tensor in (*graph.leaves, *graph.nodes):
            tensor.backend = 0
        return graph
    computed = [node for node in graph.nodes if node.op not in VIEWS]
    for tensor in (*graph.leaves, *graph.nodes):
        tensor.backend = _first_choice(tensor, backends)
    _expand(computed, cpu)
    _expand(computed[::-1], cpu)
    _expand(computed, -1)
    _expand(computed[::-1], -1)
    _rest(graph)
    return _Split(graph, backends, PIPELINE_COPIES if pipeline else 1).finish()


def _first_choice(tensor: Tensor, backends: Sequence[Backend]) -> int:
    """Where a tensor must be, or where its weights are (`backend_id_from_cur`)."""
    owner = tensor.view_of or tensor
    cpu = len(backends) - 1
    if owner.held_on >= 0:
        return owner.held_on
    if tensor.is_input:
        return cpu
    if tensor.op in _FREE:
        return -1
    for source in tensor.sources:
        if source.is_weight:
            if source.held_on == cpu:
                for number in range(cpu):
                    if backends[number].offloads(tensor):
                        return number
            return source.held_on
    return -1


def _expand(nodes: Sequence[Tensor], stop_at: int) -> None:
    """Give nodes the backend of their neighbour; one on backend `stop_at` gives none on."""
    current = -1
    for node in nodes:
        if node.backend >= 0:
            current = -1 if node.backend == stop_at else node.backend
        elif current >= 0:
            node.backend = current


def _rest(graph: Graph) -> None:
    """Views go with what they look at, sources with what needs them."""
    for node in graph.nodes:
        if node.backend < 0 and node.view_of is not None:
            node.backend = node.view_of.backend
        for source in node.sources:
            if source.backend < 0:
                owner = source.view_of
                source.backend = owner.backend if owner is not None else node.backend
        node.backend = max(node.backend, 0)


class _Split:
    """Cuts a graph where the backend changes, and puts in what must be copied there."""

    def __init__(self, graph: Graph, backends: Sequence[Backend], copies: int) -> None:
        self._graph = graph
        self._backends = backends
        self._copies = copies
        self._made: dict[tuple[int, int], list[Tensor]] = {}
        self._new = Graph()
        self._new.layer_inputs = graph.layer_inputs
        self._inputs: list[tuple[Tensor, Tensor]] = []
        self._pending: list[Tensor] = []
        self._extra_leaves: list[Tensor] = []

    def finish(self) -> Graph:
        """Return the new graph."""
        current = next(node.backend for node in self._graph.nodes if node.op not in VIEWS)
        for node in self._graph.nodes:
            if node.op in VIEWS:
                self._pending.append(node)
                continue
            if node.backend != current or self._needs_new_split(node, current):
                self._flush()
                current = node.backend
            node.sources = tuple(self._on(source, current) for source in node.sources)
            self._pending.append(node)
        self._flush()
        leaves = self._graph.leaves
        if self._copies > 1:
            leaves = [*self._copied_inputs(), *self._extra_leaves, *leaves]
        self._new.leaves = leaves
        return self._new

    def _needs_new_split(self, node: Tensor, current: int) -> bool:
        """Begin anew before the next offloaded weight, so that it takes the room of the last."""
        return bool(self._inputs) and any(
            source.is_weight and source.backend != current and not self._readable(source, current)
            for source in node.sources
        )

    def _readable(self, source: Tensor, backend: int) -> bool:
        """Tell whether a backend can read where a tensor lies: the CPU's own buffers and no other."""
        owner = source.view_of or source
        place = owner.held_on if owner.held_on >= 0 else source.backend
        return place == backend

    def _on(self, source: Tensor, backend: int) -> Tensor:
        """Return a source, or its copy on a backend that cannot read it."""
        if source.backend == backend or self._readable(source, backend):
            return source
        key = (id(source), backend)
        if key not in self._made:
            self._made[key] = [self._copy(source, backend) for _ in range(self._copies)]
            self._inputs.append((source, self._made[key][0]))
            if self._copies > 1:
                self._extra_leaves += self._made[key]
        return self._made[key][0]

    def _copy(self, source: Tensor, backend: int) -> Tensor:
        made = Tensor("NONE", source.stored_type or source.type, source.ne, source.nb)
        if source.stored_type:
            made = new(source.stored_type, *source.ne)
        made.name = source.name
        made.backend = backend
        made.is_input = made.is_output = self._copies > 1
        return made

    def _flush(self) -> None:
        """Add the copies of a split, then its nodes."""
        for source, copy in self._inputs:
            until = Tensor("NONE", source.type, source.ne, source.nb, (source,), source)
            until.backend = source.backend
            self._new.nodes += [until, copy]
        self._inputs = []
        for node in self._pending:
            self._new.nodes.append(node)
            kept = self._graph.kept.get(id(node), ())
            if kept and self._backends[node.backend].fuses:
                for first in range(0, len(kept), _MOST_SOURCES):
                    some = tuple(kept[first : first + _MOST_SOURCES])
                    until = Tensor("NONE", some[0].type, some[0].ne, some[0].nb, some, some[0])
                    until.backend = node.backend
                    self._new.nodes.append(until)
        self._pending = []

    def _copied_inputs(self) -> list[Tensor]:
        """All copies of what the host fills in, so that it can fill in the next batch's meanwhile."""
        found = []
        for leaf in self._graph.leaves:
            if leaf.is_input:
                leaf.is_output = True
                found += [leaf, *(self._copy(leaf, leaf.backend) for _ in range(self._copies - 1))]
        return found
