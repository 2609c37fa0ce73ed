from __future__ import annotations

import dataclasses
import json
import os
import shutil
import types
from pathlib import Path

import pytest

from bundler.builtin.llamacpp.adapter_facts import adapter_facts
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.companions import adapters_of
from bundler.builtin.llamacpp.graph.backends import DEVICES
from bundler.builtin.llamacpp.graph.reserve import compute_buffers
from bundler.builtin.llamacpp.graph.shape import Run
from bundler.builtin.llamacpp.placement import place_adapters, placement_of
from bundler.builtin.llamacpp.prove import prove
from bundler.errors import RecipeError, UnsafeInput
from bundler.hardware import Target
from bundler.hookspecs import Task
from bundler.lock import LockedAdapter, LockedFile, LockedModel, ModelFacts, Resolution
from bundler.store import Store, hash_file
from bundler.weights.gguf_writer import TensorPlan, field
from bundler.world import World
from tests.adapters import fields_of, is_changed, plans_of, resolution_of, write_adapter
from tests.demo import bundler
from tests.memory_cases import CPU, SHAPES, types_of
from tests.models import tiny_gguf
from tests.published_shapes import CELLS
from tests.shapes import write_header_gguf
from tests.test_runtime import CHAT, Server

_PLAIN_CUDA = dataclasses.replace(DEVICES["cuda"], fuses=False)


def read_facts(path: Path, base: ModelFacts):
    def read(file: LockedFile, start: int, length: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    return adapter_facts(resolution_of(path), read, base)


def locked(base: ModelFacts, *paths: Path) -> LockedModel:
    return LockedModel(
        resolution=Resolution(source="path", reference="path:x", revision="1", files=()),
        facts=base,
        adapters=tuple(
            LockedAdapter(resolution=resolution_of(path), facts=read_facts(path, base))
            for path in paths
        ),
    )


def hold_to_llama_cpp(
    facts: ModelFacts, folder: Path, paths: list[Path], *, gpu_layers: int = 0, devices: int = 0,
    allocate: bool = False, cells=CELLS[:4],
) -> None:  # fmt: skip
    kinds = types_of(facts)
    write_header_gguf(folder / "model.gguf", facts, kinds)
    found = run_child(
        "tests.companion_jobs:adapted",
        {"path": str(folder / "model.gguf"), "cells": list(cells), "devices": devices,
         "gpu_layers": gpu_layers, "allocate": allocate,
         "adapters": [[str(path), 0.5 + n] for n, path in enumerate(paths)]},
        environment=os.environ,
    )  # fmt: skip
    assert "refused" not in found, found
    target = (
        Target(name="x", ram_bytes=1, accelerator="cuda", device_count=devices) if devices else CPU
    )
    adapters = adapters_of(locked(facts, *paths))
    placed = place_adapters(facts, adapters, gpu_layers=gpu_layers, target=target)
    ours = [*(placed.by_device or ((placed.device_bytes,) if devices else ())), placed.host_bytes]
    names = [*(f"PRETENDED{number}" for number in range(devices)), "CPU"]
    assert ours == [found["adapters"].get(name, 0) for name in names]
    placement = placement_of(facts, gpu_layers, target)
    if devices:
        placement = dataclasses.replace(placement, device=_PLAIN_CUDA)
    for each, theirs in zip(cells, found["cells"], strict=True):
        run = Run(**each, adapters=adapters)
        buffers = compute_buffers(facts, run, placement, kinds, small_batches=False)
        assert list(buffers) == [theirs[name][2] for name in names], each


@pytest.mark.parametrize(
    ("name", "gpu_layers", "devices"),
    [("Llama-3.2-1B", 0, 0), ("Qwen3-30B-A3B", 0, 0), ("Gemma-3-4B", 0, 0),
     ("Llama-3.2-1B", -1, 1), ("Llama-3.2-1B", 8, 1), ("Gemma-3-4B", 17, 2),
     ("Qwen3-30B-A3B", -1, 2)],
)  # fmt: skip
def test_an_adapter_takes_what_we_say_to_the_byte(
    name: str, gpu_layers: int, devices: int, tmp_path: Path
):
    facts = SHAPES[name]
    path = write_adapter(tmp_path / "a.gguf", plans_of(facts, 16), fields_of(facts.architecture))
    hold_to_llama_cpp(facts, tmp_path, [path], gpu_layers=gpu_layers, devices=devices)


def test_two_adapters_take_the_sum_and_change_what_they_name(tmp_path: Path):
    facts = SHAPES["Llama-3.2-1B"]
    some = write_adapter(
        tmp_path / "some.gguf",
        plans_of(facts, 64, "F32", lambda t: is_changed(t) and ("attn_q" in t.name or t.name.startswith("blk.3."))),
        fields_of("llama"),
    )  # fmt: skip
    every = write_adapter(tmp_path / "every.gguf", plans_of(facts, 8), fields_of("llama"))
    hold_to_llama_cpp(facts, tmp_path, [some, every])
    hold_to_llama_cpp(facts, tmp_path, [every], gpu_layers=1, devices=1)


# -- what is refused -------------------------------------------------------------------------------


def pair(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> list[TensorPlan]:
    return [TensorPlan(f"{name}.lora_a", "F16", down), TensorPlan(f"{name}.lora_b", "F16", up)]


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        (pair("blk.0.attn_q.weight", (8, 2048), (2048, 4)), "do not multiply"),
        (pair("blk.0.attn_q.weight", (8, 64), (2048, 8)), "do not multiply"),
        (pair("blk.99.attn_q.weight", (8, 2048), (2048, 8)), "the model does not have"),
        (pair("blk.0.attn_norm.weight", (8, 2048), (2048, 8)), "is no matrix"),
        (pair("token_embd.weight", (128256, 8), (2048, 8)), "the model's output|model's output as well"),
        (pair("blk.0.attn_q.weight", (8, 2048), (2048, 8))[:1], "not the pair"),
        ([TensorPlan("blk.0.attn_q.weight", "F16", (8, 8))], "no part of a LoRA adapter"),
        ([TensorPlan("output_norm.weight", "F32", (2048,))], "changes nothing"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_its_model_is_refused(plans, said: str, tmp_path: Path):
    path = write_adapter(tmp_path / "a.gguf", plans, fields_of("llama"))
    with pytest.raises(UnsafeInput, match=said):
        read_facts(path, SHAPES["Llama-3.2-1B"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"general.type": field("STRING", "model")}, "general.type is 'model'"),
        ({"general.architecture": field("STRING", "qwen2")}, "not 'llama'"),
        ({"adapter.type": field("STRING", "dora")}, "not 'lora'"),
        ({"adapter.lora.alpha": field("FLOAT32", float("nan"))}, "alpha is nan"),
        ({"adapter.lora.alpha": field("STRING", "1")}, "alpha is 1"),
        ({"adapter.alora.invocation_tokens": field("UINT32", [1, 2])}, "activated LoRA"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_kind_is_refused(more, said: str, tmp_path: Path):
    facts = SHAPES["Llama-3.2-1B"]
    path = write_adapter(tmp_path / "a.gguf", plans_of(facts, 4), fields_of("llama") | more)
    with pytest.raises(UnsafeInput, match=said):
        read_facts(path, facts)


def test_an_adapter_as_safetensors_is_refused_with_what_to_do(tmp_path: Path):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UnsafeInput, match="no GGUF file") as refused:
        read_facts(path, SHAPES["Llama-3.2-1B"])
    assert "convert_lora_to_gguf.py" in refused.value.problems[0].hint


# -- from the recipe to the server -----------------------------------------------------------------


def tiny(folder: Path) -> tuple[Path, Path]:
    """Return a small random model and an adapter that changes it a lot."""
    from bundler.builtin.llamacpp.facts import model_facts

    model = tiny_gguf()
    file = resolution_of(model)

    def read(found: LockedFile, start: int, length: int) -> bytes:
        return model.read_bytes()[start : start + length]

    facts = model_facts(file, read)
    fields = fields_of(facts.architecture, alpha=512.0)
    return model, write_adapter(folder / "tone.gguf", plans_of(facts, 8), fields, seed=3)


def test_a_recipes_adapter_is_locked_planned_and_told_to_the_station(tmp_path: Path):
    model, adapter = tiny(tmp_path)
    shutil.copy(model, tmp_path / "model.gguf")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[bundle]\nname = "tuned"\n[target]\nuse = "cpu-8gb"\n[models.chat]\n'
        'source = "path:model.gguf"\ncontext_tokens = 512\n'
        'adapters = [{ source = "path:tone.gguf", scale = 0.5 }]\n'
    )
    done = bundler("lock", recipe, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    lock = json.loads((tmp_path / "recipe.lock").read_text())
    (locked_one,) = lock["models"]["chat"]["adapters"]
    assert locked_one["resolution"]["files"][0]["sha256"] == hash_file(adapter)
    plan = bundler("plan", recipe, "--json", "--store", tmp_path / "store")
    assert plan.returncode == 0, plan.stderr
    assert "runs with 1 adapter" in plan.stdout
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    again = bundler("plan", recipe, "--store", tmp_path / "store", "--locked")
    assert again.returncode == 3, again.stdout + again.stderr
    assert "tone.gguf" in again.stderr


def test_a_runtime_that_takes_no_adapters_is_refused_before_anything_is_built():
    from bundler.offering import check_companions
    from bundler.plugins import load_plugins
    from bundler.recipe_file import parse_recipe

    recipe = parse_recipe(
        b'[bundle]\nname = "x"\n[target]\nuse = "cpu-8gb"\n[models.chat]\n'
        b'source = "hf:a/b"\nadapters = [{ source = "hf:a/c" }]\n[runtime]\nuse = ["bare"]\n'
    )
    plugins = load_plugins()
    plugins.runtimes["bare"] = types.SimpleNamespace(name="bare", formats={"gguf"})
    with pytest.raises(RecipeError, match="bare cannot serve a model with its adapter"):
        check_companions(recipe, plugins)


def test_the_proof_runs_the_model_with_its_adapter(tmp_path: Path):
    model, adapter = tiny(tmp_path)
    found = {}
    for scales in ((), (2.0,)):
        inputs = {"model.gguf": model, **({"adapters/0.gguf": adapter} if scales else {})}
        output = tmp_path / f"out{len(scales)}"
        output.mkdir()
        task = Task("prove", inputs, {"context_tokens": 256, "scales": scales, "gpu_layers": 0},
                    output, lambda *_: None, World(store=Store(tmp_path / "store")))  # fmt: skip
        found[scales] = prove(task)
    alone, adapted = found[()], found[2.0,]
    assert alone["sample_text"] != adapted["sample_text"]
    # llama.cpp logs an adapter's buffer rounded to 0.01 MiB.
    more = adapted["device"]["peak_memory_bytes"] - alone["device"]["peak_memory_bytes"]
    size = sum((t.size_bytes + 31) // 32 * 32 for t in plans_of(read_base(model), 8))
    assert more >= size - (1 << 14)


def read_base(model: Path) -> ModelFacts:
    from bundler.builtin.llamacpp.facts import model_facts

    def read(found: LockedFile, start: int, length: int) -> bytes:
        return model.read_bytes()[start : start + length]

    return model_facts(resolution_of(model), read)


def test_the_server_applies_the_adapter_with_its_scale(tmp_path: Path):
    model, adapter = tiny(tmp_path)
    with Server(model) as server:
        alone = server.ask("POST", "/v1/chat/completions", CHAT)[1]
    with Server(model, more=["--adapter", f"2.0:{adapter}"]) as server:
        ((told,),) = [server.ask("GET", "/lora-adapters")[1]]
        adapted = server.ask("POST", "/v1/chat/completions", CHAT)[1]
    assert (told["path"], told["scale"]) == (str(adapter), 2.0)
    assert alone["choices"] != adapted["choices"]
