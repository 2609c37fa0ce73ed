"""How few of a model's layers must be built to know what all of them take.

Layers of one kind have the same graph, so the allocator, which is a machine with a state (its holes
and where the layers' input lies), comes to a state it was in before after a few of them, and goes
round from there on. Leaving out whole rounds changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

_LONGEST_PERIOD = 12
_FIRST_TRY = 3


class Stretch(NamedTuple):
    """Layers from `start` on: a pattern of `period` layers, `times` over."""

    start: int
    period: int
    times: int


def stretches(kinds: Sequence[Hashable]) -> list[Stretch]:
    """Cut a model's layers into patterns that repeat."""
    found: list[Stretch] = []
    start = 0
    while start < len(kinds):
        stretch = _longest(kinds, start)
        found.append(stretch)
        start += stretch.period * stretch.times
    return found


def _longest(kinds: Sequence[Hashable], start: int) -> Stretch:
    """Return the pattern that repeats over the most layers; the shorter one of two equals."""
    best = Stretch(start, 1, 1)
    for period in range(1, min(_LONGEST_PERIOD, len(kinds) - start) + 1):
        times = 1
        pattern = kinds[start : start + period]
        while kinds[start + times * period : start + (times + 1) * period] == pattern:
            times += 1
        if times > 1 and times * period > best.times * best.period:
            best = Stretch(start, period, times)
    return best


class Simulated(NamedTuple):
    """What came of building some layers."""

    sizes: tuple[int, ...]
    states: Sequence[Hashable]
    """The allocator's state before each layer that was built."""


def sizes_of_all(
    kinds: Sequence[Hashable], simulate: Callable[[tuple[int, ...]], Simulated]
) -> tuple[int, ...]:
    """Return what `simulate` would say of all layers, by letting it build as few as it takes."""
    parts = stretches(kinds)
    kept = [min(part.times, _FIRST_TRY) for part in parts]
    while True:
        result = simulate(_layers(parts, kept))
        wanted = _enough(parts, kept, result.states)
        if wanted == kept:
            return result.sizes
        kept = wanted


def _layers(parts: Sequence[Stretch], kept: Sequence[int]) -> tuple[int, ...]:
    """Return the layers to build: of each stretch the last, since the very last may differ."""
    found: list[int] = []
    for part, times in zip(parts, kept, strict=True):
        end = part.start + part.period * part.times
        found += range(end - part.period * times, end)
    return tuple(found)


def _enough(parts: Sequence[Stretch], kept: Sequence[int], states: Sequence[Hashable]) -> list[int]:
    """Return how often each pattern must be built, given the states when it was built `kept` times."""
    wanted = []
    position = 0
    for part, times in zip(parts, kept, strict=True):
        seen = states[position : position + part.period * times : part.period]
        position += part.period * times
        left = part.times - times
        if left:
            round_ = _round(seen)
            times += left % round_ if round_ else min(left, times)
        wanted.append(times)
    return wanted


def _round(states: Sequence[Hashable]) -> int:
    """Return after how many times the last state had been there before; 0 when it had not."""
    for back in range(1, len(states)):
        if states[-1] == states[-1 - back]:
            return back
    return 0
