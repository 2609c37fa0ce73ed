"""What the stick's filesystem cannot hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bundler.errors import Problem
from bundler.lock import Lock
from bundler.plan import Offer
from bundler.recipe import Recipe
from bundler.value import format_size

# FAT32 cannot hold a file of 4 GiB (Microsoft FAT32 File System Specification: 32-bit sizes).
FAT32_MAX_FILE_BYTES = 2**32 - 1


def largest_file_bytes(recipe: Recipe) -> int | None:
    """Return the size of the largest file that the bundle may have; None without a limit."""
    limits = [recipe.bundle.max_file_size] if recipe.bundle.max_file_size else []
    if recipe.bundle.filesystem == "fat32":
        limits.append(FAT32_MAX_FILE_BYTES)
    return min(limits, default=None)


def can_be_stored(offer: Offer, most_bytes: int | None) -> bool:
    """Tell whether no file of a model, nor of what it runs with, has more than that."""
    beside = [one.file.size_bytes for one in offer.companions]
    return most_bytes is None or max([offer.largest_file_bytes, *beside]) <= most_bytes


def cannot_be_stored(what: str, offers: Iterable[Offer], most_bytes: int) -> Problem:
    """Return why none of a model's offers can be stored, and what would help."""
    smallest = min(
        offers, key=lambda offer: (offer.largest_file_bytes, offer.disk_bytes, offer.quant)
    )
    what = f"{what} ({smallest.quant})"
    for one in smallest.companions:
        if one.file.size_bytes > most_bytes:
            return too_large(f"{what}: its {one.kind}", one.file.size_bytes, most_bytes)
    if smallest.indivisible_bytes:
        return too_large(
            f"{what}: its largest tensor, which cannot be cut,",
            smallest.indivisible_bytes,
            most_bytes,
        )
    return too_large(what, smallest.largest_file_bytes, most_bytes)


def too_large(what: str, size_bytes: int, most_bytes: int) -> Problem:
    """Return the problem of one file that is larger than the stick, or the recipe, allows."""
    if most_bytes == FAT32_MAX_FILE_BYTES:
        return Problem(
            f"{what} has {format_size(size_bytes)}; FAT32 holds no file of 4 GiB or more",
            hint='use a stick with exFAT: bundle.filesystem = "exfat"',
        )
    return Problem(
        f"{what} has {format_size(size_bytes)}; no file may have more than {format_size(most_bytes)}",
        hint="a larger bundle.max_file_size, or something smaller",
        key="bundle.max_file_size",
    )


def large_corpora(recipe: Recipe, lock: Lock) -> list[Problem]:
    """Return the files of corpora that the stick cannot hold, of those that ship as they come.

    How large the others become is known when they are made; `compose` looks at them then.
    """
    limit = largest_file_bytes(recipe)
    if limit is None:
        return []
    return [
        too_large(f"corpora.{name} ({file.path})", file.size_bytes, limit)
        for name in recipe.corpora
        for file in lock.corpora[name].files
        if recipe.corpora[name].kind == "zim" and file.size_bytes > limit
    ]
