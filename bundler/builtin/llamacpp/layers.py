"""A model's tensors layer by layer, so that what is alike is summed once. Pure.

A model has hundreds of tensors and a plan looks at dozens of ways to build it. Its layers repeat the
same shapes, and a scheme gives them two or three sets of types: a sum over tensors is taken once for
each set, and added up over layers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bundler.builtin.llamacpp.graph.shape import Same
from bundler.lock import ModelFacts, TensorFact

Measured = TypeVar("Measured")
Measure = Callable[[Sequence[tuple[TensorFact, str]]], Measured]
"""From tensors of one place with their types to what they take. It may look at a tensor's shape, type,
and name without its layer's number: at nothing in which layers that are alike differ."""

FIRST, EVERY, OUTPUT, TABLE, INPUT = -1, -2, -3, -4, -5
"""Places that are no layer: with the first one, with each, with the output; the embedding; the input."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
# Tensors of the input layer stay on the CPU (`LLM_TENSOR_LAYER_INPUT` in src/llama-arch.cpp).
_INPUT_LAYER = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_FIRST_LAYER = ("token_embd_norm.",)
# These belong to every layer: each backend that has one gets a copy (TENSOR_DUPLICATED).
_EVERY_LAYER = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")


def place_of(name: str) -> int:
    """Return a tensor's layer, or one of the places that are no layer."""
    match = _BLOCK.match(name)
    if match:
        return int(match[1])
    if name == "token_embd.weight":
        return TABLE
    for prefixes, place in ((_FIRST_LAYER, FIRST), (_EVERY_LAYER, EVERY), (_INPUT_LAYER, INPUT)):
        if name.startswith(prefixes):
            return place
    return OUTPUT


class Layers:
    """The tensors of a model by place; `layers_of` gives one for each facts."""

    def __init__(self, facts: ModelFacts) -> None:
        by_place: dict[int, list[TensorFact]] = {}
        for tensor in facts.tensors:
            by_place.setdefault(place_of(tensor.name), []).append(tensor)
        alike: dict[object, int] = {}
        self._names = [tensor.name for tensors in by_place.values() for tensor in tensors]
        self._runs: list[tuple[int, int, slice, list[TensorFact]]] = []
        start = 0
        for place, tensors in by_place.items():
            kind = (place >= 0, tuple((_own_name(t.name, place), t.shape) for t in tensors))
            run = slice(start, start + len(tensors))
            self._runs.append((place, alike.setdefault(kind, len(alike)), run, tensors))
            start = run.stop
        self._measured: dict[object, Any] = {}

    def each(
        self, types: Mapping[str, str], measure: Measure[Measured], *given: object
    ) -> Iterator[tuple[int, Measured]]:
        """Give every place with what its tensors take under `types`.

        `measure` with what it was made from (`given`) says what is remembered for whom: a function
        of a module, or a partial of one with `given`.
        """
        kinds = tuple([types[name] for name in self._names])
        key = getattr(measure, "func", measure)
        measured = self._measured
        for place, alike, run, tensors in self._runs:
            these = (key, given, alike, kinds[run])
            found = measured.get(these)
            if found is None:
                found = measured[these] = measure(list(zip(tensors, kinds[run], strict=True)))
            yield place, found


def _own_name(name: str, place: int) -> str:
    """Return a tensor's name without the number of its layer."""
    return name.partition(".")[2].partition(".")[2] if place >= 0 else name


def layers_of(facts: ModelFacts) -> Layers:
    """Return a model's tensors by place, worked out once for each facts."""
    return _layers_of(Same(facts))


@functools.lru_cache(maxsize=64)
def _layers_of(facts: Same[ModelFacts]) -> Layers:
    return Layers(facts.value)
