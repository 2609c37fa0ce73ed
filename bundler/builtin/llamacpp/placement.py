"""Where each part of a model lies: on which accelerator, or in main memory. Pure.

As `llama_model::load_tensors` in src/llama-model.cpp of the llama.cpp inside the llama-cpp-python
0.3.36 sdist places layers and weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundler.builtin.llamacpp.graph.backends import CPU, DEVICES, row_padding
from bundler.builtin.llamacpp.graph.reserve import Placement
from bundler.builtin.llamacpp.graph.shape import ThinPairs, padded
from bundler.builtin.llamacpp.layers import EVERY, FIRST, OUTPUT, TABLE, layers_of, place_of
from bundler.builtin.llamacpp.types import stored_bytes
from bundler.hardware import Accelerator, Target
from bundler.lock import ModelFacts, TensorFact

# What ARM's kernels want repacked, in rows of how many (ggml-cpu/repack.cpp): a tied output is then
# a copy of its own. On x86-64 these types are left as they are.
_REPACKED_ON_ARM = {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "Q8_0": 4, "IQ4_NL": 4}


@dataclass(frozen=True)
class Weights:
    """Where the bytes of a model's weights lie."""

    device_bytes: int
    host_bytes: int
    by_device: tuple[int, ...] = ()
    """The device's bytes, split over the accelerators; empty when there is one at most."""

    def plus(self, other: Weights) -> Weights:
        """Return the bytes of both, placed on the same target."""
        shares = zip(self.by_device, other.by_device, strict=True)
        return Weights(
            self.device_bytes + other.device_bytes,
            self.host_bytes + other.host_bytes,
            tuple(one + more for one, more in shares),
        )


@functools.lru_cache(maxsize=4096)
def _homes(layers: int, gpu_layers: int, devices: int) -> tuple[int, ...]:
    total = layers + 1
    count = total if gpu_layers < 0 else min(gpu_layers, total)
    on_devices = (index * devices // count for index in range(count))
    return (*(devices,) * (total - count), *on_devices)


def layer_homes(facts: ModelFacts, gpu_layers: int, devices: int) -> tuple[int, ...]:
    """Return the device of each layer and of the output layer; number `devices` is the CPU.

    The last layers go to accelerators first, and the output layer counts as one more and is the
    very first to go (`i_gpu_start`). Several accelerators get equal runs of layers, since
    llama.cpp splits in proportion to their free memory and these are alike.
    """
    return _homes(facts.layers, gpu_layers, devices)


def placement_of(facts: ModelFacts, gpu_layers: int, target: Target) -> Placement:
    """Return where a model's layers lie on a target."""
    if uses_cpu_only(gpu_layers, target):
        return Placement.on_cpu(facts)
    devices = target.device_count
    homes = layer_homes(facts, gpu_layers, devices)
    return Placement(homes, DEVICES[target.accelerator], devices)


def uses_cpu_only(gpu_layers: int, target: Target) -> bool:
    """Tell whether nothing goes to an accelerator."""
    return target.accelerator == "none" or gpu_layers == 0


def place_weights(
    facts: ModelFacts, types: Mapping[str, str], *, gpu_layers: int, target: Target
) -> Weights:
    """Return the bytes of weights on the accelerators, if any, and in main memory.

    Each tensor is padded to the alignment of its buffer.
    """
    cpu_only = uses_cpu_only(gpu_layers, target)
    accelerator: Accelerator = "none" if cpu_only else target.accelerator
    sizes = layers_of(facts).each(
        types, functools.partial(_padded_sizes, accelerator=accelerator), accelerator
    )
    if cpu_only:
        return Weights(
            0, sum(here for _, (here, _) in sizes) + tied_copy_bytes(facts, types, target)
        )
    devices = target.device_count
    homes = layer_homes(facts, gpu_layers, devices)
    on_device = [0] * devices
    host = tied_copy_bytes(facts, types, target) if homes[-1] == devices else 0
    for place, (here, there) in sizes:
        for home in homes_of(facts, place, homes, devices):
            if home == devices:
                host += here
            else:
                on_device[home] += there
    return Weights(sum(on_device), host, tuple(on_device) if devices > 1 else ())


def _padded_sizes(
    tensors: Sequence[tuple[TensorFact, str]], accelerator: Accelerator
) -> tuple[int, int]:
    """Return the bytes of some tensors on the CPU and on an accelerator, each padded."""
    return (
        sum(_padded_bytes(kind, tensor.shape, "none") for tensor, kind in tensors),
        sum(_padded_bytes(kind, tensor.shape, accelerator) for tensor, kind in tensors),
    )


def homes_of(
    facts: ModelFacts, place: int, homes: tuple[int, ...], devices: int
) -> tuple[int, ...]:
    """Return where a place's tensors lie: once, or twice for embeddings that are the output as well.

    A tied output on an accelerator is a second copy: the embedding itself stays on the CPU
    (TENSOR_DUPLICATED).
    """
    if place >= 0:
        return (homes[min(place, len(homes) - 1)],)
    if place == FIRST:
        return (homes[0],)
    if place == EVERY:
        return tuple(sorted(set(homes[:-1])))
    if place == OUTPUT:
        return (homes[-1],)
    if place == TABLE and facts.tied_embeddings and homes[-1] != devices:
        return (devices, homes[-1])
    return (devices,)


def tied_copy_bytes(facts: ModelFacts, types: Mapping[str, str], target: Target) -> int:
    """Return what a tied output takes for itself on an ARM CPU, whose kernels want it repacked."""
    on_arm = any(platform.endswith(("aarch64", "arm64")) for platform in target.platforms)
    if not facts.tied_embeddings or not on_arm:
        return 0
    for tensor in facts.tensors:
        if tensor.name == "token_embd.weight":
            rows = _REPACKED_ON_ARM.get(types[tensor.name], 0)
            return _size(tensor, types) if rows and tensor.shape[0] % rows == 0 else 0
    return 0


@functools.lru_cache(maxsize=1 << 16)
def _padded_bytes(type_: str, shape: tuple[int, ...], accelerator: Accelerator) -> int:
    """Return what a weight takes in its buffer (`…_buffer_type_get_alloc_size`)."""
    size = stored_bytes(type_, shape)
    if accelerator in ("cuda", "rocm"):
        size += row_padding(type_, shape[-1])
    backend = DEVICES.get(accelerator, CPU)
    return padded(size, backend.buffers.alignment)


def _size(tensor: TensorFact, types: Mapping[str, str]) -> int:
    return stored_bytes(types[tensor.name], tensor.shape)


def place_adapters(
    facts: ModelFacts, adapters: Sequence[ThinPairs], *, gpu_layers: int, target: Target
) -> Weights:
    """Return where the bytes of adapters lie: each pair beside the matrix that it changes.

    `llama_adapter_lora_init_impl` takes the buffer type of the matrix, and that of the first copy
    where there are two.
    """
    cpu_only = uses_cpu_only(gpu_layers, target)
    devices = 0 if cpu_only else target.device_count
    homes = (0,) * (facts.layers + 1) if cpu_only else layer_homes(facts, gpu_layers, devices)
    taken = [0] * (devices + 1)
    for pair in (pair for adapter in adapters for pair in adapter):
        home = homes_of(facts, place_of(pair.name), homes, devices)[0]
        accelerator: Accelerator = "none" if home == devices else target.accelerator
        for type_, sides in ((pair.down_type, pair.down), (pair.up_type, pair.up)):
            taken[home] += _padded_bytes(type_, sides[::-1], accelerator)
    *on_device, host = taken
    return Weights(sum(on_device), host, tuple(on_device) if devices > 1 else ())
