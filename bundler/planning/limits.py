"""Every limit of a plan: each machine's memory, the stick and the download. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bundler.errors import DoesNotFit, Problem
from bundler.hardware import Target
from bundler.lock import Lock
from bundler.plan import FileInput, Offer
from bundler.planning.parity_room import room_without_parity
from bundler.recipe import Recipe
from bundler.solver.decision import Limit
from bundler.value import format_bytes, format_size

SHARED = ("disk", "download")
OTHER_PARTS_BYTES = 3_000_000
"""The station's code, manifest, provenance, bill of materials, report and licence texts: 2.1 MB of the
embedded example. Larger bundles have longer lists, and more beside which they do not show."""
"""Limits of all machines together; the others are memories."""


@dataclass(frozen=True)
class Surroundings:
    """What is in the bundle, and what is fetched for it, whatever is chosen."""

    disk_bytes: int
    """Corpora, runtimes, the station."""
    fetched: Mapping[str, int]
    """SHA-256 → size of the locked files that are needed in any case."""


def limits_of(
    recipe: Recipe, targets: Mapping[str, Target], around: Surroundings
) -> tuple[Limit, ...]:
    """Return each machine's memory, then what all machines share, less what is taken already."""
    found = []
    for tier, target in targets.items():
        if target.accelerator != "none":
            found += [
                Limit(vram_name(number, target), target.usable_vram_bytes, turns=True, tier=tier)
                for number in range(target.device_count)
            ]
        found.append(Limit("RAM", target.ram_bytes, turns=True, tier=tier))
    disk = _left(_without_parity(recipe), around.disk_bytes)
    download = _left(recipe.bundle.max_download, sum(around.fetched.values()))
    shared = (Limit("disk", disk, turns=False), Limit("download", download, turns=False))
    return (*found, *shared)


def _without_parity(recipe: Recipe) -> int | None:
    """Return the stick's capacity, less what parity over the bundle will take of it."""
    size = recipe.bundle.max_size
    return None if size is None else room_without_parity(size, recipe.bundle.parity)


def amount_of(limit: str, count: int) -> str:
    """Write so much of a limit: memory in binary units, room on sticks and downloads in decimal."""
    return format_size(count) if limit in SHARED else format_bytes(count)


def vram_name(number: int, target: Target) -> str:
    """Return what the memory of one accelerator is called."""
    return "VRAM" if target.device_count == 1 else f"VRAM {number + 1}"


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def always_there_bytes(lock: Lock) -> int:
    """Return what of a bundle is neither a model nor a corpus: runtimes and what belongs to all."""
    runtimes = lock.runtimes.values()
    return OTHER_PARTS_BYTES + sum(one.staged_bytes or one.size_bytes for one in runtimes)


def surroundings(
    recipe: Recipe, lock: Lock, needed: Iterable[Sequence[Offer]], fixed_bytes: int
) -> Surroundings:
    """Return what is in the bundle and fetched whatever is chosen.

    Of models these are the files that each of their offers is made from: they are counted once,
    although several models may come from the same repository.

    Args:
        recipe: what is wanted.
        lock: what it will be made from.
        needed: the offers of each model that must not be left out.
        fixed_bytes: size of runtimes and other parts of the bundle.

    Raises:
        DoesNotFit: that is too much already, for the stick or the download.
    """
    corpora = [lock.corpora[name] for name in recipe.corpora]
    disk_bytes = sum(resolution.size_bytes for resolution in corpora) + fixed_bytes
    texts = lock.texts.values() if recipe.models else ()
    fetched = {
        file.sha256: file.size_bytes
        for resolution in (*corpora, *lock.runtimes.values(), *texts)
        for file in resolution.files
    }
    for offers in needed:
        fetched |= _in_any_case(offers)
    _check(recipe, disk_bytes, sum(fetched.values()))
    return Surroundings(disk_bytes, fetched)


def _check(recipe: Recipe, disk_bytes: int, download_bytes: int) -> None:
    bundle = recipe.bundle
    problems = [
        Problem(
            f"bundle.{key}: does not fit: {what} {format_size(used)}, the limit is "
            f"{format_size(limit)}; {format_size(used - limit)} too much",
            hint=hint,
        )
        for key, limit, used, what, hint in (
            ("max_size", bundle.max_size, disk_bytes, "corpora and runtimes alone take",
             "leave out a corpus, take a smaller edition of it, or a larger stick"),
            ("max_download", bundle.max_download, download_bytes, "whatever is chosen downloads",
             "leave out a corpus or a model, take smaller ones, or raise the limit"),
        )
        if limit is not None and used > limit
    ]  # fmt: skip
    if problems:
        raise DoesNotFit(problems)


def _in_any_case(offers: Sequence[Offer]) -> dict[str, int]:
    """Return the locked files that every one of a model's offers needs."""
    if not offers:
        return {}
    common = locked_inputs(offers[0])
    for offer in offers[1:]:
        own = locked_inputs(offer)
        common = {sha256: size for sha256, size in common.items() if sha256 in own}
    return common


def locked_inputs(offer: Offer) -> dict[str, int]:
    """Return the locked files that an offer is made from and measured with: SHA-256 → size."""
    given = [given for step in offer.steps for given in step.inputs.values()]
    given += [*(one.file for one in offer.companions), *offer.other_shards]
    return {
        one.sha256: one.size_bytes for one in (*given, offer.output) if isinstance(one, FileInput)
    }
