"""Tells whether the device of a proof is the target's own kind of card, by what both are called.

Drivers say `NVIDIA GeForce RTX 4090`, catalogues say `NVIDIA RTX 4090 24 GB`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Set

from bundler.hardware import Target
from bundler.measured import Device

# Words that tell makers and packages apart, not cards. `laptop`, `ti`, `super`, `pcie`, `max` do:
# such cards have another speed or another memory.
_NOISE = frozenset({
    "nvidia", "geforce", "amd", "radeon", "intel", "apple", "gpu", "cpu", "graphics", "tesla", "r",
    "tm", "sxm2", "sxm4", "sxm5", "hbm2", "hbm2e", "hbm3", "hbm3e", "processor",
})  # fmt: skip
_SIZE = re.compile(r"\b(\d+) ?(?:gb|gib)\b")


def is_own_device(device: Device, target: Target) -> bool:
    """Tell whether a proof ran on the target's own kind of device: as many, of the same card.

    False when in doubt: what is measured elsewhere may be shown, and not believed.
    """
    kind = "cpu" if target.accelerator == "none" else target.accelerator
    cards = device.name.split(" + ")
    count = 1 if target.accelerator == "none" else target.device_count
    return (
        device.kind == kind
        and len(cards) == count
        and all(
            any(same_card(card, name) for name in (target.title, target.name)) for card in cards
        )
    )


def same_card(one: str, other: str) -> bool:
    """Tell whether two names mean the same card; sizes must agree where both names have one.

    >>> same_card("NVIDIA GeForce RTX 4090", "NVIDIA RTX 4090 24 GB")
    True
    >>> same_card("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090")
    False
    """
    (words, size), (other_words, other_size) = _read(one), _read(other)
    return (
        bool(words) and words == other_words and (not size or not other_size or size == other_size)
    )


def _read(name: str) -> tuple[Set[str], str]:
    """Return the words that tell a card from others, and its memory as digits, if it says so."""
    plain = re.sub(r"[^a-z0-9]+", " ", name.lower())
    size = _SIZE.search(plain)
    words = frozenset(_SIZE.sub(" ", plain).split()) - _NOISE
    return words, size[1] if size else ""
