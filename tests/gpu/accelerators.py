"""What must hold of any accelerator: everything is offloaded, its memory is accounted for, and what
it computes is what the processor computes, within what half precision allows.

Answers of the processor come from processes that never saw the accelerator. In one that has loaded
its backend llama.cpp gives it large products even of a model that has no layer there, and a
comparison would be of the accelerator with itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.hookspecs import Task
from bundler.proof import Proof
from bundler.store import Store
from bundler.world import World
from tests.models import Shape, quantized, text_file, tiny_gguf

JOBS = "bundler.builtin.llamacpp"
LOGITS_RMS = 0.1
"""Root mean square of what logits of the same file may differ by, in standard deviations of a row.

Mesa's software device gave 0.006 with F16 weights and 0.02 to 0.03 with Q4_K_M ones, an index of a
wrong head or layer gives more than 1."""


@dataclass(frozen=True)
class Place:
    """An accelerator, and the environments in which llama.cpp has it and has it not."""

    device: Mapping[str, Any]
    environment: Mapping[str, str]
    without: Mapping[str, str]


class Checks:
    """Tests of one accelerator; a subclass has a fixture `place` that gives it."""

    model = Shape(hidden=512, layers=4, heads=8, kv_heads=4, feed_forward=1024, vocabulary=1024)
    context_tokens = 1024
    tokens = 1024
    kv_caches = ("f16", "q8_0", "q4_0")

    def proved(self, folder, place, **parameters):
        """Prove the model as a build does, on the accelerator or not at all."""
        output = folder / "output"
        output.mkdir()
        world = World(store=Store(folder / "store"), environment=place.environment)
        inputs = {
            "model.gguf": quantized(tiny_gguf(self.model), "Q4_K_M"),
            "reference.gguf": tiny_gguf(self.model), "heldout.txt": text_file(),
        }  # fmt: skip
        given = {
            "context_tokens": self.context_tokens, "parallel": 2, "tokens": 2 * self.tokens,
            "require": "gpu", **parameters,
        }  # fmt: skip
        task = Task("prove", inputs, given, output, lambda *_: None, world)
        return Proof.model_validate(LlamaCppEngine().run(task))

    def test_every_layer_is_offloaded_and_the_device_is_named(self, tmp_path, place):
        proof = self.proved(tmp_path, place)
        assert proof.device.kind == place.device["kind"]
        assert place.device["description"] in proof.device.name
        assert proof.device.offloaded_layers == proof.device.total_layers == self.model.layers + 1

    def test_a_part_of_the_layers_is_proved_as_it_is_planned(self, tmp_path, place):
        layers = self.model.layers
        proof = self.proved(tmp_path, place, gpu_layers=2)
        assert proof.device.offloaded_layers == 2
        assert proof.settings["gpu_layers"] == 2
        assert str(proof.settings["layers"]).startswith(f"CPU 0-{layers - 2}, ")

    def test_what_is_planned_for_the_cpu_stays_off_the_accelerator(self, tmp_path, place):
        proof = self.proved(tmp_path, place, gpu_layers=0)
        assert proof.device.kind == "cpu"
        assert proof.device.offloaded_layers == 0
        assert proof.settings["layers"] == f"CPU 0-{self.model.layers}"

    @pytest.mark.parametrize("type_", ["F16", "Q4_K_M"])
    def test_logits_are_those_of_the_processor(self, tmp_path, place, type_):
        model = tiny_gguf(self.model)
        path = model if type_ == "F16" else quantized(model, type_)
        found = {}
        for gpu, environment in ((True, place.environment), (False, place.without)):
            arguments = {"model": str(path), "gpu": gpu, "tokens": list(range(1, 65)),
                         "output": str(tmp_path / f"{gpu}.npy")}  # fmt: skip
            said = run_child("tests.gpu.logits_jobs:logits_job", arguments, environment=environment)
            assert said["offloaded"] == (self.model.layers + 1 if gpu else 0)
            assert any(d["is_gpu"] for d in said["devices"]) == gpu
            found[gpu] = np.load(tmp_path / f"{gpu}.npy")
        assert np.isfinite(found[True]).all()
        spread = found[False].std(axis=1, keepdims=True)
        difference = (found[True] - found[False]) / spread
        rms = float(np.sqrt((difference**2).mean()))
        assert 0 < rms < LOGITS_RMS  # nought would mean that both ran on the same device

    def test_the_damage_on_the_accelerator_is_that_on_the_cpu(self, tmp_path, place):
        for kv_cache in self.kv_caches:
            arguments = {
                "model": str(quantized(tiny_gguf(self.model), "Q4_K_M")),
                "reference": str(tiny_gguf(self.model)), "text": str(text_file()),
                "window_tokens": 128, "tokens": self.tokens, "kv_cache": kv_cache,
                "scratch": str(tmp_path), "mode": "lockstep",
            }  # fmt: skip
            job = f"{JOBS}.evaluate:evaluate_job"
            on_gpu = run_child(job, {**arguments, "gpu": True}, environment=place.environment)
            on_cpu = run_child(job, {**arguments, "gpu": False}, environment=place.without)
            assert on_gpu["perplexity"] == pytest.approx(on_cpu["perplexity"], rel=0.02), kv_cache
            assert on_gpu["kld_mean"] == pytest.approx(on_cpu["kld_mean"], rel=0.25), kv_cache

    def test_an_importance_matrix_from_the_accelerator_is_the_cpus(self, tmp_path, place):
        found = {}
        for name, environment in (("gpu", place.environment), ("cpu", place.without)):
            output = tmp_path / f"{name}.gguf"
            arguments = {
                "model": str(tiny_gguf(self.model)), "texts": {"t": str(text_file())},
                "output": str(output), "context_tokens": 128, "chunks": 2,
            }  # fmt: skip
            run_child(f"{JOBS}.calibrate:calibrate_job", arguments, environment=environment)
            found[name] = read_imatrix(output)
        assert found["gpu"].keys() == found["cpu"].keys()
        for name, values in found["cpu"].items():
            most = 0.02 * float(values.max())
            assert found["gpu"][name] == pytest.approx(values, rel=0.05, abs=most), name


def first_accelerator(environment: Mapping[str, str] = os.environ) -> Mapping[str, Any] | None:
    """Return the first accelerator that llama.cpp sees in an environment."""
    found = run_child(f"{JOBS}.native:devices_job", {}, environment=environment)["devices"]
    return next((device for device in found if device["is_gpu"]), None)
