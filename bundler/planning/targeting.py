"""Which machine a recipe means: one of the catalogue, with the recipe's own figures. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from bundler.errors import Problem, RecipeError
from bundler.hardware import Target
from bundler.recipe import TARGET_LIMITS, TargetRequest
from bundler.value import format_bytes

_FIELDS = {
    "ram": "ram_bytes",
    "accelerator": "accelerator",
    "devices": "device_count",
    "memory_bandwidth": "memory_bandwidth_bytes_per_second",
    "host_memory_bandwidth": "host_memory_bandwidth_bytes_per_second",
    "disk_read": "disk_read_bytes_per_second",
    "unified_memory": "unified_memory",
}
"""Keys of a recipe that stand for one figure of a target as it is."""
CAP_SOURCE = "the recipe's cap"
"""Where a figure of VRAM comes from that `max_vram` set."""
LEAST_VRAM_BYTES = TARGET_LIMITS["usable_vram"][0]


def choose_target(
    request: TargetRequest, catalogue: Mapping[str, Target], where: str = "target"
) -> Target:
    """Return the machine a recipe means: one of the catalogue, with the recipe's own figures.

    `where` is the recipe's table that asks (`target`, `tiers.large`), for problems.

    Raises:
        RecipeError: no such target, or figures that contradict what the catalogue says of it.
    """
    base = _base(request, catalogue, where)
    given = {field: getattr(request, key) for key, field in _FIELDS.items()}
    own = {field: value for field, value in given.items() if value is not None}
    own |= _without_accelerator(request, base)
    sources = {**base.sources, **dict.fromkeys(own, "the recipe")}
    target = base.model_copy(update={**own, "sources": sources})
    problems = list(_contradictions(request, base, target, where))
    if problems:
        raise RecipeError(problems)
    return target if target.accelerator == "none" else _with_vram(request, target)


def target_warnings(
    request: TargetRequest, catalogue: Mapping[str, Target], where: str = "target"
) -> list[Problem]:
    """Return what is odd about a request, but can be done as it is asked."""
    target = choose_target(request, catalogue, where)
    found = []
    if request.max_vram is not None and 0 < target.nominal_vram_bytes < request.max_vram:
        found.append(
            Problem(
                f"{where}.max_vram: the cap of {format_bytes(request.max_vram)} is above the "
                f"{format_bytes(target.nominal_vram_bytes)} of {target.title}: it changes nothing",
                hint=f"leave it out; {format_bytes(target.usable_vram_bytes)} are usable",
            )
        )
    return found


def target_notes(
    requests: Mapping[str, TargetRequest], catalogue: Mapping[str, Target]
) -> tuple[str, ...]:
    """Return the warnings of all machines of a recipe (by tier) as notes of its plan."""
    return tuple(
        f"{problem.message}; {problem.hint}"
        for tier, request in requests.items()
        for problem in target_warnings(request, catalogue, f"tiers.{tier}" if tier else "target")
    )


def _base(request: TargetRequest, catalogue: Mapping[str, Target], where: str) -> Target:
    if request.use is None:
        return Target(
            name="custom", title="as the recipe says", source="the recipe", ram_bytes=request.ram
        )
    if request.use not in catalogue:
        close = _near(request.use, catalogue)
        raise RecipeError(
            f"{where}.use: there is no target called {request.use!r}",
            hint=f"did you mean {' or '.join(f'`{name}`' for name in close)}?"
            if close
            else f"the catalogue has: {', '.join(sorted(catalogue))}",
        )
    return catalogue[request.use]


def _near(name: str, catalogue: Mapping[str, Target]) -> list[str]:
    """Return what was meant perhaps: names that begin like it, else names that look like it."""
    longer = sorted(other for other in catalogue if name and other.startswith(name))
    return longer or difflib.get_close_matches(name, catalogue, n=3, cutoff=0.5)


def _without_accelerator(request: TargetRequest, base: Target) -> dict[str, object]:
    """Return what changes when a recipe does not want to use the accelerator that is there."""
    if request.accelerator != "none" or base.accelerator == "none":
        return {}
    found: dict[str, object] = dict.fromkeys(
        ("usable_vram_bytes", "nominal_vram_bytes", "driver_reserve_bytes",
         "display_reserve_bytes"), 0
    )  # fmt: skip
    found["device_count"] = 1
    if request.memory_bandwidth is None:  # the weights lie in main memory then
        found["memory_bandwidth_bytes_per_second"] = (
            request.host_memory_bandwidth or base.host_memory_bandwidth_bytes_per_second
        )
    return found


def _contradictions(
    request: TargetRequest, base: Target, target: Target, where: str
) -> Iterator[Problem]:
    """Yield what cannot be true of the machine together."""
    if target.accelerator == "none":
        for key in ("usable_vram", "max_vram", "display_reserve", "devices"):
            if getattr(request, key) is not None:
                yield Problem(
                    f"{where}.{key}: {target.title or target.name} has no accelerator",
                    hint="leave it out, or name another target: see `bundler targets`",
                )
        return
    if base.usable_vram_bytes == 0 and request.usable_vram is None and request.max_vram is None:
        yield Problem(
            f"{where}.accelerator: {target.title or target.name} has no accelerator's memory "
            "in the catalogue",
            hint="give `usable_vram` too",
        )
    nominal = target.nominal_vram_bytes
    if request.usable_vram is not None and 0 < nominal < request.usable_vram:
        yield Problem(
            f"{where}.usable_vram: {format_bytes(request.usable_vram)} is more than the "
            f"{format_bytes(nominal)} that {target.title} has",
            hint="figures are of each device; for another machine leave `use` out and give "
            "`accelerator`, `usable_vram` and `ram`",
        )
    left = nominal - target.driver_reserve_bytes
    if (
        request.display_reserve is not None
        and 0 < left < request.display_reserve + LEAST_VRAM_BYTES
    ):
        yield Problem(
            f"{where}.display_reserve: {format_bytes(request.display_reserve)} leaves nothing of "
            f"the {format_bytes(left)} that {target.title} can give",
            hint="most desktops take 1 GiB; write 0 for a card that drives no display",
        )


def _with_vram(request: TargetRequest, target: Target) -> Target:
    """Return the target with its usable VRAM: the recipe's figure or the catalogue's, capped."""
    usable, source = target.usable_vram_bytes, target.sources.get("usable_vram_bytes", "")
    display = target.display_reserve_bytes
    sources = dict(target.sources)
    if request.usable_vram is not None:
        usable, source = request.usable_vram, "the recipe"
    elif request.display_reserve is not None and target.nominal_vram_bytes:
        display, sources["display_reserve_bytes"] = request.display_reserve, "the recipe"
        usable = target.nominal_vram_bytes - target.driver_reserve_bytes - display
    if request.max_vram is not None and (usable == 0 or request.max_vram < usable):
        usable, source = request.max_vram, CAP_SOURCE
    sources["usable_vram_bytes"] = source
    return target.model_copy(
        update={
            "usable_vram_bytes": usable, "display_reserve_bytes": display, "sources": sources,
        }
    )  # fmt: skip
