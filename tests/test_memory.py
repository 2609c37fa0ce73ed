"""The memory model against what llama.cpp allocates, for true shapes, without their weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp import memory
from bundler.builtin.llamacpp.caches import RECURRENT, kv_cache_bytes
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.graph.backends import DEVICES
from bundler.builtin.llamacpp.graph.reserve import Placement, compute_buffers
from bundler.builtin.llamacpp.graph.shape import Run
from bundler.builtin.llamacpp.memory import model_memory, place_weights
from bundler.builtin.llamacpp.overheads import PROMPT_CACHE_BYTES
from bundler.builtin.llamacpp.placement import layer_homes, placement_of
from bundler.errors import RecipeError, UnsafeInput
from bundler.hardware import Target
from bundler.lock import ModelFacts
from bundler.plan import Memory
from bundler.weights.ggml_types import tensor_bytes
from bundler.weights.gguf_writer import TensorPlan, encode_header, field
from tests.memory_cases import CARD, CPU, MIB, SHAPES, ask, cells_of, types_of
from tests.published_shapes import CELLS, PUBLISHED, QUANTS, Cell
from tests.shapes import facts_of, header_fields, write_header_gguf
from tests.test_model_facts import facts_of as facts_of_files

QUICK = ("Llama-3.2-1B", "Qwen2.5-14B", "Qwen3-0.6B", "Qwen3-30B-A3B", "Gemma-3-4B", "bge-small",
         "gpt-oss-20b", "DeepSeek-V2-Lite", "Granite-4.0-H-Tiny")  # fmt: skip


def hold_to_llama_cpp(name: str, folder: Path, quant: str, **more: Any) -> None:
    facts = SHAPES[name]
    types = types_of(facts, quant)
    cells = cells_of(facts)
    placed = place_weights(facts, types, gpu_layers=0, target=CPU).host_bytes
    for each, found in zip(
        cells, ask("breakdowns", folder, facts, types, cells, **more), strict=True
    ):
        theirs = tuple(sum(kind) for kind in zip(*found.values(), strict=True))
        run = Run(**each)
        buffers = compute_buffers(facts, run, Placement.on_cpu(facts), types)
        assert (placed, sum(kv_cache_bytes(facts, run)), sum(buffers)) == theirs, each


@pytest.mark.parametrize("name", QUICK)
def test_llama_cpp_allocates_what_we_say_to_the_byte(name: str, tmp_path: Path):
    hold_to_llama_cpp(name, tmp_path, "Q4_K_M", repack=True)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.slow_sweep
def test_llama_cpp_allocates_what_we_say_for_every_shape_and_quant(
    name: str, quant: str, tmp_path: Path
):
    hold_to_llama_cpp(name, tmp_path, quant, repack=True)


def test_a_really_loaded_model_takes_what_its_header_said(tmp_path: Path):
    facts = facts_of(
        {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 768,
         "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 4096, "max_position_embeddings": 4096, "tie_word_embeddings": True}
    )  # fmt: skip
    types = types_of(facts, "Q8_0")
    cells = [each for each in CELLS if each["context_tokens"] <= 8192]
    dry, real = (ask("breakdowns", tmp_path, facts, types, cells, allocate=a) for a in (0, 1))
    assert dry == real
    for each, found in zip(cells, real, strict=True):
        theirs = tuple(sum(kind) for kind in zip(*found.values(), strict=True))
        run = Run(**each)
        placed = place_weights(facts, types, gpu_layers=0, target=CPU).host_bytes
        buffers = compute_buffers(facts, run, Placement.on_cpu(facts), types)
        assert (placed, sum(kv_cache_bytes(facts, run)), sum(buffers)) == theirs


# -- on accelerators -------------------------------------------------------------------------------

# llama.cpp plans for accelerators that are pretended in the child process. They fuse nothing.
_PLAIN_CUDA = dataclasses.replace(DEVICES["cuda"], fuses=False)


def hold_to_llama_cpp_with_devices(
    name: str, folder: Path, gpu_layers: int, devices: int, cells: tuple[Cell, ...]
) -> None:
    facts = SHAPES[name]
    types = types_of(facts)
    target = Target(name="x", ram_bytes=1, accelerator="cuda", device_count=devices)
    placement = placement_of(facts, gpu_layers, target)
    placement = dataclasses.replace(placement, device=_PLAIN_CUDA)
    placed = place_weights(facts, types, gpu_layers=gpu_layers, target=target)
    weights = [*(placed.by_device or (placed.device_bytes,)), placed.host_bytes]
    answers = ask("breakdowns", folder, facts, types, cells, devices=devices, gpu_layers=gpu_layers)
    for each, found in zip(cells, answers, strict=True):
        run = Run(**each)
        here, there = kv_cache_bytes(facts, run), kv_cache_bytes(facts, run, _PLAIN_CUDA)
        cached = [0] * (devices + 1)
        for layer, home in enumerate(placement.homes[:-1]):
            cached[home] += here[layer] if home == devices else there[layer]
        buffers = compute_buffers(facts, run, placement, types, small_batches=False)
        whole = compute_buffers(facts, run, placement, types)
        assert all(a >= b for a, b in zip(whole, buffers, strict=True))
        ours = [list(row) for row in zip(weights, cached, buffers, strict=True)]
        names = [*(f"PRETENDED{number}" for number in range(devices)), "CPU"]
        theirs = [found.get(backend, [0, 0, 0]) for backend in names]
        assert ours == theirs, each


@pytest.mark.parametrize(
    ("name", "gpu_layers", "devices"),
    [("Llama-3.2-1B", -1, 1), ("Llama-3.2-1B", 8, 1), ("Llama-3.2-1B", 1, 1),
     ("Qwen3-30B-A3B", -1, 2), ("Gemma-3-4B", 17, 2), ("bge-small", -1, 1)],
)  # fmt: skip
def test_accelerators_take_what_we_say_to_the_byte(
    name: str, gpu_layers: int, devices: int, tmp_path: Path
):
    cells = cells_of(SHAPES[name])[:4]
    hold_to_llama_cpp_with_devices(name, tmp_path, gpu_layers, devices, cells)


@pytest.mark.parametrize("share", ["all", "half", "output only", "all but the output"])
@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.slow_sweep
def test_accelerators_take_what_we_say_for_every_shape_and_split(
    name: str, devices: int, share: str, tmp_path: Path
):
    facts = SHAPES[name]
    if facts.architecture in RECURRENT:
        pytest.skip("llama.cpp allocates recurrent states even when told not to allocate")
    layers = {"all": -1, "half": facts.layers // 2, "output only": 1,
              "all but the output": facts.layers}[share]  # fmt: skip
    hold_to_llama_cpp_with_devices(name, tmp_path, layers, devices, cells_of(facts))


def test_on_a_card_the_embeddings_stay_in_ram_and_a_tied_output_is_a_second_copy():
    untied, tied = SHAPES["Qwen2.5-7B"], SHAPES["Llama-3.2-3B"]
    for facts in (untied, tied):
        types = types_of(facts)
        placed = place_weights(facts, types, gpu_layers=-1, target=CARD)
        whole = place_weights(facts, types, gpu_layers=-1, target=CPU).host_bytes
        embeddings = next(t for t in facts.tensors if t.name == "token_embd.weight")
        held = tensor_bytes(types[embeddings.name], embeddings.shape)
        assert placed.host_bytes == held
        # Alignment to 128 and the padding of rows to 512 cost a little.
        extra = placed.device_bytes - (whole if facts is tied else whole - held)
        assert 0 <= extra < MIB


def test_on_arm_a_tied_output_is_repacked_into_a_copy_of_its_own():
    facts = SHAPES["Llama-3.2-1B"]
    types = types_of(facts, "Q6_K")
    arm = CPU.model_copy(update={"platforms": ("linux-aarch64",)})
    on_x86, on_arm = (
        place_weights(facts, types, gpu_layers=0, target=target).host_bytes for target in (CPU, arm)
    )
    assert on_arm - on_x86 == tensor_bytes("Q6_K", (128256, 2048))


def test_a_quantized_cache_is_converted_on_the_card_and_that_takes_room():
    """CUDA's attention reads F16: a layer's keys and values as F16 lie behind its result."""
    facts = SHAPES["Llama-3-8B"]
    types = types_of(facts)

    def sized(cache: str) -> Memory:
        return model_memory(
            facts, types, context_tokens=65536, parallel=1, kv_cache=cache, gpu_layers=-1,
            batch_tokens=512, flash_attention=True, target=CARD,
        )  # fmt: skip

    plain, quantized = sized("f16"), sized("q8_0")
    layer = 2 * 2 * 65536 * 1024
    assert plain.kv_cache_bytes - quantized.kv_cache_bytes > 3000 * MIB
    assert quantized.compute_bytes > layer + 64 * MIB
    assert plain.compute_bytes < quantized.compute_bytes - 64 * MIB


def test_layers_move_to_the_card_one_by_one():
    facts = SHAPES["Llama-3-8B"]
    types = types_of(facts)
    found = [
        model_memory(
            facts, types, context_tokens=8192, parallel=1, kv_cache="f16", gpu_layers=layers,
            batch_tokens=512, flash_attention=True, target=CARD,
        )
        for layers in (1, 2, 17, 33, -1)
    ]  # fmt: skip
    on_card = [each.weights_bytes for each in found]
    assert on_card == sorted(on_card)
    assert [each.kv_cache_bytes >> 20 for each in found] == [0, 32, 512, 1024, 1024]
    assert found[-1] == found[-2]


@given(st.integers(1, 100), st.integers(-1, 101), st.integers(1, 8))
def test_layers_are_split_into_equal_runs_with_the_first_ones_on_the_cpu(
    layers: int, gpu_layers: int, devices: int
):
    facts = SHAPES["Llama-3-8B"].model_copy(update={"layers": layers})
    homes = layer_homes(facts, gpu_layers, devices)
    count = layers + 1 if gpu_layers < 0 else min(gpu_layers, layers + 1)
    on_cpu = layers + 1 - count
    assert len(homes) == layers + 1
    assert set(homes[:on_cpu]) <= {devices}
    split = homes[on_cpu:]
    assert list(split) == sorted(split)
    shares = [split.count(number) for number in range(devices)]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


@given(st.sampled_from(["Llama-3-8B", "Gemma-3-4B"]), st.integers(2, 4), st.integers(1, 40))
@settings(deadline=None, max_examples=20)
def test_the_bytes_of_several_cards_add_up(name: str, devices: int, layers: int):
    target = CARD.model_copy(update={"device_count": devices})
    found = model_memory(
        SHAPES[name], types_of(SHAPES[name]), context_tokens=4096, parallel=1, kv_cache="q8_0",
        gpu_layers=layers, batch_tokens=512, flash_attention=True, target=target,
    )  # fmt: skip
    assert len(found.by_device) == devices
    assert sum(found.by_device) == found.total_bytes


# -- the whole -------------------------------------------------------------------------------------


@given(
    st.sampled_from(["Llama-3-8B", "Gemma-3-4B", "Qwen3-30B-A3B"]), st.integers(64, 60_000),
    st.integers(1, 8), st.sampled_from(["f16", "q8_0", "q4_0"]), st.integers(32, 2048),
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_more_of_anything_takes_no_less_but_for_a_hole_used_again(
    name: str, context: int, parallel: int, cache: str, batch: int
):
    facts = SHAPES[name]
    types = types_of(facts)

    def needed(**more: int) -> int:
        asked = {"context_tokens": context, "parallel": parallel, "batch_tokens": batch} | more
        found = model_memory(
            facts, types, kv_cache=cache, gpu_layers=-1, flash_attention=True, target=CARD, **asked,
        )  # fmt: skip
        return found.total_bytes + found.host_bytes

    # llama.cpp's allocator puts the logits into the first hole that is large enough: a larger mask
    # can leave one, and the buffer then ends a few states of the batch earlier.
    wide = max(facts.hidden, facts.heads * facts.head_dim_key)
    base = needed() - 4 * batch * 12 * wide - MIB
    assert needed(context_tokens=context * 2) >= base
    assert needed(parallel=parallel + 1) >= base
    assert needed(batch_tokens=batch * 2) >= base


def test_who_embeds_keeps_logits_of_every_token_although_nobody_asks():
    """`output_reserve` counts them, so that a small embedder needs 60 MiB for a text."""
    facts = SHAPES["bge-small"]
    run = Run(512, 1, "f16", 512, True, embeddings=True)
    assert memory.output_bytes(facts, run) == 4 * 512 * (30522 + 384)


def test_the_servers_cache_of_old_prompts_is_planned_as_large_as_it_may_become():
    serving = Path(__file__).parents[1] / "bundler/builtin/runtimes/serve_xllamacpp.py"
    assert f"PROMPT_CACHE_MIB = {PROMPT_CACHE_BYTES >> 20}\n" in serving.read_text()
    run = Run(512, 1, "f16", 512, True)
    assert memory.prompt_cache_bytes(SHAPES["Llama-3-8B"], run) == PROMPT_CACHE_BYTES
    assert memory.prompt_cache_bytes(SHAPES["bge-small"], run) == 0


def test_every_overhead_says_where_it_comes_from():
    assert set(memory.OVERHEADS) == {"none", "cuda", "rocm", "vulkan", "metal"}
    assert all(overhead.source for overhead in memory.OVERHEADS.values())


def test_proofs_and_servers_keep_only_windows_of_layers_that_slide(tmp_path: Path):
    """`swa_full` is off in both, as the plan takes for granted; llama.h's default is on."""
    facts = SHAPES["Gemma-3-4B"]
    write_header_gguf(tmp_path / "model.gguf", facts, types_of(facts))
    kept = run_child(
        "tests.sizing_jobs:proof_cache", {"path": str(tmp_path / "model.gguf"), "tokens": 32768},
        environment=os.environ,
    )  # fmt: skip
    assert kept == sum(kv_cache_bytes(facts, Run(32768, 1, "f16", 512, True)))
    serving = Path(__file__).parents[1] / "bundler/builtin/runtimes/serve_xllamacpp.py"
    assert "swa_full" not in serving.read_text()  # llama.cpp's server has it off by itself
    if importlib.util.find_spec("xllamacpp"):
        import xllamacpp

        assert xllamacpp.CommonParams().swa_full is False


# -- what is not described here --------------------------------------------------------------------


def unknown_model(**more: Any) -> ModelFacts:
    """A model of an architecture that llama.cpp knows and we do not, read from its header."""
    facts = facts_of(PUBLISHED["CodeLlama-7B"], type_="F16").model_copy(
        update={"architecture": "smollm3", "layers": 2,
                "tensors": tuple(t for t in facts_of(PUBLISHED["CodeLlama-7B"], type_="F16").tensors
                                 if not t.name.startswith("blk.") or t.name[4:6] in ("0.", "1."))
                + tuple(more.pop("tensors", ()))}
    )  # fmt: skip
    fields = header_fields(facts.model_copy(update={"kv_heads": facts.kv_heads[:2]}))
    kept = {key: [f.type, f.value] for key, f in fields.items() if key.startswith("smollm3.")}
    return facts.model_copy(
        update={"kv_heads": facts.kv_heads[:2], "format": "gguf", "extra": {"header_fields": kept}}
        | more
    )


def sized_unknown(facts: ModelFacts, **more: Any) -> Memory:
    asked: dict[str, Any] = {
        "context_tokens": 4096, "parallel": 1, "kv_cache": "f16", "gpu_layers": -1,
        "batch_tokens": 512, "flash_attention": True, "target": CPU,
    } | more  # fmt: skip
    return model_memory(facts, {t.name: t.type for t in facts.tensors}, **asked)


def test_an_unknown_architecture_is_measured_with_llama_cpp_and_says_so():
    found = sized_unknown(unknown_model())
    assert "llama.cpp" in found.source
    assert found.kv_cache_bytes == 2 * 2 * 2 * 4096 * 4096
    on_card = sized_unknown(unknown_model(), target=CARD)
    assert on_card.compute_bytes > 0
    assert on_card.weights_bytes + on_card.host_bytes > found.weights_bytes


def test_without_llama_cpp_an_unknown_architecture_is_refused_not_guessed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"'smollm3' is not described.*not installed") as caught:
        sized_unknown(unknown_model())
    assert all(problem.hint for problem in caught.value.problems)


def test_an_architecture_that_llama_cpp_does_not_know_either_is_refused():
    facts = unknown_model(architecture="gpt-nowhere")
    with pytest.raises(RecipeError, match="gpt-nowhere"):
        sized_unknown(facts)


def test_layers_of_an_unknown_architecture_are_not_split_by_guessing():
    with pytest.raises(RecipeError, match="as a whole"):
        sized_unknown(unknown_model(), target=CARD, gpu_layers=1)


def test_a_tensor_that_the_graph_has_no_place_for_means_that_it_is_another_graph():
    facts = SHAPES["Llama-3.2-1B"]
    extra = facts.tensors[1].model_copy(update={"name": "blk.0.attn_surprise.weight"})
    facts = facts.model_copy(update={"tensors": (*facts.tensors, extra)})
    with pytest.raises(RecipeError, match="lock does not hold"):
        sized_unknown(facts)


LIES: dict[str, tuple[str, Any]] = {
    "another width": ("llama.embedding_length", field("UINT32", 128)),
    "more experts used than there are": ("llama.expert_used_count", field("UINT32", 1 << 30)),
    "a negative window": ("llama.attention.head_count_kv", field("INT32", -1)),
    "an absurd context": ("llama.context_length", field("UINT64", 1 << 60)),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_about_sizes_are_refused_by_name(lie: str, tmp_path: Path):
    facts = facts_of(PUBLISHED["Llama-3.2-1B"])
    key, value = LIES[lie]
    fields = {**header_fields(facts), key: value}
    del fields["llama.vocab_size"]
    header = encode_header(fields, [TensorPlan("token_embd.weight", "F16", (10, 64))])
    with pytest.raises(UnsafeInput) as caught:
        facts_of_files({"liar.gguf": header + bytes(10 * 64 * 2)})
    assert all(problem.where == "liar.gguf" for problem in caught.value.problems)
