"""On a real accelerator, where this machine has one and llama.cpp was built for it."""

import os

import pytest

from bundler.errors import BundlerError
from tests.gpu.accelerators import Checks, Place, first_accelerator

pytestmark = pytest.mark.gpu
CUDA_CONTEXT_BYTES = 700 << 20
"""What a CUDA process takes beside llama.cpp's buffers: 300-500 MB were seen; see facts."""
HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}


@pytest.fixture(scope="module")
def place():
    try:
        device = first_accelerator()
    except BundlerError as error:
        pytest.skip(f"llama.cpp cannot be loaded: {error}")
    if device is None:
        pytest.skip("this llama.cpp sees no accelerator (CPU build, or no driver)")
    if device["description"].startswith("llvmpipe"):
        pytest.skip("this is Mesa's software device: see tests/test_accelerator_in_software.py")
    return Place(device, dict(os.environ), {**os.environ, **HIDDEN})


class TestRealAccelerator(Checks):
    def test_the_drivers_account_holds_ours_and_a_context(self, tmp_path, place):
        if place.device["kind"] != "cuda":
            pytest.skip(f"only CUDA has an account per process here, not {place.device['kind']}")
        proof = self.proved(tmp_path, place)
        assert proof.device.driver
        assert proof.device.peak_memory_source.startswith("nvml")
        ours = proof.settings["backend_memory_bytes"]
        assert ours <= proof.device.peak_memory_bytes <= ours + CUDA_CONTEXT_BYTES
