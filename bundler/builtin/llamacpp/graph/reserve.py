"""The compute buffers llama.cpp reserves for a model (`llama_context::sched_reserve`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from bundler.builtin.llamacpp.graph.allocator import Allocator
from bundler.builtin.llamacpp.graph.backends import CPU, Backend
from bundler.builtin.llamacpp.graph.blocks import Blocks
from bundler.builtin.llamacpp.graph.families import FAMILIES
from bundler.builtin.llamacpp.graph.repetition import Simulated, sizes_of_all
from bundler.builtin.llamacpp.graph.scheduler import schedule
from bundler.builtin.llamacpp.graph.shape import Model, Run, Same, Site, model_of
from bundler.builtin.llamacpp.graph.tensors import Graph
from bundler.lock import ModelFacts

_KEPT_RESULTS = 4096


@dataclass(frozen=True)
class Placement:
    """Where each layer of a model lies."""

    homes: tuple[int, ...]
    """The device of each layer and, last, of the output layer; `device_count` is the CPU."""
    device: Backend | None = None
    """What the devices are; None when there are none."""
    device_count: int = 0

    @classmethod
    def on_cpu(cls, facts: ModelFacts) -> Placement:
        """All of a model on the CPU, and no device in sight."""
        return cls((0,) * (facts.layers + 1))

    @property
    def is_partial(self) -> bool:
        """Whether some layers are on a device and others are not."""
        return self.device is not None and self.device_count in self.homes


def compute_buffers(
    facts: ModelFacts,
    run: Run,
    placement: Placement,
    types: Mapping[str, str],
    *,
    all_layers: bool = False,
    small_batches: bool = True,
) -> tuple[int, ...]:
    """Return the bytes of each backend's compute buffer, the CPU's last.

    Args:
        facts: the model; its architecture must be one of `families.FAMILIES`.
        run: how it is run.
        placement: where its layers lie.
        types: types of the weights, which matter where some of them stay on the CPU: they are
            copied to the device for large batches.
        all_layers: build every layer instead of as many as it takes.
        small_batches: reserve for single tokens too, which run elsewhere where some layers are on
            the CPU. llama.cpp does; only its account of what it has not allocated leaves it out.

    Raises NotDescribed for a model whose tensors are not those of its architecture.
    """
    model, results = model_of(facts), _results_of(Same(facts))
    lying = _types_on_cpu(model, placement, types) if placement.is_partial else ()
    key = (run, placement, lying, all_layers, small_batches)
    found = results.get(key)
    if found is None:
        found = results[key] = _reserve(model, run, placement, lying, all_layers, small_batches)
        while len(results) > _KEPT_RESULTS:
            results.popitem(last=False)
    return found


_Types = tuple[tuple[str, ...], ...]
_Key = tuple[Run, Placement, _Types, bool, bool]


@lru_cache(maxsize=64)
def _results_of(facts: Same[ModelFacts]) -> OrderedDict[_Key, tuple[int, ...]]:
    """Return what was found for a model before."""
    return OrderedDict()


def _types_on_cpu(model: Model, placement: Placement, types: Mapping[str, str]) -> _Types:
    """Return the types of each layer's weights that stay on the CPU, then of those of no layer."""
    found: list[tuple[str, ...]] = []
    for layer, names in enumerate(model.names):
        on_cpu = placement.homes[layer] == placement.device_count
        found.append(tuple(types.get(name, "F32") for name in names) if on_cpu else ())
    found.append(tuple(types.get(name, "F32") for name in model.outside))
    return tuple(found)


def _reserve(
    model: Model,
    run: Run,
    placement: Placement,
    lying: _Types,
    all_layers: bool,
    small_batches: bool,
) -> tuple[int, ...]:
    """Reserve for the largest batch and, where small ones run elsewhere, for one token each too."""
    copied = lying or ((),) * len(model.names)
    adapted = _adapted(model, run)
    kinds = list(zip(model.kinds, placement.homes, copied, adapted, strict=False))
    types = _by_name(model, lying)

    def sizes(tokens: int, outputs: int) -> tuple[int, ...]:
        def simulate(layers: tuple[int, ...]) -> Simulated:
            site = Site(placement.homes, placement.device_count, layers, types)
            return _simulate(Blocks(model, run, site, tokens, outputs), placement)

        if all_layers:
            return simulate(tuple(range(len(kinds)))).sizes
        return sizes_of_all(kinds, simulate)

    prompt = sizes(run.tokens, run.outputs)
    if not (placement.is_partial and small_batches):
        return prompt
    return tuple(map(max, prompt, sizes(run.parallel, run.parallel)))


def _adapted(model: Model, run: Run) -> list[tuple[Hashable, ...]]:
    """Return what adapters change in each layer: not all of them change all."""
    if not run.adapters:
        return [()] * len(model.names)
    found: list[tuple[Hashable, ...]] = []
    for layer in range(len(model.names)):
        begin = f"blk.{layer}."
        found.append(
            tuple(
                (number, replace(pair, name=pair.name.removeprefix(begin)))
                for number, adapter in enumerate(run.adapters)
                for pair in adapter
                if pair.name.startswith(begin)
            )
        )
    return found


def _by_name(model: Model, lying: _Types) -> dict[str, str]:
    found: dict[str, str] = {}
    for names, types in zip((*model.names, tuple(model.outside)), lying, strict=False):
        found.update(zip(names, types, strict=False))
    return found


def _simulate(blocks: Blocks, placement: Placement) -> Simulated:
    FAMILIES[blocks.facts.architecture](blocks)
    blocks.check_all_used()
    devices = [placement.device] * placement.device_count if placement.device else []
    backends = [*devices, CPU]
    pipeline = len(devices) > 1 and not placement.is_partial
    graph = schedule(blocks.graph, backends, pipeline=pipeline)
    if devices:
        _grow(graph, backends)
    allocator = Allocator([backend.buffers for backend in backends])
    return Simulated(tuple(allocator.reserve(graph)), allocator.states)


def _grow(graph: Graph, backends: Sequence[Backend]) -> None:
    """Give tensors the size that they have on their backend."""
    for tensor in (*graph.leaves, *graph.nodes):
        if tensor.view_of is None:
            tensor.size_bytes = backends[tensor.backend].size(tensor)
