"""Who lies where in a machine's memories, ready to be drawn: on a terminal, or in a report. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bundler.plan import Choice, Memory, TierPlan
from bundler.value import format_bytes

Kind = Literal["weights", "kv", "compute", "backend", "host"]
KINDS: tuple[tuple[Kind, str], ...] = (
    ("weights", "weights"), ("kv", "KV cache"), ("compute", "compute buffers"),
    ("backend", "backend"), ("host", "kept in main memory"),
)  # fmt: skip
_FIELDS: tuple[tuple[Kind, str], ...] = (
    ("weights", "weights_bytes"), ("kv", "kv_cache_bytes"), ("compute", "compute_bytes"),
    ("backend", "overhead_bytes"),
)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """What one model takes of one memory."""

    model: str
    number: int
    """Its place in the plan: the same letter and colour everywhere."""
    parts: tuple[tuple[Kind, int], ...]
    """Bytes by what they are for, none of them 0."""

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(size for _, size in self.parts)


@dataclass(frozen=True)
class Bar:
    """One memory and who is in it."""

    name: str
    limit_bytes: int
    used_bytes: int
    residents: tuple[Share, ...]
    """Always there."""
    turns: tuple[Share, ...]
    """One after the other in the same room, the largest first."""

    @property
    def free_bytes(self) -> int:
        """What is left while the largest of those that take turns is there."""
        return self.limit_bytes - self.used_bytes

    @property
    def scale_bytes(self) -> int:
        """What the whole length stands for."""
        return max(self.limit_bytes, self.used_bytes, 1)


def in_words(bar: Bar) -> str:
    """Return how full a memory is."""
    left = bar.free_bytes
    rest = f"{format_bytes(left)} free" if left >= 0 else f"{format_bytes(-left)} too much"
    host = {kind for s in (*bar.residents, *bar.turns) for kind, _ in s.parts} == {"host"}
    aside = "; beside the accelerator" if host else ""
    return (
        f"{format_bytes(bar.used_bytes)} of {format_bytes(bar.limit_bytes)} usable, {rest}{aside}"
    )


def memory_bars(tier: TierPlan) -> tuple[Bar, ...]:
    """Return a bar for each accelerator and one for the main memory."""
    target = tier.target
    bars = []
    if target.accelerator != "none":
        names = ["VRAM"]
        if target.device_count > 1:
            names = [f"VRAM {number + 1}" for number in range(target.device_count)]
        for device, name in enumerate(names):
            shares = [_on_device(c, n, device) for n, c in enumerate(tier.choices)]
            bars.append(_bar(name, target.usable_vram_bytes, tier.choices, shares))
    shares = [_in_main_memory(c, n, tier) for n, c in enumerate(tier.choices)]
    return (*bars, _bar("RAM", target.ram_bytes, tier.choices, shares))


def _bar(name: str, limit: int, choices: Sequence[Choice], shares: Sequence[Share]) -> Bar:
    here = [(c, s) for c, s in zip(choices, shares, strict=True) if s.total_bytes]
    residents = tuple(share for choice, share in here if choice.residency == "resident")
    turns = sorted(
        (share for choice, share in here if choice.residency != "resident"),
        key=lambda share: (-share.total_bytes, share.number),
    )
    used = sum(share.total_bytes for share in residents) + (turns[0].total_bytes if turns else 0)
    return Bar(name, limit, used, residents, tuple(turns))


def _on_device(choice: Choice, number: int, device: int) -> Share:
    """Return what a model takes of one accelerator.

    Of several, only the sum on each is known: what it is for is shown in the whole's proportions.
    """
    memory = choice.offer.memory
    if choice.offer.gpu_layers == 0:
        return Share(choice.model, number, ())
    if not memory.by_device:
        return Share(choice.model, number, _parts(memory) if device == 0 else ())
    here = memory.by_device[device] if device < len(memory.by_device) else 0
    return Share(choice.model, number, _in_proportion(_parts(memory), here))


def _in_proportion(parts: tuple[tuple[Kind, int], ...], total: int) -> tuple[tuple[Kind, int], ...]:
    """Return parts that add up to `total`, in the proportions that they have."""
    whole = sum(size for _, size in parts)
    found, before, upto = [], 0, 0
    for kind, size in parts:
        upto += size
        end = total * upto // whole
        found.append((kind, end - before))
        before = end
    return tuple((kind, size) for kind, size in found if size)


def _in_main_memory(choice: Choice, number: int, tier: TierPlan) -> Share:
    memory = choice.offer.memory
    if tier.target.accelerator == "none" or choice.offer.gpu_layers == 0:
        return Share(choice.model, number, _parts(memory))
    return Share(choice.model, number, (("host", memory.host_bytes),) if memory.host_bytes else ())


def _parts(memory: Memory) -> tuple[tuple[Kind, int], ...]:
    return tuple((kind, size) for kind, field in _FIELDS if (size := getattr(memory, field)))


def allot(sizes: Sequence[int], scale_bytes: int, cells: int) -> list[int]:
    """Share out cells by size, so that nothing that is there vanishes and the sum is right.

    >>> allot([100, 1, 299], 400, 8)
    [2, 1, 5]
    """
    found, upto, before = [], 0, 0
    for size in sizes:
        upto += size
        end = round(upto * cells / scale_bytes)
        found.append(end - before)
        before = end
    for index, size in enumerate(sizes):
        largest = max(range(len(found)), key=found.__getitem__)
        if size and not found[index] and found[largest] > 1:
            found[index], found[largest] = 1, found[largest] - 1
    return found
