from __future__ import annotations

import os

import pytest

from bundler.builtin.llamacpp import asking
from bundler.builtin.llamacpp import prove as proving
from bundler.builtin.llamacpp.measure import layers_by_device
from bundler.builtin.llamacpp.prove import prove
from bundler.builtin.llamacpp.session import Model, require_placement
from bundler.errors import ProofFailed
from bundler.hardware import Target
from bundler.hookspecs import Task
from bundler.lock import LockedModel, Resolution
from bundler.recipe import ModelRequest
from bundler.store import Store
from bundler.world import World
from tests.memory_cases import CARD, CPU, SHAPES
from tests.models import tiny_gguf


def offers_of(target: Target, **asked):
    from bundler.builtin.llamacpp.offers import make_offers

    request = ModelRequest.model_validate({"source": "hf:a/b", "quant": "Q8_0"} | asked)
    resolution = Resolution(source="hf", reference="hf:a/b", revision="1", files=())
    return make_offers(
        request, LockedModel(resolution=resolution, facts=SHAPES["Llama-3.2-1B"]), target, {}
    )


def proved_layers(offer) -> int:
    (proof,) = (step for step in offer.steps if step.action == "prove")
    return proof.parameters["gpu_layers"]


def test_every_offer_is_proved_on_the_layers_it_will_run_on():
    for offer in offers_of(CARD, min_tokens_per_second=0.01):
        assert proved_layers(offer) == offer.gpu_layers
    assert {o.gpu_layers for o in offers_of(CARD, min_tokens_per_second=0.01)} > {-1, 0}


@pytest.mark.parametrize(
    ("target", "asked"), [(CPU, {}), (CARD, {"placement": "cpu"})], ids=["no card", "on the CPU"]
)
def test_what_the_plan_places_on_the_cpu_is_proved_there(target: Target, asked: dict):
    assert {proved_layers(offer) for offer in offers_of(target, **asked)} == {0}


# -- what llama.cpp says of each layer -------------------------------------------------------------


def opened(devices: str, offloaded: int) -> Model:
    homes = dict(enumerate("CPU" if c == "c" else "CUDA0" for c in devices))
    return Model(None, CARD, "model.gguf", offloaded, len(devices), "", layer_devices=homes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "offloaded", "wanted"),
    [("gggg", 4, -1), ("gggg", 4, 9), ("ccgg", 2, 2), ("cccg", 1, 1), ("cccc", 0, 0)],
)
def test_a_model_that_lies_as_planned_is_proved(devices: str, offloaded: int, wanted: int):
    require_placement(opened(devices, offloaded), wanted)


@pytest.mark.parametrize(
    ("devices", "offloaded", "wanted", "said"),
    [
        ("cggg", 3, -1, "3 of 4 layers.*plan puts 4.*layers 0 are on the CPU"),
        ("gcgg", 4, -1, "layers 1 are on the CPU"),
        ("cccg", 1, 2, "plan puts 2 there; layers 2 are"),
        ("ccgg", 2, 1, "plan puts 1"),
        ("", 0, -1, "0 of 0"),
    ],
)
def test_one_layer_elsewhere_fails_the_proof_by_its_number(
    devices: str, offloaded: int, wanted: int, said: str
):
    with pytest.raises(ProofFailed, match=said):
        require_placement(opened(devices, offloaded), wanted)


def test_layers_are_said_in_runs():
    assert layers_by_device({0: "CPU", 1: "CPU", 2: "CUDA0", 3: "CUDA1", 4: "CUDA1"}) == (
        "CPU 0-1, CUDA0 2, CUDA1 3-4"
    )
    assert layers_by_device({}) == ""


def test_llama_cpp_names_the_device_of_every_layer(tmp_path):
    from bundler.builtin.llamacpp.child import run_child

    for gpu_layers, cpu in ((-1, 0), (2, 1), (0, 3)):
        found = run_child(
            "tests.companion_jobs:layers",
            {"path": str(tiny_gguf()), "gpu_layers": gpu_layers},
            environment=os.environ,
        )
        assert found["total"] == len(found["homes"]) == 3
        assert sum(device == "CPU" for device in found["homes"].values()) == cpu
        assert found["kept"], "the placement that was asked for is accepted"


# -- the proof record ------------------------------------------------------------------------------


def proof_of(tmp_path, **parameters):
    output = tmp_path / "out"
    output.mkdir()
    world = World(store=Store(tmp_path / "store"))
    inputs, asked = {"model.gguf": tiny_gguf()}, {"context_tokens": 256, **parameters}
    return prove(Task("prove", inputs, asked, output, lambda *_: None, world))


def test_a_proof_says_where_it_ran_and_where_the_plan_puts_the_model(tmp_path):
    found = proof_of(tmp_path, gpu_layers=0)
    assert found["settings"]["gpu_layers"] == "none"
    assert found["settings"]["layers"] == "CPU 0-2"
    assert found["device"]["kind"] == "cpu"
    assert not [note for note in found["notes"] if "accelerator" in note]


def test_a_proof_without_the_planned_accelerator_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(proving, "gpu_is_there", lambda task, require: False)
    found = proof_of(tmp_path, gpu_layers=-1)
    assert any("there is none here" in note for note in found["notes"])


def test_a_model_of_the_cpu_is_measured_there_even_where_there_is_a_card(tmp_path, monkeypatch):
    asked = []
    real = asking.run_child

    def watched(job, arguments, **more):
        asked.append((job, arguments.get("gpu")))
        return real(job, arguments, **more)

    monkeypatch.setattr(proving, "gpu_is_there", lambda task, require: True)
    monkeypatch.setattr(asking, "run_child", watched)
    found = proof_of(tmp_path, gpu_layers=0)
    assert asked == [("bundler.builtin.llamacpp.measure:measure_job", False)]
    assert found["settings"]["gpu_layers"] == "none"
