"""This machine itself: memory, processor, accelerators and how fast its disk reads."""

from __future__ import annotations

from collections.abc import Iterator

from bundler.doctor.findings import Finding
from bundler.machine.values import Card, Figure, Machine
from bundler.value import format_bytes

# Below it a 4-bit model of 8 billion weights takes longer than ten seconds to load.
_SLOW_DISK_BYTES_PER_SECOND = 500 * 10**6
_SMALL_RAM_BYTES = 4 * 2**30


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """Yield what the machine has; warn of what will be felt."""
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    yield Finding(
        topic="machine", name="processor", state="good",
        said=f"{machine.processor or 'unknown'}, {cores}, {machine.cpu_level}; "
        f"{machine.platform or 'a platform bundler does not know'}",
    )  # fmt: skip
    yield _memory(machine)
    if machine.ram_bandwidth is not None:
        unsteady = "; unsteady, other programs are at work" * machine.ram_bandwidth.is_disturbed
        said = f"{_rate(machine.ram_bandwidth)}; {machine.ram_bandwidth.how}{unsteady}"
        yield Finding(topic="machine", name="memory speed", state="good", said=said)
    for card in machine.cards:
        yield _card(card)
    if not machine.cards:
        said = "none; models run on the processor"
        yield Finding(topic="machine", name="accelerator", state="note", said=said)
    if machine.disk_read is not None:
        yield _disk(machine.disk_read)
    for note in machine.notes:
        yield Finding(topic="machine", name="not known", state="note", said=note)


def _memory(machine: Machine) -> Finding:
    if machine.ram_free is None:
        return Finding(
            topic="machine", name="RAM", state="warning",
            said="this system does not say how much is free",
            remedy="compare the plan's RAM with what you know of the machine",
        )  # fmt: skip
    total = f" of {format_bytes(machine.ram_total.value)}" if machine.ram_total else ""
    said = f"{format_bytes(machine.ram_free.value)} free{total}; {machine.ram_free.how}"
    if machine.ram_free.value >= _SMALL_RAM_BYTES:
        return Finding(topic="machine", name="RAM", state="good", said=said)
    return Finding(
        topic="machine", name="RAM", state="warning", said=said,
        remedy="close other programs, or raise the container's limit: models of 3 billion weights "
        "and more will not fit",
    )  # fmt: skip


def _card(card: Card) -> Finding:
    said = (
        f"{card.name} ({card.kind}), {format_bytes(card.free_bytes)} free of "
        f"{format_bytes(card.total_bytes)}; {card.how}"
    )
    return Finding(topic="machine", name="accelerator", state="good", said=said)


def _disk(speed: Figure) -> Finding:
    said = f"{_rate(speed)}; {speed.how}"
    if speed.value >= _SLOW_DISK_BYTES_PER_SECOND:
        return Finding(topic="machine", name="disk", state="good", said=said)
    return Finding(
        topic="machine", name="disk", state="warning", said=said,
        remedy="models load slowly from it: an SSD reads 500 MB/s and more, so keep store and "
        "bundles there",
    )  # fmt: skip


def _rate(figure: Figure) -> str:
    def amount(count: int) -> str:
        return f"{count / 1e9:.1f}" if count >= 10**9 else f"{count / 1e9:.2f}"

    spread = f" ({amount(figure.low)} to {amount(figure.high)})" if figure.high else ""
    return f"{amount(figure.value)} GB/s{spread}"
