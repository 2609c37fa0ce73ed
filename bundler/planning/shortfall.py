"""What to say when nothing fits: what the smallest choices need, and what would help. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bundler.errors import Problem
from bundler.hardware import Target
from bundler.planning.limits import amount_of
from bundler.planning.targeting import CAP_SOURCE
from bundler.solver.choosing import Decision, Limit, Option
from bundler.value import format_bytes, format_size

_RECIPE_KEY = {"disk": "bundle.max_size", "download": "bundle.max_download"}
Key = tuple[str, str]
"""A model and its machine."""

_SHORTEST_CONTEXT = 1024
_CONTEXT_STEP = 256


def shortfall(decision: Decision, targets: Mapping[str, Target]) -> list[Problem]:
    """Return why nothing fits, with the figures of the smallest options, and what would help."""
    needed = [want for want in decision.wanted if not want.optional]
    problems = []
    for index, limit in enumerate(decision.limits):
        if limit.capacity_bytes is None:
            continue
        concerned = [want for want in needed if not limit.turns or want.tier == limit.tier]
        smallest = {
            want.key: min(want.options, key=lambda o: (o.needs[index], o.resident, o.offer.quant))
            for want in concerned
            if want.options
        }
        used = decision.used(smallest)[index]
        if used > limit.capacity_bytes:
            problems.append(_problem(limit, used, smallest, index, targets))
    return problems or [
        Problem(
            "does not fit: each limit alone could be kept, but no combination keeps all at once",
            hint="raise one of them, leave a model out, or let models take turns: "
            'residency = "auto"',
        )
    ]


def _problem(
    limit: Limit, used: int, smallest: Mapping[Key, Option], index: int,
    targets: Mapping[str, Target],
) -> Problem:  # fmt: skip
    capacity = limit.capacity_bytes or 0
    excess = used - capacity
    if limit.turns:
        target = targets[limit.tier]
        machine = "the machine" if target.name == "custom" and not limit.tier else target.title
        there = f"{machine or target.name} has {format_bytes(capacity)}"
        parts = ", ".join(
            _memory_part(name, o, o.needs[index])
            for (name, _), o in smallest.items()
            if o.needs[index]
        )
    else:
        there = f"{_RECIPE_KEY[limit.name]} leaves {format_size(capacity)}"
        parts = ", ".join(
            f"{name} {format_size(o.needs[index])} ({o.offer.quant})"
            for (name, _), o in smallest.items()
        )
    return Problem(
        f"does not fit: even the smallest choices need {amount_of(limit.name, used)} of {limit.name}, "
        f"{there}; {amount_of(limit.name, excess)} too much. {parts}",
        hint=_suggestion(limit, smallest, excess),
        key=_key(limit, targets),
    )


def _key(limit: Limit, targets: Mapping[str, Target]) -> str:
    """Return the recipe's key that says how much there is."""
    if not limit.turns:
        return _RECIPE_KEY[limit.name]
    table = f"tiers.{limit.tier}" if limit.tier else "target"
    if limit.name == "RAM":
        return f"{table}.ram"
    capped = targets[limit.tier].sources.get("usable_vram_bytes") == CAP_SOURCE
    return f"{table}.{'max_vram' if capped else 'usable_vram'}"


def _memory_part(model: str, option: Option, need: int) -> str:
    offer = option.offer
    if (
        need != offer.memory.total_bytes
    ):  # a part of it: on one of several, or beside the accelerator
        return f"{model} {format_bytes(need)} ({offer.quant})"
    return (
        f"{model} {format_bytes(need)} ({offer.quant}: weights "
        f"{format_bytes(offer.memory.weights_bytes)}, KV cache "
        f"{format_bytes(offer.memory.kv_cache_bytes)} for "
        f"{offer.context_tokens * offer.parallel} tokens)"
    )


def _suggestion(limit: Limit, smallest: Mapping[Key, Option], excess: int) -> str:
    """Return the smallest change that would help, computed from the figures."""
    if limit.name == "disk":
        return "a larger stick"
    if limit.name == "download":
        return "a larger bundle.max_download, fewer models, or smaller ones"
    ideas = _shorter_contexts(smallest, excess)
    residents = [key for key, option in smallest.items() if option.resident]
    if len(residents) > 1:
        ideas.append('let models take turns: residency = "on-demand"')
    if limit.name.startswith("VRAM"):
        ideas.append(
            "let a part of them run on the CPU: min_tokens_per_second says how slow they may be"
        )
    return "; or ".join([*ideas, "a smaller model, or fewer of them"])


def _shorter_contexts(smallest: Mapping[Key, Option], excess: int) -> list[str]:
    ideas = []
    for (model, _), option in smallest.items():
        offer = option.offer
        cells = offer.context_tokens * offer.parallel
        cache = offer.memory.kv_cache_bytes
        if cells and cache > excess:
            tokens = int((cache - excess) / (cache / cells) / offer.parallel)
            if tokens >= _SHORTEST_CONTEXT:
                step = tokens // _CONTEXT_STEP * _CONTEXT_STEP
                ideas.append(f"models.{model}: context_tokens = {step}")
    return ideas


def missing(decision: Decision, chosen: Mapping[tuple[str, str], Option]) -> str:
    """Say why a combination was not taken: which limit it breaks, and by how much."""
    for limit, excess in decision.broken(decision.used(chosen)):
        where = f" of {limit.tier}" if limit.tier else ""
        return f"would need {amount_of(limit.name, excess)} more {limit.name}{where}"
    return "costs another model more than it gains"
