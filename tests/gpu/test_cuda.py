"""On a real accelerator: everything is offloaded, the driver's account is near ours, and the
figures are those of the CPU within what half precision allows.
"""

import os

import pytest

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.errors import BundlerError
from bundler.hookspecs import Task
from bundler.proof import Proof
from bundler.store import Store
from bundler.world import World
from tests.models import Shape, job, quantized, text_file, tiny_gguf

pytestmark = pytest.mark.gpu
MODEL = Shape(hidden=512, layers=4, heads=8, kv_heads=4, feed_forward=1024, vocabulary=1024)
CUDA_CONTEXT_BYTES = 700 << 20
"""What a CUDA process takes beside llama.cpp's buffers: 300-500 MB were seen; see facts."""


@pytest.fixture(scope="module")
def accelerator():
    try:
        found = [d for d in job("native:devices_job", {})["devices"] if d["is_gpu"]]
    except BundlerError as error:
        pytest.skip(f"llama.cpp cannot be loaded: {error}")
    if not found:
        pytest.skip("this llama.cpp sees no accelerator (CPU build, or no driver)")
    return found[0]


def prove(tmp_path, **parameters):
    output = tmp_path / "output"
    output.mkdir()
    world = World(store=Store(tmp_path / "store"), environment=os.environ)
    inputs = {
        "model.gguf": quantized(tiny_gguf(MODEL), "Q4_K_M"), "reference.gguf": tiny_gguf(MODEL),
        "heldout.txt": text_file(),
    }  # fmt: skip
    given = {"context_tokens": 1024, "parallel": 2, "tokens": 2048, "require": "gpu", **parameters}
    task = Task("prove", inputs, given, output, lambda *_: None, world)
    return Proof.model_validate(LlamaCppEngine().run(task))


def test_every_layer_is_offloaded_and_the_device_is_named(tmp_path, accelerator):
    proof = prove(tmp_path)
    assert proof.device.kind == accelerator["kind"]
    assert accelerator["description"] in proof.device.name
    assert proof.device.offloaded_layers == proof.device.total_layers == MODEL.layers + 1


def test_the_drivers_account_holds_ours_and_a_context(tmp_path, accelerator):
    if accelerator["kind"] != "cuda":
        pytest.skip(f"only CUDA has an account per process here, this is {accelerator['kind']}")
    proof = prove(tmp_path)
    assert proof.device.driver
    assert proof.device.peak_memory_source.startswith("nvml")
    ours = proof.settings["backend_memory_bytes"]
    assert ours <= proof.device.peak_memory_bytes <= ours + CUDA_CONTEXT_BYTES


@pytest.mark.parametrize("kv_cache", ["f16", "q8_0", "q4_0"])
def test_the_damage_on_the_accelerator_is_that_on_the_cpu(tmp_path, accelerator, kv_cache):
    arguments = {
        "model": str(quantized(tiny_gguf(MODEL), "Q4_K_M")), "reference": str(tiny_gguf(MODEL)),
        "text": str(text_file()), "window_tokens": 128, "tokens": 1024, "kv_cache": kv_cache,
        "scratch": str(tmp_path), "mode": "lockstep",
    }  # fmt: skip
    on_gpu = job("evaluate:evaluate_job", {**arguments, "gpu": True})
    on_cpu = job("evaluate:evaluate_job", {**arguments, "gpu": False})
    assert on_gpu["perplexity"] == pytest.approx(on_cpu["perplexity"], rel=0.02)
    assert on_gpu["kld_mean"] == pytest.approx(on_cpu["kld_mean"], rel=0.25)


def test_an_importance_matrix_from_the_accelerator_is_the_cpus(tmp_path, accelerator):
    found = {}
    for place, environment in (("gpu", dict(os.environ)), ("cpu", _without_gpu())):
        output = tmp_path / f"{place}.gguf"
        arguments = {
            "model": str(tiny_gguf(MODEL)), "texts": {"t": str(text_file())},
            "output": str(output), "context_tokens": 128, "chunks": 2,
        }  # fmt: skip
        run_child(
            "bundler.builtin.llamacpp.calibrate:calibrate_job", arguments, environment=environment
        )
        found[place] = read_imatrix(output)
    assert found["gpu"].keys() == found["cpu"].keys()
    for name, values in found["cpu"].items():
        assert found["gpu"][name] == pytest.approx(values, rel=0.05, abs=0.02 * values.max()), name


def _without_gpu():
    hidden = {
        "CUDA_VISIBLE_DEVICES": "-1",
        "GGML_VK_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "-1",
    }
    return {**os.environ, **hidden}


def test_a_part_of_the_layers_is_proved_as_it_is_planned(tmp_path, accelerator):
    proof = prove(tmp_path, gpu_layers=2)
    assert proof.device.offloaded_layers == 2
    assert proof.settings["gpu_layers"] == 2
    assert str(proof.settings["layers"]).startswith("CPU 0-2, ")


def test_what_is_planned_for_the_cpu_stays_off_the_accelerator(tmp_path, accelerator):
    proof = prove(tmp_path, gpu_layers=0)
    assert proof.device.kind == "cpu"
    assert proof.device.offloaded_layers == 0
    assert proof.settings["layers"] == f"CPU 0-{MODEL.layers}"
