"""The axes of a frontier: both logarithmic, with a strip of its own for no damage at all. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bundler.advice.frontier import Frontier
from bundler.drawing.svg import Box

GIB = 1 << 30
_NO_DAMAGE_ROOM = 30.0
"""Height of the strip for models as published, whose damage has no logarithm."""


@dataclass(frozen=True)
class Scales:
    """Where values lie in a plot, both axes logarithmic; no damage has a strip of its own."""

    low_bytes: float
    high_bytes: float
    low_damage: float
    high_damage: float
    plot: Box

    def x(self, memory_bytes: float) -> float:
        """Return where an amount of memory lies."""
        share = math.log(memory_bytes / self.low_bytes) / math.log(self.high_bytes / self.low_bytes)
        return self.plot.x + self.plot.width * share

    def y(self, damage: float) -> float:
        """Return where a damage lies; less is higher up."""
        if damage <= 0:
            return self.plot.y + _NO_DAMAGE_ROOM / 2
        top, room = self.plot.y + _NO_DAMAGE_ROOM, self.plot.height - _NO_DAMAGE_ROOM
        most, least = math.log(self.high_damage), math.log(self.low_damage)
        return top + room * (math.log(max(damage, self.low_damage)) - least) / (most - least)


def scales_of(frontier: Frontier, plot: Box) -> Scales:
    """Return scales on which all points are in sight, and the limits where they are near."""
    points = [point for line in frontier.lines for point in line.points]
    sizes = [max(1, point.memory_bytes) for point in points] or [frontier.left_bytes or 1]
    # Limits are drawn where they are near; a card of 24 GB does not squeeze a model of 100 MB.
    sizes += [size for size in (frontier.limit_bytes, frontier.left_bytes)
              if min(sizes) / 3 <= size <= max(sizes) * 3]  # fmt: skip
    damages = [point.damage for point in points if point.damage > 0] or [0.01]
    return Scales(min(sizes) / 1.12, max(sizes) * 1.12, min(damages) / 2, max(damages) * 2, plot)


def memory_ticks(low: float, high: float) -> list[float]:
    """Return powers of two, with one between where they are few; even steps over short ranges."""
    if high / low < 3:
        step = 2.0 ** math.floor(math.log2((high - low) / 3))
        ticks = [number * step for number in range(math.ceil(low / step), int(high / step) + 1)]
    else:
        powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
        halves = (1.0, 1.5) if high / low < 16 else (1.0,)
        ticks = [half * 2.0**power for power in powers for half in halves]
    return [tick for tick in ticks if low * 1.02 < tick < high / 1.02]


def damage_ticks(low: float, high: float) -> list[float]:
    """Return 1 and 3 of each power of ten in sight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 3)]
    return [tick for tick in ticks if low * 1.1 < tick < high / 1.1]


def short_bytes(size: float) -> str:
    """Return an amount as a tick of the axis has it."""
    unit, name = (GIB, "GiB") if size >= GIB else (1 << 20, "MiB")
    return f"{size / unit:.4g} {name}"


def short_tokens(tokens: int) -> str:
    """Return a context as people say it: `8k`."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"
