"""Offloading for real where there is no card: llama.cpp's Vulkan on Mesa's software device.

Everything that tests/gpu asks of a card is asked of it, by the engine's own child processes.
"""

import os

import pytest

from bundler.builtin.llamacpp.child import run_child
from tests.demo import CACHE
from tests.gpu.accelerators import Checks, Place, first_accelerator
from tests.models import Shape
from tests.vulkan_module import libraries_with_vulkan

# The module is compiled in the first test's time.
pytestmark = pytest.mark.timeout(3600)
DEVICES = "bundler.builtin.llamacpp.native:devices_job"


@pytest.fixture(scope="module")
def software():
    shaders = CACHE / "native" / "shaders"  # compiling them takes most of the time
    shaders.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "LLAMA_CPP_LIB_PATH": str(libraries_with_vulkan()),
        # A device that is a processor is taken only when it is named.
        "GGML_VK_VISIBLE_DEVICES": "0",
        "MESA_SHADER_CACHE_DIR": str(shaders),
    }


@pytest.fixture(scope="module")
def place(software):
    device = first_accelerator(software)
    assert device is not None, "Mesa's software device was not found"
    return Place(device, software, dict(os.environ))


class TestSoftwareDevice(Checks):
    model = Shape(layers=4)
    context_tokens = 256
    tokens = 256
    kv_caches = ("f16",)


def test_a_module_beside_the_libraries_is_loaded_by_itself(software):
    kinds = [device["kind"] for device in run_child(DEVICES, {}, environment=software)["devices"]]
    assert kinds == ["cpu", "vulkan"]
    assert first_accelerator() is None or first_accelerator()["kind"] != "vulkan"


def test_a_device_that_is_not_seen_is_no_device(software):
    hidden = {**software, "GGML_VK_VISIBLE_DEVICES": ""}
    assert first_accelerator(hidden) is None
