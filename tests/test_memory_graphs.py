"""Our graphs and our allocator against llama.cpp's own, and what must hold for all graphs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.graph.allocator import Allocator, BufferKind
from bundler.builtin.llamacpp.graph.blocks import Blocks
from bundler.builtin.llamacpp.graph.families import FAMILIES
from bundler.builtin.llamacpp.graph.repetition import stretches
from bundler.builtin.llamacpp.graph.reserve import compute_buffers
from bundler.builtin.llamacpp.graph.shape import Model, Run, Site, ThinPair
from bundler.builtin.llamacpp.graph.tensors import Graph, Tensor, like, new
from bundler.builtin.llamacpp.placement import placement_of
from bundler.lock import ModelFacts
from bundler.weights.gguf_writer import TensorPlan, field
from tests.adapters import write_adapter
from tests.memory_cases import CARD, SHAPES, ask, cells_of, types_of
from tests.published_shapes import CELLS, PUBLISHED, cell
from tests.shapes import facts_of


def built(facts: ModelFacts, run: Run) -> Graph:
    site = Site((0,) * (facts.layers + 1), 0, tuple(range(facts.layers)), {})
    blocks = Blocks(Model(facts), run, site, run.tokens, run.outputs)
    FAMILIES[facts.architecture](blocks)
    return blocks.graph


def told(answer: dict[str, Any]) -> Graph:
    """Turn the graph that llama.cpp described into one of ours."""
    tensors = [
        Tensor(op, type_, tuple(ne), tuple(nb)) for op, type_, ne, nb, *_ in answer["tensors"]
    ]
    for tensor, (*_, sources, view_of, flags, _, name) in zip(
        tensors, answer["tensors"], strict=True
    ):
        tensor.sources = tuple(tensors[number] for number in sources)
        tensor.view_of = tensors[view_of] if view_of >= 0 else None
        tensor.is_input, tensor.is_output, tensor.name = bool(flags & 1), bool(flags & 2), name
        tensor.held_on = 0 if tensor.op == "NONE" and not tensor.is_input else -1
    graph = Graph()
    graph.nodes = [tensors[number] for number in answer["nodes"]]
    graph.leaves = [tensors[number] for number in answer["leaves"]]
    return graph


def described(node: Tensor) -> tuple[Any, ...]:
    sources = [(source.op, source.ne) for source in node.sources]
    strides = node.nb if node.view_of is None or node.view_of.held_on < 0 else ()
    return (node.op, node.type, node.ne, strides, node.view_of is None, node.is_output, sources)


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Qwen3-30B-A3B", "Gemma-3-4B", "bge-small",
                                  "DeepSeek-V3 (12 layers)", "Granite-4.0-H-Tiny"])  # fmt: skip
def test_our_graphs_are_llama_cpps_node_by_node(name: str, tmp_path: Path):
    facts = SHAPES[name]
    cells = cells_of(facts)[:3]
    answers = ask("graphs", tmp_path, facts, types_of(facts), cells)
    for each, answer in zip(cells, answers, strict=True):
        theirs, ours = told(answer), built(facts, Run(**each))
        assert [described(node) for node in ours.nodes] == [described(n) for n in theirs.nodes]


def test_an_adapter_adds_its_thin_products_to_the_graph(tmp_path: Path):
    facts = facts_of(PUBLISHED["Llama-3.2-1B"] | {"num_hidden_layers": 2, "vocab_size": 4096,
                                                  "hidden_size": 256, "intermediate_size": 512,
                                                  "num_attention_heads": 4, "num_key_value_heads": 2})  # fmt: skip
    rank = 8
    fields = {
        "general.architecture": field("STRING", "llama"), "general.type": field("STRING", "adapter"),
        "adapter.type": field("STRING", "lora"), "adapter.lora.alpha": field("FLOAT32", 8.0),
    }  # fmt: skip
    plans = []
    for tensor in facts.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            rows, columns = tensor.shape
            plans.append(TensorPlan(f"{tensor.name}.lora_a", "F16", (rank, columns)))
            plans.append(TensorPlan(f"{tensor.name}.lora_b", "F16", (rows, rank)))
    path = tmp_path / "adapter.gguf"
    write_adapter(path, plans, fields)
    pairs = tuple(
        ThinPair(down.name.removesuffix(".lora_a"), "F16", down.shape[::-1], "F16", up.shape[::-1])
        for down, up in zip(plans[::2], plans[1::2], strict=True)
    )
    each = cell(512, "f16", True, 128, 1)
    (answer,) = ask(
        "graphs", tmp_path, facts, types_of(facts, "Q8_0"), [each], allocate=True, adapter=str(path)
    )
    ours = built(facts, Run(**each, adapters=(pairs,)))
    assert [described(n) for n in ours.nodes] == [described(n) for n in told(answer).nodes]


def test_the_allocator_places_llama_cpps_own_graphs_as_ggml_does(tmp_path: Path):
    facts = SHAPES["Qwen3-0.6B"]
    for answer in ask("graphs", tmp_path, facts, types_of(facts), CELLS):
        graph = told(answer)
        for tensor in (*graph.nodes, *graph.leaves):
            tensor.backend = 0
        theirs = sum(buffers[2] for buffers in answer["memory"].values())
        assert Allocator([BufferKind(32)]).reserve(graph) == [theirs]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs of adds, norms, products and views, with inputs and outputs."""
    tensors = [new("F32", draw(st.integers(1, 4000))) for _ in range(draw(st.integers(1, 3)))]
    for tensor in tensors:
        tensor.is_input = True
    for _ in range(draw(st.integers(1, 40))):
        first = draw(st.sampled_from(tensors))
        kind = draw(st.sampled_from(["ADD", "RMS_NORM", "CONT", "VIEW", "OTHER"]))
        if kind == "VIEW":
            made = Tensor("VIEW", first.type, first.ne, first.nb, (first,), first)
        elif kind == "OTHER":
            second = draw(st.sampled_from(tensors))
            made = new("F32", draw(st.integers(1, 4000)), op="MUL_MAT", sources=(first, second))
        else:
            made = like(kind, first, *((draw(st.sampled_from(tensors)),) if kind == "ADD" else ()))
        made.is_output = draw(st.integers(0, 9)) == 0 and kind != "VIEW"
        tensors.append(made)
    graph = Graph()
    for tensor in tensors:
        graph.expand(tensor)
    for tensor in tensors:
        tensor.backend = 0
    return graph


class Watched(Allocator):
    """Checks after every tensor that no two live ones share a byte."""

    def __init__(self, kinds: list[BufferKind], graph: Graph) -> None:
        super().__init__(kinds)
        self.graph = graph
        self.most_live = 0

    def _place(self, node: Tensor) -> None:
        for source in node.sources:
            owner = source.view_of or source
            assert owner.allocated, "a source was freed before its last use"
        super()._place(node)
        live = [t for t in (*self.graph.leaves, *self.graph.nodes) if t.allocated]
        spans = sorted((*t.address, t.address[1] + t.size_bytes) for t in live)
        for (chunk, _, end), (other, start, _) in itertools.pairwise(spans):
            assert chunk != other or end <= start, "two live tensors share a byte"
        self.most_live = max(self.most_live, sum(t.size_bytes for t in live))


@given(graphs(), st.sampled_from([1, 32, 128]), st.sampled_from([1 << 62, 10_000]))
@settings(deadline=None)
def test_live_tensors_never_share_a_byte_and_the_buffer_holds_them_all(
    graph: Graph, alignment: int, largest: int
):
    allocator = Watched([BufferKind(alignment, largest)], graph)
    (size,) = allocator.reserve(graph)
    assert size >= allocator.most_live
    for tensor in (*graph.leaves, *graph.nodes):
        assert tensor.address[1] % alignment == 0
        # Whatever is kept for the end is there at the end.
        assert tensor.allocated or not tensor.is_output or tensor.view_of is not None


_SMALL = {"Qwen3-0.6B": 28, "Llama-3.2-1B": 16, "Gemma-3-4B": 34, "Qwen3-30B-A3B": 48}


@given(
    st.sampled_from(sorted(_SMALL)), st.integers(64, 40_000), st.integers(1, 6),
    st.sampled_from(["f16", "q8_0", "q4_0"]), st.integers(1, 1500), st.booleans(),
    st.integers(-1, 49), st.integers(1, 3),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_leaving_repeated_layers_out_changes_nothing(
    name: str, context: int, parallel: int, cache: str, batch: int, flash: bool, layers: int,
    devices: int,
):  # fmt: skip
    facts = SHAPES[name]
    types = types_of(facts)
    run = Run(context, parallel, cache, batch, flash or cache != "f16")
    target = CARD.model_copy(update={"device_count": devices})
    placement = placement_of(facts, layers, target)
    few, all_ = (
        compute_buffers(facts, run, placement, types, all_layers=flag) for flag in (False, True)
    )
    assert few == all_
    again = compute_buffers(facts.model_copy(), run, placement, types)
    assert again == few


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_stretches_cover_every_layer_once_and_repeat_what_they_say(kinds: list[int]):
    covered: list[int] = []
    for start, period, times in stretches(kinds):
        assert start == len(covered)
        assert kinds[start : start + period] * times == kinds[start : start + period * times]
        covered += kinds[start : start + period * times]
    assert covered == kinds
