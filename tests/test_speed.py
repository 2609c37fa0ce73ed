"""The bound on writing speed: bytes that a token reads, by the bandwidth of where they lie."""

from __future__ import annotations

import pytest

from bundler.builtin.llamacpp.placements import PARTS
from bundler.builtin.llamacpp.speed import Reading, tokens_per_second
from bundler.hardware import Target
from tests.test_offers import CONFIGS, TARGETS, offers

NAME = "Qwen/Qwen2.5-7B-Instruct"


def machine(**figures: object) -> Target:
    return Target.model_validate({"name": "m", "ram_bytes": 1, **figures})


def test_each_memory_is_read_at_its_own_bandwidth():
    target = machine(
        accelerator="cuda", memory_bandwidth_bytes_per_second=1000,
        host_memory_bandwidth_bytes_per_second=100,
    )  # fmt: skip
    assert tokens_per_second(Reading(100, 0), target) == 10
    assert tokens_per_second(Reading(100, 10), target) == 5


def test_a_bandwidth_that_is_needed_and_not_known_makes_the_speed_unknown():
    target = machine(accelerator="cuda", memory_bandwidth_bytes_per_second=1000)
    assert tokens_per_second(Reading(100, 0), target) == 10
    assert tokens_per_second(Reading(100, 1), target) == 0
    assert tokens_per_second(Reading(0, 100), machine()) == 0


def test_parts_are_offered_only_under_a_minimum_speed_and_only_when_fast_enough():
    assert {o.gpu_layers for o in offers(NAME, "rtx-4090", quant="Q4_K_M")} == {-1}
    found = offers(NAME, "rtx-4090", quant="Q4_K_M", min_tokens_per_second=20)
    layers = {o.gpu_layers for o in found}
    assert -1 in layers
    assert 1 < len(layers) < len(PARTS) + 2
    assert all(o.tokens_per_second >= 20 for o in found)
    by_layers = sorted(
        (o.gpu_layers % 1000, o.tokens_per_second) for o in found if o.kv_cache == "f16"
    )
    assert [speed for _, speed in by_layers] == sorted(speed for _, speed in by_layers)


def test_on_the_cpu_a_model_takes_main_memory_only():
    (found,) = offers(NAME, "rtx-4090", quant="Q4_K_M", kv_cache="f16", placement="cpu")
    assert (found.gpu_layers, found.memory.host_bytes) == (0, 0)
    assert found.tokens_per_second == pytest.approx(76.8e9 / 4.6e9, rel=0.15)


def test_more_bits_are_never_faster():
    assert NAME in CONFIGS
    assert "rtx-4090" in TARGETS
    found = [o for o in offers(NAME, "rtx-4090") if o.kv_cache == "f16"]
    ordered = sorted(found, key=lambda o: o.bits_per_weight)
    speeds = [o.tokens_per_second for o in ordered]
    assert speeds == sorted(speeds, reverse=True)
