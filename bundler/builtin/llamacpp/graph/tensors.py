"""ggml's tensors as shapes only: operations make tensors, and a graph puts them in order.

A port of the shape rules of `ggml/src/ggml.c` (of the llama.cpp inside the llama-cpp-python 0.3.36
sdist) for the operations that language models use. Sizes are in bytes and shapes have the innermost
dimension first, as ggml's `ne` and `nb` have.
"""

from __future__ import annotations

from math import prod

from bundler.weights.ggml_types import BY_NAME

Shape = tuple[int, int, int, int]

VIEWS = frozenset({"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})
"""Operations that only look at another tensor (`ggml_is_view_op`)."""


class Tensor:
    """A tensor of a graph; what the allocator keeps of it stands beside what it is."""

    __slots__ = ("address", "allocated", "backend", "children", "held_on", "is_input", "is_output",
                 "is_weight", "name", "nb", "ne", "op", "seen", "size_bytes", "sources",
                 "stored_type", "type", "view_of", "views")  # fmt: skip

    def __init__(
        self,
        op: str,
        type_: str,
        ne: Shape,
        nb: Shape,
        sources: tuple[Tensor, ...] = (),
        view_of: Tensor | None = None,
    ) -> None:
        self.op = op
        self.type = type_
        self.ne = ne
        self.nb = nb
        self.sources = sources
        # A view of a view is a view of what that one looks at (`ggml_new_tensor_impl`).
        self.view_of: Tensor | None = view_of.view_of or view_of if view_of is not None else None
        self.size_bytes = stored_bytes(type_, ne, nb)
        self.name = ""
        self.held_on = -1
        """The backend whose buffer of weights or of cache it lies in; -1 for what is computed."""
        self.is_weight = False
        self.stored_type = ""
        """A weight's own type, where that matters: what is copied has it."""
        self.is_input = False
        self.is_output = False
        self.seen = False
        self.backend = -1
        self.children = 0
        self.views = 0
        self.allocated = False
        self.address = (0, 0)

    @property
    def values(self) -> int:
        """How many values it has."""
        return prod(self.ne)

    @property
    def is_contiguous(self) -> bool:
        """Whether its values lie in order without gaps (`ggml_is_contiguous`)."""
        return self.nb == strides(self.type, self.ne)

    def same_layout(self, other: Tensor) -> bool:
        """Tell whether type, shape and strides are the same (`ggml_are_same_layout`)."""
        return self.ne == other.ne and self.nb == other.nb and self.type == other.type

    def __repr__(self) -> str:
        return f"{self.op} {self.name} {self.type} {self.ne}"


def row_bytes(type_: str, values: int) -> int:
    """Return the bytes of a row (`ggml_row_size`)."""
    kind = BY_NAME[type_]
    return values // kind.block_values * kind.block_bytes


def strides(type_: str, ne: Shape) -> Shape:
    """Return the strides of a new tensor (`ggml_new_tensor_impl`)."""
    first = BY_NAME[type_].block_bytes
    second = row_bytes(type_, ne[0])
    third = second * ne[1]
    return (first, second, third, third * ne[2])


def stored_bytes(type_: str, ne: Shape, nb: Shape) -> int:
    """Return from the first byte of a tensor to its last, gaps included (`ggml_nbytes`)."""
    if 0 in ne:
        return 0
    kind = BY_NAME[type_]
    gaps = (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]
    if kind.block_values == 1:
        return kind.block_bytes + (ne[0] - 1) * nb[0] + gaps
    return ne[0] * nb[0] // kind.block_values + gaps


def new(type_: str, *dimensions: int, op: str = "NONE", sources: tuple[Tensor, ...] = ()) -> Tensor:
    """Make a tensor with a buffer of its own; missing dimensions are 1."""
    ne = shape(dimensions)
    return Tensor(op, type_, ne, strides(type_, ne), sources)


def shape(dimensions: tuple[int, ...]) -> Shape:
    """Fill dimensions up to four."""
    a, b, c, d = (*dimensions, 1, 1, 1)[:4]
    return (a, b, c, d)


def like(op: str, first: Tensor, *sources: Tensor) -> Tensor:
    """Make the result of an operation that keeps type and shape: ADD, MUL, RMS_NORM, ROPE…

    Strides are those of a new tensor whatever the source's are (`ggml_dup_tensor`).
    """
    return Tensor(op, first.type, first.ne, strides(first.type, first.ne), (first, *sources))


def product(matrix: Tensor, other: Tensor) -> Tensor:
    """`ggml_mul_mat`."""
    ne = (matrix.ne[1], other.ne[1], other.ne[2], other.ne[3])
    return Tensor("MUL_MAT", "F32", ne, strides("F32", ne), (matrix, other))


def expert_product(matrices: Tensor, other: Tensor, chosen: Tensor) -> Tensor:
    """`ggml_mul_mat_id`."""
    ne = (matrices.ne[1], chosen.ne[0], other.ne[2], 1)
    return Tensor("MUL_MAT_ID", "F32", ne, strides("F32", ne), (matrices, other, chosen))


def get_rows(table: Tensor, numbers: Tensor) -> Tensor:
    """`ggml_get_rows`: the rows that another tensor lists."""
    type_ = "I32" if table.type == "I32" else "F32"
    ne = (table.ne[0], numbers.ne[0], numbers.ne[1], numbers.ne[2])
    return Tensor("GET_ROWS", type_, ne, strides(type_, ne), (table, numbers))


def set_rows(table: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """`ggml_set_rows`: a view of the table, whose rows are overwritten."""
    return Tensor("SET_ROWS", table.type, table.ne, table.nb, (rows, numbers, table), table)


def copy_into(source: Tensor, target: Tensor) -> Tensor:
    """`ggml_cpy`: a view of the target."""
    return Tensor("CPY", target.type, target.ne, target.nb, (source, target), target)


def cast(source: Tensor, type_: str) -> Tensor:
    """`ggml_cast`: a copy of another type, which is a source of itself too."""
    made = new(type_, *source.ne, op="CPY")
    made.sources = (source, made)
    return made


def gated(gate: Tensor, other: Tensor) -> Tensor:
    """`ggml_glu_split`: swiglu, geglu and the like of two halves."""
    return Tensor("GLU", gate.type, gate.ne, strides(gate.type, gate.ne), (gate, other))


def gated_halves(both: Tensor) -> Tensor:
    """`ggml_glu` of one tensor that holds both halves."""
    ne = (both.ne[0] // 2, *both.ne[1:])
    return Tensor("GLU", both.type, ne, strides(both.type, ne), (both,))


def sum_rows(source: Tensor) -> Tensor:
    """`ggml_sum_rows`."""
    return new(source.type, 1, *source.ne[1:], op="SUM_ROWS", sources=(source,))


def sorted_order(source: Tensor) -> Tensor:
    """`ggml_argsort`."""
    return new("I32", *source.ne, op="ARGSORT", sources=(source,))


def best(source: Tensor, count: int) -> Tensor:
    """`ggml_argsort_top_k`: the first few of the sorted order, as a view of it."""
    order = sorted_order(source)
    return view(order, (count, *source.ne[1:]), order.nb[1:])


def contiguous(source: Tensor, *dimensions: int) -> Tensor:
    """`ggml_cont`, or `ggml_cont_2d` and so on when dimensions are given."""
    return new(source.type, *(dimensions or source.ne), op="CONT", sources=(source,))


def concat(first: Tensor, second: Tensor, dimension: int) -> Tensor:
    """`ggml_concat`."""
    ne = list(first.ne)
    ne[dimension] += second.ne[dimension]
    return new(first.type, *ne, op="CONCAT", sources=(first, second))


def view(source: Tensor, ne: tuple[int, ...], nb: tuple[int, ...] = ()) -> Tensor:
    """`ggml_view_1d` to `ggml_view_4d`: `nb` are the strides after the first."""
    full = shape(ne)
    steps = [strides(source.type, full)[0]]
    steps.append(nb[0] if nb else row_bytes(source.type, full[0]))
    steps.append(nb[1] if len(nb) > 1 else steps[1] * full[1])
    steps.append(nb[2] if len(nb) > 2 else steps[2] * full[2])
    a, b, c, d = steps
    return Tensor("VIEW", source.type, full, (a, b, c, d), (source,), source)


def reshape(source: Tensor, *dimensions: int) -> Tensor:
    """`ggml_reshape_2d` and so on."""
    ne = shape(dimensions)
    return Tensor("RESHAPE", source.type, ne, strides(source.type, ne), (source,), source)


def permute(source: Tensor, *axes: int) -> Tensor:
    """`ggml_permute`: `axes[i]` is where dimension i goes."""
    ne, nb = [0] * 4, [0] * 4
    for index, axis in enumerate(axes):
        ne[axis], nb[axis] = source.ne[index], source.nb[index]
    return Tensor("PERMUTE", source.type, shape(tuple(ne)), shape(tuple(nb)), (source,), source)


def transpose(source: Tensor) -> Tensor:
    """`ggml_transpose`."""
    (a, b, c, d), (e, f, g, h) = source.ne, source.nb
    return Tensor("TRANSPOSE", source.type, (b, a, c, d), (f, e, g, h), (source,), source)


class Graph:
    """Tensors in the order in which they are computed, and those that are only read."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.layer_inputs: list[Tensor] = []
        """What each layer begins with."""
        self.kept: dict[int, list[Tensor]] = {}
        """id of a node → what a backend that fuses operations keeps until it is computed."""

    def expand(self, tensor: Tensor) -> None:
        """Add a tensor behind all that it needs (`ggml_build_forward_expand`)."""
        if tensor.seen:
            return
        tensor.seen = True
        for source in tensor.sources:
            self.expand(source)
        (self.leaves if tensor.op == "NONE" else self.nodes).append(tensor)


def given(type_: str, *dimensions: int, name: str = "") -> Tensor:
    """Make an input of the graph: what the host fills in before each run."""
    made = new(type_, *dimensions)
    made.is_input = True
    made.name = name
    return made


def held(type_: str, *dimensions: int, backend: int = 0, name: str = "") -> Tensor:
    """Make a part of the cache: it lies in a buffer of its own already."""
    made = new(type_, *dimensions)
    made.held_on = backend
    made.name = name
    return made


def weight(stored_type: str, *dimensions: int, backend: int, name: str) -> Tensor:
    """Make a weight. Its type decides only how large a copy of it is."""
    made = held("F32", *dimensions, backend=backend, name=name)
    made.is_weight = True
    made.stored_type = stored_type
    return made
