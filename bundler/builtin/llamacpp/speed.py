"""How fast a model can write at most: what each token reads, by the bandwidth of where it lies. Pure.

Writing one token multiplies vectors with every weight once, so reading the weights and the KV cache
is what takes the time (as counted in Pope et al., "Efficiently Scaling Transformer Inference", 2022).
No kernel reaches the peak bandwidth, and work that does not read is left out: the figure is an upper
bound, and is called one wherever it is shown. Proofs measure what is really reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bundler.builtin.llamacpp.caches import kv_cache_bytes
from bundler.builtin.llamacpp.graph.shape import Run
from bundler.builtin.llamacpp.layers import layers_of
from bundler.builtin.llamacpp.placement import homes_of, layer_homes, uses_cpu_only
from bundler.builtin.llamacpp.types import stored_bytes
from bundler.hardware import Target
from bundler.lock import ModelFacts, TensorFact

CACHE_DEPTH = 0.5
"""How full the one user's context is, who is served: the middle of a conversation that fills it."""
# Only one row of it is read for a token (`ggml_get_rows`), unless it is the output as well.
_EMBEDDING = "token_embd.weight"
# Experts of a layer lie in one tensor; a token reads those that its router picks (`ggml_mul_mat_id`).
_EXPERTS = "_exps."


@dataclass(frozen=True)
class Reading:
    """Bytes that one token reads."""

    device_bytes: int
    """On accelerators; layers are worked on one after the other, on whichever it is."""
    host_bytes: int
    """In main memory."""

    def plus(self, other: Reading) -> Reading:
        """Return both together."""
        return Reading(self.device_bytes + other.device_bytes, self.host_bytes + other.host_bytes)


def read_weights(
    facts: ModelFacts, types: Mapping[str, str], *, gpu_layers: int, target: Target
) -> Reading:
    """Return what one token reads of a model's weights, where."""
    homes, devices = _homes(facts, gpu_layers, target)
    taken = {True: 0, False: 0}
    for place, size in layers_of(facts).each(types, partial(_read_of_all, facts=facts)):
        # A tied embedding lies twice, and is read where the output is.
        taken[homes_of(facts, place, homes, devices)[-1] == devices] += size
    return Reading(device_bytes=taken[False], host_bytes=taken[True])


def read_cache(facts: ModelFacts, run: Run, *, gpu_layers: int, target: Target) -> Reading:
    """Return what one token reads of the KV cache, with one user served at `CACHE_DEPTH`."""
    homes, devices = _homes(facts, gpu_layers, target)
    taken = {True: 0, False: 0}
    for home, cache in zip(homes, kv_cache_bytes(facts, run), strict=False):
        taken[home == devices] += int(cache / run.parallel * CACHE_DEPTH)
    return Reading(device_bytes=taken[False], host_bytes=taken[True])


def _homes(facts: ModelFacts, gpu_layers: int, target: Target) -> tuple[tuple[int, ...], int]:
    """Return the device of each layer and how many there are; that number is the CPU."""
    if uses_cpu_only(gpu_layers, target):
        return (0,) * (facts.layers + 1), 0
    return layer_homes(facts, gpu_layers, target.device_count), target.device_count


def _read_of_all(tensors: Sequence[tuple[TensorFact, str]], facts: ModelFacts) -> int:
    return sum(_read_bytes(facts, tensor, kind) for tensor, kind in tensors)


def _read_bytes(facts: ModelFacts, tensor: TensorFact, type_name: str) -> int:
    size = stored_bytes(type_name, tensor.shape)
    if tensor.name == _EMBEDDING and not facts.tied_embeddings:
        return size // max(1, tensor.shape[0])
    if _EXPERTS in tensor.name and facts.experts:
        return size * facts.experts_used // facts.experts
    return size


def tokens_per_second(read: Reading, target: Target) -> float:
    """Return the speed of writing that the target's memory allows at most; 0 when unknown."""
    host = target.host_memory_bandwidth_bytes_per_second
    device = target.memory_bandwidth_bytes_per_second
    if target.accelerator == "none" or target.unified_memory:
        host = device = device or host
    seconds = 0.0
    for size, bandwidth in ((read.device_bytes, device), (read.host_bytes, host)):
        if size and not bandwidth:
            return 0.0
        seconds += size / bandwidth if size else 0.0
    return round(1 / seconds, 2) if seconds else 0.0
