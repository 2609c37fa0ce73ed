"""The memory model against what llama.cpp allocates, for true shapes, without their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.llamacpp import memory
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.memory import Run, model_memory, place_weights
from bundler.builtin.llamacpp.types import tensor_types
from bundler.builtin.targets import CATALOGUE
from bundler.hardware import Target
from bundler.lock import ModelFacts
from bundler.plan import Memory
from bundler.weights.ggml_types import tensor_bytes
from tests.real_shapes import REPOSITORIES
from tests.shapes import facts_of, write_header_gguf

MIB = 1 << 20
CPU = Target(name="cpu", ram_bytes=16 << 30)
CARD = next(target for target in CATALOGUE if target.name == "rtx-4090")
_OTHERS: dict[str, dict[str, Any]] = {
    "mixture of experts": {
        "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "max_position_embeddings": 32768, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "sliding windows": {
        "architectures": ["Gemma3ForCausalLM"], "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
        "sliding_window": 1024, "tie_word_embeddings": True,
    },
    "queries narrower than the state": {  # Mistral-Nemo
        "architectures": ["MistralForCausalLM"], "hidden_size": 5120, "intermediate_size": 14336,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 131072, "max_position_embeddings": 131072,
    },
    "queries wider than the state": {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
SHAPES: dict[str, ModelFacts] = {
    **{repository.name: facts_of(repository.config) for repository in REPOSITORIES},
    **{name: facts_of(config) for name, config in _OTHERS.items()},
}
CELLS: list[dict[str, Any]] = [
    {"context_tokens": context, "kv_cache": cache, "flash_attention": flash, "batch_tokens": batch,
     "parallel": parallel}
    for context, cache, flash, batch, parallel in (
        (4096, "f16", True, 512, 1), (4096, "f16", False, 512, 1), (4096, "q8_0", True, 512, 1),
        (32768, "f16", True, 512, 1), (32768, "q8_0", True, 512, 1), (32768, "f16", False, 512, 1),
        (8192, "q4_0", True, 512, 2), (4096, "f16", True, 128, 1), (4096, "f16", True, 2048, 4),
        (1000, "f16", True, 512, 3),
    )
]  # fmt: skip
# Encoders take a text at once: the batch is the context.
ENCODER_CELLS: list[dict[str, Any]] = [
    {"context_tokens": tokens, "kv_cache": "f16", "flash_attention": flash, "batch_tokens": tokens,
     "parallel": 1, "embeddings": True}
    for tokens in (256, 512) for flash in (True, False)
]  # fmt: skip


def sized(facts: ModelFacts, types: dict[str, str], cell: dict[str, Any], target: Target) -> Memory:
    asked = {key: value for key, value in cell.items() if key != "embeddings"}
    return model_memory(facts, types, gpu_layers=-1, target=target, **asked)


def measured(path: Path, cells: list[dict[str, Any]], **more: Any) -> list[dict[str, list[int]]]:
    return run_child(
        "tests.sizing_jobs:breakdowns",
        {"path": str(path), "cells": cells, **more},
        environment=os.environ,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_allocates_what_we_say(name: str, tmp_path: Path):
    """Weights and KV cache to the byte; the compute buffer at most 16 % or 16 MiB more, never 2 MiB less."""
    facts = SHAPES[name]
    types = tensor_types(facts, "Q4_K_M", has_imatrix=True)
    write_header_gguf(tmp_path / "model.gguf", facts, types, "Q4_K_M")
    cells = ENCODER_CELLS if facts.architecture == "bert" else CELLS
    for cell, found in zip(cells, measured(tmp_path / "model.gguf", cells), strict=True):
        weights, cache, compute = (sum(kind) for kind in zip(*found.values(), strict=True))
        ours = sized(facts, types, cell, CPU)
        run = Run(**{key: value for key, value in cell.items() if key != "embeddings"})
        ours_compute = memory.compute_bytes(facts, run)
        assert ours.weights_bytes == weights, cell
        assert ours.kv_cache_bytes == cache, cell
        if os.environ.get("BUNDLER_SHOW"):
            print(name, *cell.values(), compute, ours_compute, f"{ours_compute / compute - 1:+.1%}")
        assert ours_compute >= compute - 2 * MIB, (cell, ours_compute, compute)
        assert ours_compute <= max(compute * 1.16, compute + 16 * MIB), (
            cell,
            ours_compute,
            compute,
        )


def test_a_really_loaded_model_takes_what_its_header_said(tmp_path: Path):
    facts = facts_of(
        {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 768,
         "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 4096, "max_position_embeddings": 4096, "tie_word_embeddings": True}
    )  # fmt: skip
    types = tensor_types(facts, "Q8_0", has_imatrix=False)
    write_header_gguf(tmp_path / "model.gguf", facts, types, "Q8_0")
    cells = [cell for cell in CELLS if cell["context_tokens"] <= 4096]
    dry, real = (measured(tmp_path / "model.gguf", cells, allocate=flag) for flag in (False, True))
    assert dry == real
    for cell, found in zip(cells, real, strict=True):
        weights, cache, _ = (sum(kind) for kind in zip(*found.values(), strict=True))
        ours = sized(facts, types, cell, CPU)
        assert (ours.weights_bytes, ours.kv_cache_bytes) == (weights, cache)


def test_on_a_card_the_embeddings_stay_in_ram_and_a_tied_output_is_a_second_copy():
    untied, tied = SHAPES["Qwen/Qwen2.5-7B-Instruct"], SHAPES["Qwen/Qwen2.5-3B-Instruct"]
    for facts in (untied, tied):
        types = tensor_types(facts, "Q4_K_M", has_imatrix=True)
        placed = place_weights(facts, types, gpu_layers=-1, target=CARD)
        whole = place_weights(facts, types, gpu_layers=-1, target=CPU).host_bytes
        embeddings = next(t for t in facts.tensors if t.name == "token_embd.weight")
        held = tensor_bytes(types[embeddings.name], embeddings.shape)
        assert placed.host_bytes == held
        # Alignment to 128 and the padding of rows to 512 cost a little.
        extra = placed.device_bytes - (whole if facts is tied else whole - held)
        assert 0 <= extra < MIB


@given(
    st.sampled_from(sorted(SHAPES)), st.integers(64, 100_000), st.integers(1, 8),
    st.sampled_from(["f16", "q8_0", "q4_0"]), st.integers(-1, 40), st.integers(32, 4096),
)  # fmt: skip
def test_more_of_anything_takes_no_less_but_for_a_hole_used_again(
    name: str, context: int, parallel: int, cache: str, layers: int, batch: int
):
    facts = SHAPES[name]
    types = {tensor.name: "F16" for tensor in facts.tensors}

    def needed(**more: int) -> int:
        asked = {"context_tokens": context, "parallel": parallel, "batch_tokens": batch} | more
        found = model_memory(
            facts, types, kv_cache=cache, gpu_layers=layers, flash_attention=True, target=CARD,
            **asked,
        )  # fmt: skip
        return found.total_bytes + found.host_bytes

    # llama.cpp's allocator puts the logits into the first hole that is large enough: a larger mask
    # can leave one, and the buffer then ends a few states of the batch earlier.
    base = needed() - 4 * batch * 8 * facts.hidden
    assert needed(context_tokens=context * 2) >= base
    assert needed(parallel=parallel + 1) >= base
    assert needed(batch_tokens=batch * 2) >= base


def test_layers_move_to_the_card_one_by_one():
    facts = SHAPES["meta-llama/Llama-3.1-8B-Instruct"]
    types = tensor_types(facts, "Q4_K_M", has_imatrix=True)
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
    assert found[-1].model_dump() == found[-2].model_dump()


def test_every_overhead_says_where_it_comes_from():
    assert set(memory.OVERHEADS) == {"none", "cuda", "rocm", "vulkan", "metal"}
    assert all(overhead.source for overhead in memory.OVERHEADS.values())
