"""A measured machine as the `[target]` table of a recipe, each figure with how it was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bundler.machine.values import Card, Figure, Machine

_GB = 10**9
_ORDER = ("cuda", "rocm", "metal", "vulkan")


class Line(NamedTuple):
    """One key of the table."""

    key: str
    value: str | int
    why: str


def chosen_cards(cards: Sequence[Card]) -> tuple[tuple[Card, ...], tuple[Card, ...]]:
    """Return the cards a target can name (all of one name), and those it leaves out.

    Those with the most memory together win; a target's accelerators are all alike.
    """
    alike: dict[tuple[str, str], list[Card]] = defaultdict(list)
    for card in cards:
        if card.free_bytes > 0:
            alike[card.kind, card.name].append(card)
    if not alike:
        return (), tuple(cards)
    best = max(
        alike.values(),
        key=lambda group: (sum(c.free_bytes for c in group), -_ORDER.index(group[0].kind)),
    )
    return tuple(best), tuple(card for card in cards if card not in best)


def target_lines(machine: Machine) -> list[Line]:
    """Return the keys of `[target]` for this machine. What was not measured is left out."""
    cards, _ = chosen_cards(machine.cards)
    return [*_card_lines(cards), *_memory_lines(machine, on_card=bool(cards))]


def _card_lines(cards: Sequence[Card]) -> Iterator[Line]:
    if not cards:
        yield Line("accelerator", "none", "none was found that can be used")
        return
    card = min(cards, key=lambda c: c.free_bytes)
    yield Line("accelerator", card.kind, f"{card.name}; {card.how}")
    if len(cards) > 1:
        yield Line("devices", len(cards), "all of this name; the figures are of each")
    display = {True: "; it drives a display", False: "; it drives no display", None: ""}
    total = f"free now of {gibibytes(card.total_bytes)}{display[card.drives_display]}"
    yield Line("usable_vram", gibibytes(card.free_bytes), total)
    if card.shares_main_memory:
        yield Line("unified_memory", True, "the accelerator uses the main memory")
    if card.bandwidth_bytes_per_second:
        yield Line(
            "memory_bandwidth", gigabytes(card.bandwidth_bytes_per_second),
            "per second; from memory clock and bus width, as the driver says them",
        )  # fmt: skip


def _memory_lines(machine: Machine, *, on_card: bool) -> Iterator[Line]:
    if machine.ram_free is not None:
        of = f" of {gibibytes(machine.ram_total.value)}" if machine.ram_total else ""
        yield Line(
            "ram", gibibytes(machine.ram_free.value), f"free now{of}; {machine.ram_free.how}"
        )
    if machine.ram_bandwidth is not None:
        why = f"per second; {_with_spread(machine.ram_bandwidth)}"
        if not on_card:
            yield Line("memory_bandwidth", gigabytes(machine.ram_bandwidth.value), why)
        yield Line(
            "host_memory_bandwidth", gigabytes(machine.ram_bandwidth.value),
            why if on_card else "the same memory",
        )  # fmt: skip
    if machine.disk_read is not None:
        why = f"per second; {_with_spread(machine.disk_read)}"
        yield Line("disk_read", gigabytes(machine.disk_read.value), why)


def _with_spread(figure: Figure) -> str:
    if not figure.high:
        return figure.how
    again = "; unsteady: measure again when the machine is idle" if figure.is_disturbed else ""
    return f"{figure.how}; {gigabytes(figure.low)} to {gigabytes(figure.high)}{again}"


def gibibytes(count: int) -> str:
    """Write memory as a recipe does, never more than there is.

    >>> gibibytes(24_564_999_999), gibibytes(567_275_555)
    ('22.87 GiB', '540 MiB')
    """
    if count < 1 << 30:
        return f"{count >> 20} MiB"
    return f"{count * 100 // (1 << 30) / 100:.2f} GiB"


def gigabytes(count: int) -> str:
    """Write a speed, a file or a stick as a recipe does, never more than there are.

    >>> gigabytes(24_564_999_999), gigabytes(567_275_555)
    ('24.56 GB', '567 MB')
    """
    if count < _GB:
        return f"{count // 10**6} MB"
    return f"{count // (_GB // 100) / 100:.2f} GB"


def target_toml(machine: Machine, when: str, version: str) -> str:
    """Return the table with its comments, ready to be pasted into a recipe."""
    _, left_out = chosen_cards(machine.cards)
    lines = [
        f"# This machine as bundler {version} measured it on {when}: "
        f"{_plain(machine.processor) or 'unknown processor'}, {machine.cores} cores.",
        "# What is free was free then: close what will not run beside the models, and measure",
        "# again; or write less.",
        "[target]",
    ]
    table = target_lines(machine)
    texts = [f"{line.key} = {_toml(line.value)}" for line in table]
    width = max(map(len, texts), default=0)
    lines += [
        f"{text:{width}}  # {_plain(line.why)}" for text, line in zip(texts, table, strict=True)
    ]
    lines += [f"# platforms = [{_toml(machine.platform)}] in [bundle]"] if machine.platform else []
    lines += [f"# processor level: {machine.cpu_level} ({_plain(machine.cpu_level_how)})"]
    lines += [
        f"# also there, not in the figures: {_plain(card.name)}, {gibibytes(card.free_bytes)} free "
        f"of {gibibytes(card.total_bytes)} ({_plain(card.how)})"
        for card in left_out
    ]
    lines += [f"# {_plain(note)}" for note in machine.notes]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{value}"'


def _plain(text: str) -> str:
    """Return text that can stand in a comment: names come from drivers, so from anywhere."""
    return "".join(c if c.isprintable() else " " for c in text)
