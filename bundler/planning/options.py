"""What the planner chooses among, made of recipe, lock, targets and offers. Pure.

An offer becomes one option, or two where the recipe leaves open whether the model stays in memory.
An option's damage is the offer's expected damage by the weight of its role, with what it costs a
person to wait: for a model that is loaded when its turn comes, or that runs in slower memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bundler.errors import DoesNotFit, Problem
from bundler.feedback.measurements import making_digest
from bundler.hardware import Target
from bundler.lock import Lock
from bundler.plan import Memory, Offer, place_of
from bundler.planning.filesystems import (
    can_be_stored,
    cannot_be_stored,
    large_corpora,
    largest_file_bytes,
)
from bundler.planning.limits import Surroundings, limits_of, locked_inputs, surroundings, vram_name
from bundler.recipe import ModelRequest, Recipe
from bundler.solver.decision import DAMAGE_UNITS, ROLE_WEIGHT, Decision, Limit, Option, Wanted

WAITING_DAMAGE_PER_SECOND = 0.0005
"""What it costs to wait for a model to be loaded, where the recipe leaves open whether it stays in
memory: 10 s weigh as much as the step from Q8_0 to Q6_K (0.004 nats). Our judgement."""
ASSUMED_READ_BYTES_PER_SECOND = 200 * 10**6
"""Where the target does not say how fast it reads: a USB 3 stick of the better kind."""
SLOWER_DAMAGE = 0.0005
"""What it costs to run on the CPU what could run on an accelerator, or in part: less than any step
of quality (Q8_0 costs 0.0014), enough to prefer the accelerator while it has room. Our judgement."""
TAKES_TURNS = ("chat", "code")
"""Roles for which `auto` considers turns. Embedders, rerankers and drafts work with each answer of
another model: loading them in between would take longer than the answer."""

Offers = Mapping[str, Mapping[str, Sequence[Offer]]]
"""Tier → model → all offers for it."""


def prepare(
    recipe: Recipe, lock: Lock, targets: Mapping[str, Target], offers: Offers,
    *, runtime_formats: frozenset[str], fixed_bytes: int = 0,
) -> Decision:  # fmt: skip
    """Return everything that is to be decided, ready for `choosing.solve`.

    Args:
        recipe: what is wanted.
        lock: what it will be made from.
        targets: the machines it is for, by tier; one named "" in a recipe with one.
        offers: for each tier and each of its models all offers of the model's engine.
        runtime_formats: formats that the recipe's runtimes can load.
        fixed_bytes: size of runtimes and other parts of the bundle that are known beforehand.

    Raises:
        DoesNotFit: no runtime can load a model, the stick cannot hold it, or no way to run it is
            fast enough; all at once.
    """
    needed = [
        given
        for models in offers.values()
        for name, given in models.items()
        if not recipe.models[name].optional
    ]
    around = surroundings(recipe, lock, needed, fixed_bytes)
    limits = limits_of(recipe, targets, around)
    usable = Usable(runtime_formats, largest_file_bytes(recipe))
    problems: list[Problem] = []
    wanted = []
    for tier, target in targets.items():
        for name, given in sorted(offers.get(tier, {}).items()):
            request = recipe.request_of(name)
            found, problem = usable.among(given, name, tier, request, target)
            if problem is not None and not request.optional:
                problems.append(problem)
            options = _Making(request, target, tier, limits, len(targets) > 1, around).options(
                found
            )
            wanted.append(Wanted(name, tier, options, request.optional))
    problems += large_corpora(recipe, lock)
    if problems:
        raise DoesNotFit(problems)
    return Decision(tuple(wanted), limits)


# -- offers ------------------------------------------------------------------------------------------


def rank(offer: Offer) -> tuple[float, int, str, str, int]:
    """Return the key that sorts offers for one model, best first."""
    layers = offer.gpu_layers if offer.gpu_layers >= 0 else 1 << 30
    return (offer.quality, offer.memory.total_bytes, offer.quant, offer.kv_cache, -layers)


@dataclass(frozen=True)
class Usable:
    """What makes an offer one that can be chosen at all."""

    formats: frozenset[str]
    """What the recipe's runtimes can load."""
    largest_file_bytes: int | None
    """What the stick's filesystem can hold."""

    def among(
        self, offers: Iterable[Offer], name: str, tier: str, request: ModelRequest, target: Target
    ) -> tuple[list[Offer], Problem | None]:
        """Return the offers that can be loaded, stored and are fast enough, best first, or why none."""
        loadable = sorted((offer for offer in offers if offer.format in self.formats), key=rank)
        if not loadable:
            return [], Problem(
                f"{place_of(name, tier)}: none of the recipe's runtimes can load what its engine "
                "makes",
                hint="add a runtime for the format: see `bundler plugins`",
            )
        most_bytes = self.largest_file_bytes
        storable = [offer for offer in loadable if can_be_stored(offer, most_bytes)]
        if most_bytes is not None and not storable:
            return [], cannot_be_stored(place_of(name, tier), loadable, most_bytes)
        if request.placement == "accelerator" and target.accelerator == "none":
            return [], _nowhere(name, tier, target)
        floor = request.min_tokens_per_second
        if floor is None:
            return storable, None
        fast = [offer for offer in storable if offer.tokens_per_second >= floor]
        return fast, None if fast else _too_slow(name, tier, floor, storable, target)


def _nowhere(name: str, tier: str, target: Target) -> Problem:
    elsewhere = f', or `tiers` without "{tier}"' if tier else ""
    return Problem(
        f"models.{name}.placement: {target.title or target.name} has no accelerator",
        hint=f'placement = "auto" or "cpu"{elsewhere}',
    )


def _too_slow(
    name: str, tier: str, floor: float, offers: Sequence[Offer], target: Target
) -> Problem:
    fastest = max(offers, key=lambda offer: (offer.tokens_per_second, offer.quant))
    machine = target.title or target.name
    key = f"models.{name}.min_tokens_per_second"
    if not fastest.tokens_per_second:
        table = f"tiers.{tier}" if tier else "target"
        return Problem(
            f"{key}: how fast it would be on {machine} is not known: its memory bandwidth is not",
            hint=f'say it: {table}.memory_bandwidth = "1008 GB", or leave the minimum out',
        )
    return Problem(
        f"{key}: {floor:g} tokens/s cannot be reached on {machine}: even {fastest.quant} with "
        f"{fastest.kv_cache} KV cache writes at most {fastest.tokens_per_second:.1f} (what each "
        "token reads, by the memory's bandwidth)",
        hint=f"min_tokens_per_second = {_floor(fastest.tokens_per_second)} or less, fewer bits in "
        "`quant`, a smaller model, or a faster machine",
    )


# -- options -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Making:
    """Makes the options of one model on one machine."""

    request: ModelRequest
    target: Target
    tier: str
    limits: tuple[Limit, ...]
    several: bool
    """Whether there are several machines, which may share files."""
    around: Surroundings

    def options(self, offers: Iterable[Offer]) -> tuple[Option, ...]:
        """Return each offer with each residency that the recipe leaves open."""
        return tuple(
            self._option(offer, resident=resident)
            for offer in offers
            for resident in self._residencies()
        )

    def _residencies(self) -> tuple[bool, ...]:
        if self.request.residency != "auto":
            return (self.request.residency == "resident",)
        return (True, False) if self.request.role in TAKES_TURNS else (True,)

    def _option(self, offer: Offer, *, resident: bool) -> Option:
        return Option(
            offer,
            self._damage(offer, resident=resident),
            self._needs(offer),
            resident,
            making_digest(offer) if self.several else "",
        )

    def _damage(self, offer: Offer, *, resident: bool) -> int:
        nats = ROLE_WEIGHT[self.request.role] * self.request.weight * offer.quality
        if self.target.accelerator != "none" and offer.gpu_layers >= 0:
            nats += SLOWER_DAMAGE
        if self.request.residency == "auto" and not resident:
            nats += WAITING_DAMAGE_PER_SECOND * waiting_seconds(offer, self.target)
        return round(nats * DAMAGE_UNITS)

    def _needs(self, offer: Offer) -> tuple[int, ...]:
        own = memory_needs(offer, self.target)
        fetched = sum(
            size
            for sha256, size in locked_inputs(offer).items()
            if sha256 not in self.around.fetched
        )
        shared = {"disk": offer.disk_bytes + offer.companion_bytes, "download": fetched}
        return tuple(
            shared[limit.name]
            if not limit.turns
            else own.get(limit.name, 0)
            if limit.tier == self.tier
            else 0
            for limit in self.limits
        )


def waiting_seconds(offer: Offer, target: Target) -> float:
    """Return how long a person waits for a model to be loaded when its turn comes."""
    return offer.disk_bytes / (target.disk_read_bytes_per_second or ASSUMED_READ_BYTES_PER_SECOND)


def memory_needs(offer: Offer, target: Target) -> dict[str, int]:
    """Return what an offer takes of each of a machine's memories, by the name of the limit.

    Where accelerator and CPU share one memory, what the accelerator takes is main memory too.
    """
    memory = offer.memory
    if target.accelerator == "none" or offer.gpu_layers == 0:
        return {"RAM": memory.total_bytes}
    by_device = _by_device(memory, target)
    needs = {vram_name(number, target): size for number, size in enumerate(by_device)}
    shared = memory.total_bytes if target.unified_memory else 0
    return {**needs, "RAM": memory.host_bytes + shared}


def _by_device(memory: Memory, target: Target) -> tuple[int, ...]:
    if target.device_count == 1:
        return (memory.total_bytes,)
    if len(memory.by_device) != target.device_count:
        raise DoesNotFit(
            f"an engine does not say how its models are split over {target.device_count} "
            "accelerators",
            hint="devices = 1, or another engine",
        )
    return memory.by_device


def _floor(tokens_per_second: float) -> str:
    """Write a speed that is certainly reached, with three digits as a person writes them."""
    digits = max(0, 2 - math.floor(math.log10(tokens_per_second))) if tokens_per_second else 0
    scale = 10.0 ** (2 - math.floor(math.log10(tokens_per_second))) if tokens_per_second else 1.0
    return f"{math.floor(tokens_per_second * scale) / scale:.{digits}f}"
