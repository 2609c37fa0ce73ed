"""Quality against memory against context: the offers that no other beats, for each context. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bundler.plan import Choice, Offer
from bundler.solver.decision import Option
from bundler.value import Value

MAX_CONTEXTS = 6
SHORTEST_CONTEXT_TOKENS = 64

OptionsAt = Callable[[int], Sequence[Option]]
"""Every way to have a model at another context for each user; none where an engine refuses it."""


class FrontierPoint(Value):
    """One offer that no other beats: less damage costs more memory."""

    quant: str
    kv_cache: str
    gpu_layers: int
    memory_bytes: int
    """Of the limit that the panel draws."""
    damage: float
    """Predicted mean KL divergence in nats; 0 as published."""
    chosen: bool = False


class FrontierLine(Value):
    """The frontier at one context."""

    context_tokens: int
    """Of each user."""
    points: tuple[FrontierPoint, ...]
    """Least memory first."""


class Frontier(Value):
    """The frontiers of one model on one machine."""

    model: str
    tier: str = ""
    limit: str
    """The memory that is drawn: `VRAM` or `RAM`."""
    limit_bytes: int
    """All that there is of it."""
    left_bytes: int
    """What the other models of the plan leave of it."""
    context_tokens: int
    """What the recipe asks for."""
    parallel: int
    lines: tuple[FrontierLine, ...]
    """Shortest context first."""


def contexts_to_draw(asked: int, longest: int) -> tuple[int, ...]:
    """Return half of what is asked, that, its doublings, and the most the model was made for.

    >>> contexts_to_draw(8192, 32768)
    (4096, 8192, 16384, 32768)
    """
    found = {max(SHORTEST_CONTEXT_TOKENS, min(asked // 2, longest)), asked, max(asked, longest)}
    doubled = asked * 2
    while doubled < longest and len(found) < MAX_CONTEXTS:
        found.add(doubled)
        doubled *= 2
    return tuple(sorted(found))


def find_frontier(
    choice: Choice, longest_tokens: int, options_at: OptionsAt, needs_of: Callable[[Option], int],
    *, limit: str, limit_bytes: int, left_bytes: int, tier: str = "",
) -> Frontier:  # fmt: skip
    """Return the frontiers of the model of `choice`, at several contexts.

    Args:
        choice: what the plan takes for it.
        longest_tokens: the longest context the model was made for.
        options_at: gives the options at a context; where there are none, no line is drawn.
        needs_of: bytes an option takes of the memory that is drawn.
        limit: name of that memory.
        limit_bytes: all of it.
        left_bytes: what the plan's other models leave of it.
        tier: the tier the choice was made for.
    """
    asked = choice.offer.context_tokens
    lines = []
    for tokens in contexts_to_draw(asked, longest_tokens):
        points = _frontier(options_at(tokens), needs_of, choice.offer if tokens == asked else None)
        if points:
            lines.append(FrontierLine(context_tokens=tokens, points=points))
    return Frontier(
        model=choice.model, tier=tier, limit=limit, limit_bytes=limit_bytes,
        left_bytes=left_bytes, context_tokens=asked, parallel=choice.offer.parallel,
        lines=tuple(lines),
    )  # fmt: skip


def _frontier(
    options: Iterable[Option], needs_of: Callable[[Option], int], chosen: Offer | None
) -> tuple[FrontierPoint, ...]:
    """Return the offers that are better than all that take no more, and always the chosen one."""
    points: list[FrontierPoint] = []
    least = float("inf")
    seen_chosen = False
    for option in sorted(options, key=lambda o: (needs_of(o), o.offer.quality, o.offer.quant)):
        offer = option.offer
        is_chosen = not seen_chosen and chosen is not None and _same(offer, chosen)
        if offer.quality < least or is_chosen:
            least = min(least, offer.quality)
            seen_chosen |= is_chosen
            points.append(
                FrontierPoint(
                    quant=offer.quant, kv_cache=offer.kv_cache, gpu_layers=offer.gpu_layers,
                    memory_bytes=needs_of(option), damage=offer.quality, chosen=is_chosen,
                )
            )  # fmt: skip
    return tuple(points)


def _same(one: Offer, other: Offer) -> bool:
    return (one.quant, one.kv_cache, one.gpu_layers, one.memory) == (
        other.quant, other.kv_cache, other.gpu_layers, other.memory,
    )  # fmt: skip
