"""The engine as the core uses it: named steps over files, the same bytes every time."""

import os
from pathlib import Path

import pytest

from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.errors import PluginError, UnsafeInput
from bundler.hookspecs import Task
from bundler.plugins import load_plugins
from bundler.store import Store
from bundler.world import World

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder, action, inputs, progress=lambda *_: None, **parameters):
    folder.mkdir(parents=True)
    world = World(store=Store(folder.parent / "store"), environment=os.environ)
    task = Task(action, inputs, parameters, folder, progress, world)
    return LlamaCppEngine().run(task), {path.name: path for path in folder.iterdir()}


def published():
    return {path.name: path for path in (EXAMPLES / "model").iterdir()}


def build(folder):
    """Convert, calibrate and quantize the example; return what each step left."""
    _, converted = run(folder / "convert", "convert", published(), output_type="auto", name="ours")
    model = converted["model.gguf"]
    texts = {"calibration.txt": EXAMPLES.parent / "bundler/texts/calibration.txt"}
    _, guide = run(
        folder / "calibrate", "calibrate", {"model.gguf": model, **texts},
        context_tokens=128, tokens=512,
    )  # fmt: skip
    facts, made = run(
        folder / "quantize", "quantize", {"model.gguf": model, **guide}, quant="Q4_K_M"
    )
    return facts, [path for left in (converted, guide, made) for path in left.values()]


def test_from_weights_to_a_quantized_model_twice_the_same(tmp_path):
    first, left = build(tmp_path / "a")
    second, again = build(tmp_path / "b")
    assert [path.name for path in left] == ["model.gguf", "imatrix.gguf", "model.gguf"]
    assert [path.read_bytes() for path in left] == [path.read_bytes() for path in again]
    assert first == second
    assert first["fallbacks"] == []
    assert 4 < first["bits_per_weight"] < 6


def test_every_step_tells_how_far_it_is(tmp_path):
    seen = []
    run(tmp_path / "convert", "convert", published(), progress=lambda *told: seen.append(told))
    assert seen[-1][0] == seen[-1][1]
    assert seen[-1][2] == "bytes"


def test_it_comes_through_the_door_for_plugins():
    assert isinstance(load_plugins().engines["llama.cpp"], LlamaCppEngine)


def test_its_fingerprint_names_build_and_instructions_and_does_not_change():
    tool = LlamaCppEngine().tool()
    assert "llama-cpp-python" in tool
    assert "CPU : " in tool
    assert tool == LlamaCppEngine().tool()


def test_an_action_it_does_not_know_is_an_error(tmp_path):
    with pytest.raises(PluginError, match="sing"):
        run(tmp_path / "sing", "sing", {})


@pytest.mark.parametrize("action", ["calibrate", "quantize", "prove"])
def test_a_missing_input_is_named(tmp_path, action):
    with pytest.raises(PluginError, match=r"model\.gguf"):
        run(tmp_path / action, action, {}, quant="Q8_0")


def test_weights_that_are_damaged_leave_nothing(tmp_path):
    inputs = published()
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(inputs["model.safetensors"].read_bytes()[:5000])
    with pytest.raises(UnsafeInput):
        run(tmp_path / "convert", "convert", {**inputs, "model.safetensors": damaged})
    assert not list((tmp_path / "convert").iterdir())
