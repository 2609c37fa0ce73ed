"""ggml's graph allocator, faithfully: where each tensor of a graph lies, and how much that takes.

A port of `ggml/src/ggml-alloc.c` of the llama.cpp inside the llama-cpp-python 0.3.36 sdist. Each
backend has one growing space; a tensor goes into the smallest hole that is large enough, takes the
place of a source that nobody needs any more where its operation allows that, and is freed behind
its last use.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bundler.builtin.llamacpp.graph.tensors import Graph, Tensor

IN_PLACE = frozenset(
    [
        "FILL",
        "SCALE",
        "DIAG_MASK_ZERO",
        "DIAG_MASK_INF",
        "ADD",
        "ADD_ID",
        "ADD1",
        "SUB",
        "MUL",
        "DIV",
        "SQR",
        "SQRT",
        "LOG",
        "UNARY",
        "ROPE",
        "ROPE_BACK",
        "SILU_BACK",
        "RMS_NORM",
        "RMS_NORM_BACK",
        "CLAMP",
        "SOFT_MAX",
        "SOFT_MAX_BACK",
    ]
)
"""Operations that may overwrite a source (`ggml_op_can_inplace`)."""
MOST_CHUNKS = 16
UNLIMITED_BYTES = 1 << 62


@dataclass(frozen=True)
class BufferKind:
    """What the allocator must know of a backend's buffers."""

    alignment: int
    largest_bytes: int = UNLIMITED_BYTES
    """The largest single buffer; a space that grows beyond it continues in another."""


class Space:
    """One backend's memory: chunks with their holes (`ggml_dyn_tallocr`)."""

    def __init__(self, kind: BufferKind) -> None:
        self._kind = kind
        self._holes: list[list[list[int]]] = []
        """Of each chunk, sorted: [offset, size]. The last reaches to the chunk's end."""
        self.peaks: list[int] = []
        """Bytes each chunk came to need."""

    def state(self) -> Hashable:
        """Return all holes: where the next tensors will go depends on nothing else."""
        return tuple(tuple(map(tuple, holes)) for holes in self._holes)

    def padded(self, size: int) -> int:
        """Return a size rounded up to the alignment."""
        return -(-size // self._kind.alignment) * self._kind.alignment

    def take(self, size: int) -> tuple[int, int]:
        """Find room; return the chunk and the offset in it."""
        size = self.padded(size)
        chunk, index = self._best_hole(size)
        if index < 0:
            chunk, index = self._best_end(size)
        if index < 0:
            chunk, index = self._new_chunk(size), 0
        hole = self._holes[chunk][index]
        offset = hole[0]
        hole[0] += size
        hole[1] -= size
        if hole[1] == 0:
            del self._holes[chunk][index]
        self.peaks[chunk] = max(self.peaks[chunk], offset + size)
        return chunk, offset

    def _best_hole(self, size: int) -> tuple[int, int]:
        found = (-1, -1)
        for chunk, holes in enumerate(self._holes):
            smallest = UNLIMITED_BYTES
            for index in range(len(holes) - 1):
                room = holes[index][1]
                if size <= room <= smallest:
                    found, smallest = (chunk, index), room
        return found

    def _best_end(self, size: int) -> tuple[int, int]:
        """Choose a chunk to grow: the one that grows least, or wastes least if none must grow."""
        found, best = (-1, -1), -UNLIMITED_BYTES
        for chunk, holes in enumerate(self._holes):
            if not holes:
                continue
            offset, room = holes[-1]
            spare = self.peaks[chunk] - offset - size
            if room >= size and ((best < 0 and spare > best) or 0 <= spare < best):
                found, best = (chunk, len(holes) - 1), spare
        return found

    def _new_chunk(self, size: int) -> int:
        last = len(self._holes) == MOST_CHUNKS - 1
        room = UNLIMITED_BYTES if last else max(size, self._kind.largest_bytes)
        self._holes.append([[0, room]])
        self.peaks.append(0)
        return len(self._holes) - 1

    def give_back(self, address: tuple[int, int], size: int) -> None:
        """Free a range, joining it with the holes beside it."""
        size = self.padded(size)
        chunk, offset = address
        holes = self._holes[chunk]
        for index, hole in enumerate(holes):
            if hole[0] + hole[1] == offset:
                hole[1] += size
                if index + 1 < len(holes) and hole[0] + hole[1] == holes[index + 1][0]:
                    hole[1] += holes.pop(index + 1)[1]
                return
            if offset + size == hole[0]:
                hole[0] = offset
                hole[1] += size
                if index and holes[index - 1][0] + holes[index - 1][1] == offset:
                    holes[index - 1][1] += holes.pop(index)[1]
                return
        position = 0
        while position < len(holes) and holes[position][0] < offset:
            position += 1
        holes.insert(position, [offset, size])


class Allocator:
    """Places the tensors of one graph (`ggml_gallocr`)."""

    def __init__(self, kinds: Sequence[BufferKind]) -> None:
        self._spaces = [Space(kind) for kind in kinds]
        self.states: list[Hashable] = []
        """Where everything lay before each layer."""

    def reserve(self, graph: Graph) -> list[int]:
        """Place all tensors; return the bytes of each backend's buffer."""
        layers = {id(tensor) for tensor in graph.layer_inputs}
        for leaf in graph.leaves:
            self._allocate(leaf, leaf.backend)
        for node in graph.nodes:
            self._count(node)
        for node in graph.nodes:
            self._place(node)
            if id(node) in layers:
                self.states.append((node.address, *(space.state() for space in self._spaces)))
        return [sum(space.peaks) for space in self._spaces]

    def _count(self, node: Tensor) -> None:
        """Count uses, and place inputs first so that nothing overwrites them."""
        if node.view_of is not None and node.op != "NONE":
            node.view_of.views += 1
        if node.is_input:
            self._allocate(node, node.backend)
        for source in node.sources:
            source.children += 1
            if source.is_input:
                self._allocate(source, node.backend)

    def _place(self, node: Tensor) -> None:
        for source in node.sources:
            self._allocate(source, node.backend)
        self._allocate(node, node.backend)
        for source in node.sources:
            source.children -= 1
            if source.children or source.views:
                continue
            seen = source.view_of
            if seen is not None:
                seen.views -= 1
                if not seen.views and not seen.children and seen.allocated:
                    self._free(seen)
            elif source.allocated:
                self._free(source)

    def _allocate(self, tensor: Tensor, backend: int) -> None:
        if tensor.held_on >= 0 or tensor.allocated or tensor.view_of is not None:
            return
        tensor.allocated = True
        if tensor.op in IN_PLACE and self._take_over(tensor):
            return
        tensor.backend = backend
        tensor.address = self._spaces[backend].take(tensor.size_bytes)

    def _take_over(self, tensor: Tensor) -> bool:
        """Put a tensor where a source lies that nobody else needs. Views are never taken over."""
        for source in tensor.sources:
            if not source.allocated or source.is_output or not tensor.same_layout(source):
                continue
            if source.children == 1 and not source.views:
                tensor.backend, tensor.address = source.backend, source.address
                source.allocated = False
                return True
        return False

    def _free(self, tensor: Tensor) -> None:
        if tensor.is_output:
            return
        self._spaces[tensor.backend].give_back(tensor.address, tensor.size_bytes)
        tensor.allocated = False
