"""A bundle against this machine: can it start here, and which of its models fit?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from bundler.doctor.findings import Finding
from bundler.doctor.needs import loading_seconds
from bundler.hardware import Platform
from bundler.machine.values import Card, Machine
from bundler.manifest import BundledTier, Manifest
from bundler.station.configuration import TierEntry, read_bundle
from bundler.station.probe import Device
from bundler.station.probe import Machine as Probed
from bundler.station.problems import StationError
from bundler.station.tiers import judge
from bundler.value import format_bytes, format_size

_DOES_NOT_FIT = 4
_X86_ORDER = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
_ARM_ORDER = ("armv8", "armv8.2")
Drives = Set[str] | None


def serving(
    manifest: Manifest, bundle: Path, machine: Machine, runtimes: Mapping[str, object]
) -> Iterator[Finding]:
    """Yield whether this machine can serve the bundle, and with which of its sets of models."""
    yield _platform(manifest, machine)
    yield from _instructions(manifest, machine)
    if manifest.models:
        drives = _drives(bundle, machine.platform, runtimes)
        yield from _tiers(tiers_of(manifest), machine, drives)
        yield from _loading(manifest, machine)


def _drives(bundle: Path, platform: Platform | None, runtimes: Mapping[str, object]) -> Drives:
    """Return the accelerators that a bundle's runtimes can use here, by what their plugins say."""
    try:
        names = read_bundle(bundle).runtimes
    except StationError:
        return None  # `verify` says what is wrong with its files.
    told = [getattr(runtimes.get(name), "accelerators", None) for name in names]
    if not told or platform is None or None in told:
        return None
    return frozenset(kind for one in told if one for kind in one.get(platform, ()))


def _platform(manifest: Manifest, machine: Machine) -> Finding:
    has = ", ".join(manifest.platforms)
    if machine.platform in manifest.platforms:
        return Finding(topic="bundle", name="platform", state="good", said=f"made for {has}")
    return Finding(
        topic="bundle", name="platform", state="missing",
        said=f"made for {has}; this is {machine.platform or 'a system bundler does not know'}",
        remedy=f"add it to bundle.platforms and build again; models and library can be read with "
        f"a bundler of this machine: bundler serve {manifest.name}",
        exit_code=_DOES_NOT_FIT,
    )  # fmt: skip


def _instructions(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Compare processor levels of one family; another family is another platform."""
    wanted = manifest.target.cpu_level
    for order in (_X86_ORDER, _ARM_ORDER):
        if wanted not in order:
            continue
        if machine.cpu_level not in order:
            if machine.platform in manifest.platforms:
                yield Finding(
                    topic="bundle", name="processor", state="warning",
                    said=f"made for {wanted}; this one's level is not known "
                    f"({machine.cpu_level_how})",
                    remedy="start it: when a model cannot run, the station says so",
                )  # fmt: skip
        elif order.index(machine.cpu_level) < order.index(wanted):
            yield Finding(
                topic="bundle", name="processor", state="missing",
                said=f"made for {wanted}; this one is {machine.cpu_level}",
                remedy="use a newer computer, or build for a target with an older processor level",
                exit_code=_DOES_NOT_FIT,
            )  # fmt: skip
        else:
            said = f"{machine.cpu_level}, made for {wanted}"
            yield Finding(topic="bundle", name="processor", state="good", said=said)


def tiers_of(manifest: Manifest) -> Sequence[BundledTier]:
    """Return the sets of models with what they need; one, added up, where a bundle names none."""
    if manifest.tiers:
        return manifest.tiers
    target = manifest.target
    total = sum(model.predicted_memory.total_bytes for model in manifest.models)
    host = sum(model.predicted_memory.host_bytes for model in manifest.models)
    on_card = target.accelerator != "none"
    return (
        BundledTier(
            name="", title=target.title or target.name, target=target,
            vram_bytes=total if on_card else 0, ram_bytes=host if on_card else total,
        ),
    )  # fmt: skip


def _tiers(tiers: Sequence[BundledTier], machine: Machine, drives: Drives) -> Iterator[Finding]:
    """Yield one finding for each set of models; only when none fits is a need not met."""
    short = {tier.name: shortage(tier, machine, drives) for tier in tiers}
    served = next((tier for tier in tiers if not short[tier.name]), None)
    for tier in tiers:
        name = f"models {tier.name}".strip()
        if not short[tier.name]:
            word = "the station would take these" if tier is served else "would fit too"
            said = f"for {tier.title}: {word}; {_needs(tier)}"
            yield Finding(topic="bundle", name=name, state="good", said=said)
        elif served is not None:
            said = f"for {tier.title}: {short[tier.name]}; another set fits"
            yield Finding(topic="bundle", name=name, state="note", said=said)
        else:
            yield Finding(
                topic="bundle", name=name, state="missing",
                said=f"for {tier.title}: {short[tier.name]}",
                remedy="close other programs, or build for this machine: bundler targets --here; "
                "search and reader work without models",
                exit_code=_DOES_NOT_FIT,
            )  # fmt: skip


def _needs(tier: BundledTier) -> str:
    parts = [f"{format_bytes(tier.vram_bytes)} VRAM"] if tier.vram_bytes else []
    return " and ".join([*parts, f"{format_bytes(tier.ram_bytes)} RAM"]) + " needed"


def shortage(tier: BundledTier, machine: Machine, drives: Drives = None) -> str:
    """Return what this machine lacks for a set of models, with figures; empty when nothing.

    The judgement is the station's own, so that what is said here is what will be taken there.

    Args:
        tier: the set of models.
        machine: this one.
        drives: accelerators that the bundle's runtime can use; None when nobody says.
    """
    cards = [card for card in machine.cards if drives is None or card.kind in drives]
    seen = tuple(_device(card) for card in machine.cards)
    free = machine.ram_free.value if machine.ram_free is not None else None
    judged = judge(_entry(tier), Probed(free, devices=tuple(map(_device, cards)), seen=seen))
    return "" if judged.fits or judged.unknown else judged.reason


def _entry(tier: BundledTier) -> TierEntry:
    return TierEntry(
        tier.name, tier.title or tier.target.name, tier.target.accelerator,
        tier.vram_bytes, tier.ram_bytes, tier.target.device_count,
    )  # fmt: skip


def _device(card: Card) -> Device:
    return Device(
        card.kind, card.name, card.free_bytes, card.total_bytes, shared=card.shares_main_memory
    )


def _loading(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Say how long the models take to load from the disk the bundle lies on."""
    if machine.disk_read is None:
        return
    sizes = {file.path: file.size_bytes for file in manifest.files}
    for model in manifest.models:
        size = sum(sizes.get(path, 0) for path in model.files)
        seconds = loading_seconds(size, machine.disk_read.value)
        yield Finding(
            topic="bundle", name="loading", state="note",
            said=f"{model.name}: {format_size(size)} take {seconds} at "
            f"{machine.disk_read.value / 1e9:.2g} GB/s",
        )  # fmt: skip
