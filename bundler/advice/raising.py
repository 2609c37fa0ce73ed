"""By how much a limit must rise, to the byte: looked for with the solver, not with arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bundler.advice.case import Case, Raisable, fits, raisables
from bundler.advice.explanation import Remedy, RemedyKind
from bundler.recipe import Recipe
from bundler.solver.decision import Decision
from bundler.value import format_bytes

_MEMORY_KEYS = {"RAM": ("ram",), "VRAM": ("usable_vram", "max_vram")}
_KEYS = {"disk": "bundle.max_size", "download": "bundle.max_download"}


def more_memory(case: Case) -> Iterator[Remedy]:
    """Give for each memory the least by which raising it alone is enough."""
    for limit in raisables(case.decision):
        if case.decision.limits[limit.indices[0]].turns:
            least = least_capacity(case.decision, limit)
            if least is not None:
                yield _raised(((limit, least),), case.recipe)


def least_capacity(decision: Decision, limit: Raisable) -> int | None:
    """Return the least capacity of a limit at which everything fits, to the byte.

    None when no capacity is enough: then another limit is exceeded too.
    """

    def enough(capacity: int | None) -> bool:
        return fits(limit.raised(decision, capacity))

    if not enough(None):
        return None
    most = max(
        sum(max(option.needs[index] for option in want.options) for want in decision.wanted)
        for index in limit.indices
    )
    return _least(limit.capacity_bytes, max(limit.capacity_bytes, most), enough)


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """Return the least number above `low` that is enough; `high` is."""
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def all_limits(case: Case) -> Iterator[Remedy]:
    """Give one remedy which raises several limits, each to the least beside those before it."""
    limits = raisables(case.decision)
    open_ = case.decision
    for limit in limits:
        open_ = limit.raised(open_, None)
    if not fits(open_):
        return
    raised = []
    for limit in limits:
        capacity = limit.capacity_bytes
        held = limit.raised(open_, capacity)
        if not fits(held):
            capacity = least_capacity(held, limit) or capacity
            raised.append((limit, capacity))
        open_ = limit.raised(open_, capacity)
    yield _raised(tuple(raised), case.recipe)


def _raised(raised: tuple[tuple[Raisable, int], ...], recipe: Recipe) -> Remedy:
    more = [least - limit.capacity_bytes for limit, least in raised]
    return Remedy(
        kind="more-memory", more_bytes=sum(more),
        edits=tuple(_raise_in_words(limit, least, recipe) for limit, least in raised),
        size=sum(one / max(1, limit.capacity_bytes)
                 for one, (limit, _) in zip(more, raised, strict=True)),
    )  # fmt: skip


def _raise_in_words(limit: Raisable, least: int, recipe: Recipe) -> str:
    if limit.name in _KEYS:
        more = _gigabytes_up(least - limit.capacity_bytes)
        return f"{more} more on the stick for models ({_KEYS[limit.name]})"
    more = format_bytes_up(least - limit.capacity_bytes)
    table = f"tiers.{limit.tier}" if limit.tier else "target"
    request = recipe.targets.get(limit.tier)
    keys = [key for key in _MEMORY_KEYS[limit.name[:4]]
            if request is not None and _is_below(getattr(request, key), least)]  # fmt: skip
    if not keys:  # the figure is the catalogue's
        return f"{table}.use = a machine with {more} more {limit.name}"
    written = " and ".join(f'{table}.{key} = "{_gibibytes_up(least)}"' for key in keys)
    has = "" if request is None or request.use is None else ", if the machine has it"
    return f"{written} ({more} more {limit.name}{has})"


def _is_below(given: int | None, least: int) -> bool:
    return given is not None and given < least


# -- the stick and the download --------------------------------------------------------------------


def larger_stick(case: Case) -> Iterator[Remedy]:
    """Give the least `bundle.max_size`, and the least `bundle.max_download`, that are enough.

    The recipe itself is changed: what parity and corpora take of a stick depends on its size.
    """
    kinds: tuple[tuple[RemedyKind, str], ...] = (
        ("larger-stick", "max_size"), ("more-download", "max_download"),
    )  # fmt: skip
    for kind, key in kinds:
        size = getattr(case.recipe.bundle, key)
        if size is not None:
            least = _least_of_bundle(case, key, size)
            if least is not None:
                edit = f'bundle.{key} = "{_gigabytes_up(least)}"'
                share = (least - size) / max(1, size)
                yield Remedy(kind=kind, edits=(edit,), size=share, more_bytes=least - size)


def _least_of_bundle(case: Case, key: str, size: int) -> int | None:
    def enough(capacity: int | None) -> bool:
        bundle = case.recipe.bundle.model_copy(update={key: capacity})
        return fits(case.decide_again(case.recipe.model_copy(update={"bundle": bundle})))

    if not enough(None):
        return None
    high = max(1, size)
    while not enough(high):
        high *= 2
    return _least(size, high, enough)


def _gigabytes_up(count: int) -> str:
    """Write a size as it is said of sticks, never less than it is."""
    return f"{-(-count // 10**8) / 10:.1f} GB"


def _gibibytes_up(count: int) -> str:
    """Write an amount of memory for a recipe, never less than it is."""
    return f"{-(-count * 100 // (1 << 30)) / 100:.2f} GiB"


def format_bytes_up(count: int) -> str:
    """Write a byte count for people, never less than it is.

    >>> format_bytes_up(1024**3 + 1)
    '1.01 GiB'
    """
    unit = 1024 ** max(0, min(4, (count.bit_length() - 1) // 10))
    digits = 100 if count < 10 * unit else 10 if count < 100 * unit else 1
    if unit == 1:
        return format_bytes(count)
    return format_bytes(-(-count * digits // unit) * unit // digits)
