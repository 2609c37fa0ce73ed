"""Which set of models this computer gets: the first whose needs are met. Pure.

A bundle may hold models for several kinds of computer, best first (`tiers` of `station.json`).
The needs of each were planned: the models that stay in memory, and the largest that takes turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from bundler.station.configuration import TierEntry
from bundler.station.probe import Device, Machine, printable
from bundler.station.problems import StationError

# Left over in main memory: the station itself (54 MB resident after questions to the embedded
# example), some 40 MB for each model server beside its model, and a page in a browser; and a share,
# since "available" is the system's estimate.
RAM_MARGIN_BYTES = 256 * 2**20
RAM_MARGIN_SHARE = 0.02
# Left over on an accelerator: plans are held to 2 % or 200 MiB of what llama.cpp takes.
VRAM_MARGIN_BYTES = 64 * 2**20
VRAM_MARGIN_SHARE = 0.02
# llama.cpp runs the same files on all of these; Apple's is a machine of another kind.
_CARDS = frozenset({"cuda", "rocm", "vulkan"})
_WORDS = {
    "cuda": "an NVIDIA card", "rocm": "an AMD card", "vulkan": "a graphics card",
    "metal": "Apple graphics",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """One tier held against the machine."""

    tier: TierEntry
    fits: bool
    reason: str
    """What it needs and what there is, with figures; no full stop."""
    on_processor: bool = False
    """It does not fit, but main memory could hold all of it: slow, not impossible."""
    unknown: bool = False
    """The system does not say how much is free: nothing is known against it either."""

    def as_json(self) -> dict[str, Any]:
        """Return it as the page's script gets it."""
        return {
            "name": self.tier.name, "title": printable(self.tier.title),
            "fits": self.fits, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class Picked:
    """The set of models that is served, and why."""

    tier: TierEntry
    by: Literal["machine", "person", "smallest", "only"]
    """Who decided: the probe, whoever started the station, nobody (none fits; there is one)."""
    judged: tuple[Judged, ...]
    """All tiers in the bundle's order."""
    notes: tuple[str, ...] = ()

    @property
    def own(self) -> Judged:
        """What was found for the tier that is served."""
        return next(one for one in self.judged if one.tier is self.tier)

    @property
    def next_name(self) -> str:
        """The name of the set after this one, which needs less; empty when there is none."""
        index = self.judged.index(self.own) + 1
        return self.judged[index].tier.name if index < len(self.judged) else ""

    @property
    def line(self) -> str:
        """One sentence on what is served; empty in a bundle for one kind of computer."""
        title = f"The models for “{printable(self.tier.title)}” are in use"
        count = len(self.judged)
        why = (
            "This system does not say what is free"
            if self.own.unknown
            else "None fits this computer"
        )
        return {
            "only": "",
            "person": f"{title}, as you asked.",
            "machine": f"{title}: of {count} sets, the best that fits this computer.",
            "smallest": f"{title}: of {count} sets, the smallest. {why}.",
        }[self.by]

    @property
    def warning(self) -> str:
        """What to expect and to do when the machine is too small; empty when it is not."""
        own = self.own
        if own.fits or own.unknown:
            return ""
        fitting = next((one.tier.name for one in self.judged if one.fits), "")
        if own.on_processor:
            remedy = f" To take a set that fits, start with --tier {fitting}." if fitting else ""
            return f"The models run on the processor, which is slow: {own.reason}.{remedy}"
        remedy = f"start with --tier {fitting}" if fitting else "use a computer that has more"
        return (
            f"The models may not start, or be very slow: {own.reason}. Close other programs "
            f"and start again, or {remedy}. Search and reading work in any case."
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as the page's script gets it."""
        return {
            "name": self.tier.name, "title": printable(self.tier.title), "by": self.by,
            "fits": self.own.fits, "line": self.line, "reason": self.own.reason,
            "sets": [one.as_json() for one in self.judged], "notes": list(self.notes),
        }  # fmt: skip


def pick(tiers: Sequence[TierEntry], machine: Machine, wish: str = "") -> Picked | None:
    """Return the tier to serve: the one wished for, else the first that fits, else the smallest.

    None for a bundle of before there were tiers.

    Raises StationError when there is no tier of the wished name.
    """
    wished = named(tiers, wish) if wish else None
    if not tiers:
        return None
    judged = tuple(judge(tier, machine) for tier in tiers)
    if wished is not None:
        return Picked(wished, "person", judged, machine.notes)
    if len(tiers) == 1:
        return Picked(tiers[0], "only", judged, machine.notes)
    fitting = next((one.tier for one in judged if one.fits), None)
    if fitting is not None:
        return Picked(fitting, "machine", judged, machine.notes)
    return Picked(min(tiers, key=_size), "smallest", judged, machine.notes)


def named(tiers: Sequence[TierEntry], wish: str) -> TierEntry:
    """Return the tier of that name.

    Raises StationError that lists those there are.
    """
    known = {tier.name: tier for tier in tiers if tier.name}
    if wish in known:
        return known[wish]
    if not known:
        raise StationError(
            f"--tier {printable(wish)}: this bundle holds one set of models",
            hint="Start it without --tier.",
        )
    near = get_close_matches(wish, known, n=1, cutoff=0.5)
    guess = f"Did you mean {near[0]}? " if near else ""
    there = ", ".join(f"{name} ({printable(tier.title)})" for name, tier in known.items())
    raise StationError(
        f"this bundle holds no set of models called {printable(wish)!r}",
        hint=f"{guess}There is: {there}. Name one with --tier or BUNDLER_TIER, or none at all.",
    )


def judge(tier: TierEntry, machine: Machine) -> Judged:
    """Hold what a tier needs against what a machine has."""
    unknown = machine.ram_bytes is None
    if tier.accelerator == "none":
        return Judged(tier, *_enough_ram(tier.ram_bytes, machine), unknown=unknown)
    usable = _of_one_backend(tier.accelerator, machine.devices)
    if len(usable) < tier.device_count:
        everything = tier.vram_bytes * tier.device_count + tier.ram_bytes
        in_ram, _ = _enough_ram(everything, machine)
        return Judged(tier, False, _no_device(tier, machine, len(usable)), on_processor=in_ram)
    chosen = usable[: tier.device_count]
    fits, reason = _enough_vram(tier.vram_bytes, chosen[-1])
    shared = sum(tier.vram_bytes for device in chosen if device.shared)
    if not tier.ram_bytes + shared:
        return Judged(tier, fits, reason)
    enough, ram_reason = _enough_ram(tier.ram_bytes + shared, machine)
    return Judged(tier, fits and enough, f"{reason}; {ram_reason}", unknown=fits and unknown)


def _of_one_backend(wanted: str, devices: Sequence[Device]) -> list[Device]:
    """Return the devices that can serve, the freest first: those of the backend that has most.

    Two backends list one card twice, and a model is never split between backends.
    """
    found: dict[str, list[Device]] = {}
    for device in devices:
        if _serves(wanted, device.kind):
            found.setdefault(device.kind, []).append(device)
    most = max(
        found.values(), default=[],
        key=lambda these: (len(these), these[0].kind == wanted, sum(d.free_bytes for d in these)),
    )  # fmt: skip
    return sorted(most, key=lambda device: -device.free_bytes)


def _serves(wanted: str, kind: str) -> bool:
    return kind == wanted or {kind, wanted} <= _CARDS


def _enough_vram(need: int, device: Device) -> tuple[bool, str]:
    spare = VRAM_MARGIN_BYTES + int(need * VRAM_MARGIN_SHARE)
    fits = need + spare <= device.free_bytes
    words = f"{_size_words(need)} of graphics memory are needed"
    there = f"{device.name} has {_size_words(device.free_bytes)} free"
    return fits, f"{words}, {there}" + ("" if fits else _close(need, device.free_bytes))


def _enough_ram(need: int, machine: Machine) -> tuple[bool, str]:
    words = f"{_size_words(need)} of memory are needed"
    if machine.ram_bytes is None:
        return False, f"{words} and this system does not say how much is free"
    fits = need + RAM_MARGIN_BYTES + int(need * RAM_MARGIN_SHARE) <= machine.ram_bytes
    limited = f" within {machine.ram_limited_by}" if machine.ram_limited_by else ""
    there = f"{_size_words(machine.ram_bytes)} are free{limited}"
    return fits, f"{words}, {there}" + ("" if fits else _close(need, machine.ram_bytes))


def _close(need: int, have: int) -> str:
    """Say why it does not fit although the figures alone say it does."""
    return ", too few to leave some for all else" if need <= have else ""


def _no_device(tier: TierEntry, machine: Machine, there: int) -> str:
    wanted = _WORDS.get(tier.accelerator, tier.accelerator)
    if tier.device_count > 1:
        return (
            f"{tier.device_count} accelerators are needed and the programs of this bundle can "
            f"use {there} here"
        )
    seen = [device.name for device in machine.seen if _serves(tier.accelerator, device.kind)]
    if seen:
        return f"{wanted} is needed; {seen[0]} is there, but no program of this bundle can use it"
    return f"{wanted} is needed and there is none that a program of this bundle can use"


def _size(tier: TierEntry) -> int:
    return tier.vram_bytes * tier.device_count + tier.ram_bytes


def _size_words(count: int) -> str:
    """Write a size for people, as `bundler plan` and the report do: binary units.

    >>> _size_words(7 * 2**30), _size_words(300 * 2**20)
    ('7.0 GiB', '300 MiB')
    """
    if count < 2**30:
        return f"{count / 2**20:.0f} MiB"
    return f"{count / 2**30:.1f} GiB"
