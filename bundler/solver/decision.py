"""What is to be decided, as values: options, limits, and what a choice takes of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bundler.plan import Offer

DAMAGE_UNITS = 10_000
"""Damage is counted in ten-thousandths of a nat, a fourteenth of what Q8_0 costs: sums are then exact,
and a prediction that is off by a factor of two is not searched for differences that mean nothing."""
# What quality is worth by role: a chat model's damage weighs more than an embedder's.
ROLE_WEIGHT = {"chat": 1.0, "code": 1.0, "draft": 0.1, "embed": 0.5, "rerank": 0.5}


@dataclass(frozen=True)
class Limit:
    """Something of which there is only so much."""

    name: str
    """`VRAM`, `VRAM 2` (of several accelerators), `RAM`, `disk`, `download`."""
    capacity_bytes: int | None
    """None where nothing is said about it."""
    turns: bool
    """Memory: models that take turns have it one after the other. Disk and download just add up."""
    tier: str = ""
    """The machine whose memory it is; empty for what all machines share, and for the only one."""


@dataclass(frozen=True)
class Option:
    """One offer for one model on one machine, with what it takes and costs."""

    offer: Offer
    damage: int
    """In `DAMAGE_UNITS`, weighted; with what waiting and slower places cost."""
    needs: tuple[int, ...]
    """Of each limit, in the decision's order."""
    resident: bool = True
    """Always in memory; otherwise it takes turns."""
    file: str = ""
    """What the built file is known by: options of one model with the same file (not empty) on several
    machines take disk and download once."""


@dataclass(frozen=True)
class Wanted:
    """One model on one machine, with everything that could be taken for it."""

    name: str
    tier: str
    options: tuple[Option, ...]
    optional: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Model and machine."""
        return self.name, self.tier


@dataclass(frozen=True)
class Decision:
    """What is to be decided: options for all models on all machines, and the limits they share."""

    wanted: tuple[Wanted, ...]
    limits: tuple[Limit, ...]

    def with_capacity(self, name: str, tier: str, capacity_bytes: int | None) -> Decision:
        """Return the same decision with another capacity of one limit.

        Raises:
            KeyError: there is no such limit.
        """
        if (name, tier) not in {(limit.name, limit.tier) for limit in self.limits}:
            raise KeyError(f"{name} of {tier!r}")
        limits = tuple(
            replace(limit, capacity_bytes=capacity_bytes)
            if (limit.name, limit.tier) == (name, tier)
            else limit
            for limit in self.limits
        )
        return replace(self, limits=limits)

    def without(self, model: str, tier: str | None = None) -> Decision:
        """Return the same decision without a model, on one machine or (None) on all."""
        kept = (w for w in self.wanted if w.name != model or tier not in (None, w.tier))
        return replace(self, wanted=tuple(kept))

    def of_tier(self, tier: str) -> Decision:
        """Return the part that one machine decides alone: its models, no limit that is shared."""
        limits = tuple(
            limit if limit.turns and limit.tier == tier else replace(limit, capacity_bytes=None)
            for limit in self.limits
        )
        return Decision(tuple(w for w in self.wanted if w.tier == tier), limits)

    @property
    def tiers(self) -> tuple[str, ...]:
        """The machines, in order."""
        return tuple(dict.fromkeys(want.tier for want in self.wanted))

    def used(self, chosen: Mapping[tuple[str, str], Option]) -> tuple[int, ...]:
        """Return what a choice takes of each limit.

        Residents add up, and beside them there is room for whichever of the others takes most; a
        file that several machines use counts once.
        """
        alone = [0] * len(self.limits)
        turn = [0] * len(self.limits)
        seen: set[tuple[str, str]] = set()
        for (name, _), option in chosen.items():
            new = not option.file or (name, option.file) not in seen
            seen.add((name, option.file))
            for index, (limit, need) in enumerate(zip(self.limits, option.needs, strict=True)):
                if not limit.turns:
                    alone[index] += need if new else 0
                elif option.resident:
                    alone[index] += need
                else:
                    turn[index] = max(turn[index], need)
        return tuple(a + b for a, b in zip(alone, turn, strict=True))

    def broken(self, used: Sequence[int]) -> list[tuple[Limit, int]]:
        """Return the limits that are exceeded, with the bytes that are too much."""
        return [
            (limit, need - limit.capacity_bytes)
            for limit, need in zip(self.limits, used, strict=True)
            if limit.capacity_bytes is not None and need > limit.capacity_bytes
        ]


@dataclass(frozen=True)
class Solution:
    """The best choice there is."""

    chosen: Mapping[tuple[str, str], Option]
    """Model and machine → what was taken."""
    damage: int
    gap: int = 0
    """How much better another choice could be at most; 0 where it is proved that none is."""


@dataclass(frozen=True)
class Settlement:
    """A solution, perhaps without some optional models."""

    solution: Solution
    decision: Decision
    """What was decided in the end, without what was left out."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Models with their machines, in the order in which they were given up."""
