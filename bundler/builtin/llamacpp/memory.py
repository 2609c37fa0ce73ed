"""How much memory a model takes in llama.cpp, from header facts alone. Pure.

Each term is a function with its source: weights (`placement`), KV cache (`caches`), compute buffers
(`graph`, which builds llama.cpp's own graphs as shapes and places them as ggml's allocator does),
rows of results, and what a backend takes for itself (`overheads`). Weights, cache and compute
buffers are exact to the byte for the llama.cpp inside the llama-cpp-python 0.3.36 sdist; the tests
and `make bench-plan` hold them to its own account.
"""

from __future__ import annotations

from collections.abc import Mapping

from bundler.builtin.llamacpp.caches import NO_CACHE, kv_cache_bytes
from bundler.builtin.llamacpp.graph.backends import DEVICES
from bundler.builtin.llamacpp.graph.families import why_not
from bundler.builtin.llamacpp.graph.pieces import NotDescribed
from bundler.builtin.llamacpp.graph.reserve import compute_buffers
from bundler.builtin.llamacpp.graph.shape import Run
from bundler.builtin.llamacpp.overheads import OVERHEADS, PROMPT_CACHE_BYTES
from bundler.builtin.llamacpp.placement import (
    Weights,
    layer_homes,
    place_adapters,
    place_weights,
    placement_of,
    uses_cpu_only,
)
from bundler.builtin.llamacpp.projector import Seeing
from bundler.errors import RecipeError
from bundler.hardware import Target
from bundler.lock import ModelFacts
from bundler.plan import Memory

__all__ = ["NO_CACHE", "OVERHEADS", "Run", "Weights", "model_memory", "output_bytes",
           "place_weights", "run_memory", "seeing_memory"]  # fmt: skip


def model_memory(
    facts: ModelFacts,
    types: Mapping[str, str],
    *,
    context_tokens: int,
    parallel: int,
    kv_cache: str,
    gpu_layers: int,
    batch_tokens: int,
    flash_attention: bool,
    target: Target,
) -> Memory:
    """Return what a model takes at its full context for all its users.

    Args:
        facts: the model.
        types: the type of each tensor in the file that is loaded.
        context_tokens: of each user; rounded up as llama.cpp does.
        parallel: users, each with a KV cache of its own.
        kv_cache: type of the cache: `f16`, `q8_0` or `q4_0`.
        gpu_layers: layers on the accelerator; -1 for all with the output layer.
        batch_tokens: the micro batch (`n_ubatch`).
        flash_attention: whether it is on.
        target: which backend, if any.
    """
    run = Run(context_tokens, parallel, kv_cache, batch_tokens, flash_attention)
    weights = place_weights(facts, types, gpu_layers=gpu_layers, target=target)
    return run_memory(facts, weights, run, gpu_layers=gpu_layers, target=target, types=types)


def run_memory(
    facts: ModelFacts,
    weights: Weights,
    run: Run,
    *,
    gpu_layers: int,
    target: Target,
    types: Mapping[str, str] | None = None,
) -> Memory:
    """Return `model_memory` for weights that were placed before.

    `types` are needed where only some layers are on the accelerator: large batches copy the
    others' weights there. Without them F32 is assumed, which is never too little.
    """
    reason = why_not(facts)
    placement = placement_of(facts, gpu_layers, target)
    adapters = place_adapters(facts, run.adapters, gpu_layers=gpu_layers, target=target)
    try:
        buffers = () if reason else compute_buffers(facts, run, placement, types or {})
    except NotDescribed as difference:
        buffers, reason = (), str(difference)
    if reason and run.adapters:
        raise RecipeError(
            f"an adapter can only be planned for a model whose graph is known here: {reason}",
            hint="merge the adapter into the model's weights, or leave it out",
        )
    if reason:
        return _asked(facts, weights, run, reason, gpu_layers=gpu_layers, target=target)
    weights = weights.plus(adapters)
    *on_devices, on_host = buffers
    caches = kv_cache_bytes(facts, run)
    results = output_bytes(facts, run)
    if uses_cpu_only(gpu_layers, target):
        return Memory(
            weights_bytes=weights.host_bytes,
            kv_cache_bytes=sum(caches),
            compute_bytes=on_host + results,
            overhead_bytes=OVERHEADS["none"].device_bytes + prompt_cache_bytes(facts, run),
        )
    overhead = OVERHEADS[target.accelerator]
    devices = target.device_count
    homes = layer_homes(facts, gpu_layers, devices)
    cached = [0] * (devices + 1)
    there = kv_cache_bytes(facts, run, DEVICES[target.accelerator])
    for home, here, size in zip(homes, caches, there, strict=False):
        cached[home] += here if home == devices else size
    shares = zip(weights.by_device, cached, on_devices, strict=False)
    return Memory(
        weights_bytes=weights.device_bytes,
        kv_cache_bytes=sum(cached[:devices]),
        compute_bytes=sum(on_devices),
        overhead_bytes=overhead.device_bytes * devices,
        host_bytes=weights.host_bytes
        + cached[devices]
        + on_host
        + results
        + overhead.host_bytes
        + prompt_cache_bytes(facts, run),
        by_device=tuple(sum(share) + overhead.device_bytes for share in shares),
    )


def seeing_memory(memory: Memory, facts: ModelFacts, seen: Seeing, *, on_cpu: bool) -> Memory:
    """Return a model's memory with that of its projector (`tools/mtmd`).

    It lies on the first accelerator (`ggml_backend_init_by_type`), or with the model on the CPU:
    the bundle's server asks for that. Beside it stand a picture and the vectors made of it, both
    while they are made and while they are read.
    """
    kept = 2 * 4 * seen.image_tokens * facts.hidden + 2 * 4 * 3 * seen.pixels
    if on_cpu:
        return memory.model_copy(
            update={
                "weights_bytes": memory.weights_bytes + seen.weights_bytes,
                "compute_bytes": memory.compute_bytes + seen.compute_bytes,
                "overhead_bytes": memory.overhead_bytes + kept,
            }
        )
    more = seen.weights_bytes + seen.compute_bytes
    first, *others = memory.by_device or (0,)
    return memory.model_copy(
        update={
            "weights_bytes": memory.weights_bytes + seen.weights_bytes,
            "compute_bytes": memory.compute_bytes + seen.compute_bytes,
            "host_bytes": memory.host_bytes + seen.host_bytes + kept,
            "by_device": (first + more, *others) if memory.by_device else (),
        }
    )


def _asked(
    facts: ModelFacts, weights: Weights, run: Run, reason: str, *, gpu_layers: int, target: Target
) -> Memory:
    """Return the memory of a model whose graph is not described here: llama.cpp is asked.

    It is asked for the CPU, since the accelerator is elsewhere: weights are still placed tensor by
    tensor, the cache is as large everywhere, and the compute buffer gets a margin for alignment and
    for what kernels keep behind their results, with keys and values of a layer as F16.
    """
    from bundler.builtin.llamacpp.measured_memory import SOURCE, measured_buffers

    found = measured_buffers(facts, run, reason)
    results = output_bytes(facts, run)
    if uses_cpu_only(gpu_layers, target):
        return Memory(
            weights_bytes=max(weights.host_bytes, found.weights),
            kv_cache_bytes=found.cache,
            compute_bytes=found.compute + results,
            overhead_bytes=OVERHEADS["none"].device_bytes + prompt_cache_bytes(facts, run),
            source=SOURCE,
        )
    if 0 < gpu_layers <= facts.layers or target.device_count > 1:
        raise RecipeError(
            f"the model can only be planned as a whole on one accelerator or on the CPU, since "
            f"its graph is not known here: {reason}",
            hint="a target with one accelerator that holds all of it, or another model",
        )
    overhead = OVERHEADS[target.accelerator]
    attending = max(1, sum(1 for heads in facts.kv_heads if heads))
    converted = found.cache // attending * (1 if run.kv_cache == "f16" else 4)
    return Memory(
        weights_bytes=weights.device_bytes,
        kv_cache_bytes=found.cache,
        compute_bytes=found.compute * 5 // 4 + converted,
        overhead_bytes=overhead.device_bytes,
        host_bytes=weights.host_bytes
        + found.compute
        + results
        + overhead.host_bytes
        + prompt_cache_bytes(facts, run),
        source=SOURCE,
    )


def prompt_cache_bytes(facts: ModelFacts, run: Run) -> int:
    """Return what the server of a writing model keeps of old prompts, in main memory."""
    embeds = run.embeddings or facts.architecture in NO_CACHE
    return 0 if embeds else PROMPT_CACHE_BYTES


def output_bytes(facts: ModelFacts, run: Run) -> int:
    """Return the rows kept for reading, in main memory (`llama_context::output_reserve`).

    One row of logits for each user when it generates. Who embeds gets a row for every token of a
    batch, and room for logits in each of them although nobody asked for logits.
    """
    if run.embeddings or facts.architecture in NO_CACHE:
        rows = max(run.tokens, run.parallel)
        return 4 * rows * (facts.vocabulary + facts.hidden)
    return 4 * facts.vocabulary * run.parallel
