"""What the stick's filesystem cannot hold. Pure."""

from __future__ import annotations

from bundler.errors import Problem
from bundler.lock import Lock
from bundler.recipe import Recipe
from bundler.value import format_size

# FAT32 cannot hold a file of 4 GiB (Microsoft FAT32 File System Specification: 32-bit sizes).
FAT32_MAX_FILE_BYTES = 2**32 - 1


def largest_file_bytes(recipe: Recipe) -> int | None:
    """Return the size of the largest file the recipe's filesystem can hold; None without a limit."""
    return FAT32_MAX_FILE_BYTES if recipe.bundle.filesystem == "fat32" else None


def too_large(what: str, size_bytes: int) -> Problem:
    """Return the problem of one file that is larger than FAT32 allows."""
    return Problem(
        f"{what} has {format_size(size_bytes)}; FAT32 holds no file of 4 GiB or more",
        hint='use a stick with exFAT: bundle.filesystem = "exfat"',
    )


def large_corpora(recipe: Recipe, lock: Lock) -> list[Problem]:
    """Return the files of corpora that the stick cannot hold."""
    limit = largest_file_bytes(recipe)
    if limit is None:
        return []
    return [
        too_large(f"corpora.{name} ({file.path})", file.size_bytes)
        for name in recipe.corpora
        for file in lock.corpora[name].files
        if file.size_bytes > limit
    ]
