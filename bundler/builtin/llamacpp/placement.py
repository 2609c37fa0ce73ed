"""Where each part of a model lies: on which accelerator, or in main memory. Pure.

As `llama_model::load_tensors` in src/llama-model.cpp of the llama.cpp inside the llama-cpp-python
0.3.36 sdist places layers and weights.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from bundler.builtin.llamacpp.graph.backends import CPU, DEVICES, row_padding
from bundler.builtin.llamacpp.graph.reserve import Placement
from bundler.builtin.llamacpp.graph.shape import Same, padded
from bundler.builtin.llamacpp.types import stored_bytes
from bundler.hardware import Accelerator, Target
from bundler.lock import ModelFacts, TensorFact

_BLOCK = re.compile(r"blk\.(\d+)\.")
# Tensors of the input layer stay on the CPU (`LLM_TENSOR_LAYER_INPUT` in src/llama-arch.cpp).
_INPUT_LAYER = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_FIRST_LAYER = ("token_embd_norm.",)
# These belong to every layer: each backend that has one gets a copy (TENSOR_DUPLICATED).
_EVERY_LAYER = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
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
    kinds = tuple(types[tensor.name] for tensor in facts.tensors)
    sizes = _sizes_by_place(
        Same(facts), kinds, "none" if uses_cpu_only(gpu_layers, target) else target.accelerator
    )
    if uses_cpu_only(gpu_layers, target):
        return Weights(
            0, sum(here for here, _ in sizes.values()) + tied_copy_bytes(facts, types, target)
        )
    devices = target.device_count
    homes = layer_homes(facts, gpu_layers, devices)
    on_device = [0] * devices
    host = tied_copy_bytes(facts, types, target) if homes[-1] == devices else 0
    for place, (here, there) in sizes.items():
        for home in _homes_of(facts, place, homes, devices):
            if home == devices:
                host += here
            else:
                on_device[home] += there
    return Weights(sum(on_device), host, tuple(on_device) if devices > 1 else ())


@functools.lru_cache(maxsize=256)
def _sizes_by_place(
    facts: Same[ModelFacts], kinds: tuple[str, ...], accelerator: Accelerator
) -> dict[int, tuple[int, int]]:
    """Return the bytes of all tensors of each place, on the CPU and on an accelerator, padded."""
    found: dict[int, tuple[int, int]] = {}
    for tensor, kind in zip(facts.value.tensors, kinds, strict=True):
        place = _place_of(tensor.name)
        here, there = found.get(place, (0, 0))
        found[place] = (
            here + _padded_bytes(kind, tensor.shape, "none"),
            there + _padded_bytes(kind, tensor.shape, accelerator),
        )
    return found


def tensor_homes(
    facts: ModelFacts, name: str, homes: tuple[int, ...], devices: int
) -> tuple[int, ...]:
    """Return where a tensor lies: once, or twice for embeddings that are the output as well.

    A tied output on an accelerator is a second copy: the embedding itself stays on the CPU
    (TENSOR_DUPLICATED).
    """
    return _homes_of(facts, _place_of(name), homes, devices)


def _homes_of(
    facts: ModelFacts, place: int, homes: tuple[int, ...], devices: int
) -> tuple[int, ...]:
    if place >= 0:
        return (homes[min(place, len(homes) - 1)],)
    if place == _FIRST:
        return (homes[0],)
    if place == _EVERY:
        return tuple(sorted(set(homes[:-1])))
    if place == _OUTPUT:
        return (homes[-1],)
    if place == _TABLE and facts.tied_embeddings and homes[-1] != devices:
        return (devices, homes[-1])
    return (devices,)


_MATRIX = 2
_FIRST, _EVERY, _OUTPUT, _TABLE, _INPUT = -1, -2, -3, -4, -5


@functools.lru_cache(maxsize=1 << 16)
def _place_of(name: str) -> int:
    """Return a tensor's layer, or one of the places that are no layer."""
    match = _BLOCK.match(name)
    if match:
        return int(match[1])
    if name == "token_embd.weight":
        return _TABLE
    for prefixes, place in ((_FIRST_LAYER, _FIRST), (_EVERY_LAYER, _EVERY), (_INPUT_LAYER, _INPUT)):
        if name.startswith(prefixes):
            return place
    return _OUTPUT


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


def adapter_bytes(facts: ModelFacts, rank: int, type_: str = "F16") -> int:
    """Return the weights of a LoRA adapter on all matrices of all layers (`llama_adapter_lora`).

    They lie beside the matrices they change; each pair is `rank` rows down and `rank` columns up.
    """
    step = CPU.buffers.alignment
    total = 0
    for tensor in facts.tensors:
        if _place_of(tensor.name) < 0 or len(tensor.shape) != _MATRIX:
            continue
        rows, columns = tensor.shape
        total += padded(stored_bytes(type_, (rank, columns)), step)
        total += padded(stored_bytes(type_, (rows, rank)), step)
    return total
