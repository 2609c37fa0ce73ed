"""The mixes that can be offered for a model on a target, and what is refused. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from bundler.builtin.llamacpp.allocation.planned import Mix, planned_mixes, reckoned
from bundler.builtin.llamacpp.placements import ALL_LAYERS, WRITING, Placed
from bundler.builtin.llamacpp.types import Inventory
from bundler.errors import Problem, RecipeError
from bundler.hardware import Target
from bundler.recipe import ModelRequest


def offered_mixes(
    request: ModelRequest, inventory: Inventory, name: str, target: Target, *, header_bytes: int,
    guided: bool,
) -> list[Mix]:  # fmt: skip
    """Return the mixes that a recipe's word means for this model.

    Raises:
        RecipeError: the word cannot be read, or no mix can be made of such a model or be planned
            for such a target.
        DoesNotFit: the budget is below the smallest mix there is.
    """
    if request.role not in WRITING:
        raise _refused(
            f"a mix is chosen by what a model writes, and one of role {request.role!r} writes nothing",
            "quant = 'Q8_0'",
        )
    if target.accelerator != "none" and target.device_count > 1 and request.placement != "cpu":
        raise _refused(
            f"{target.name} has {target.device_count} accelerators: how a mix divides among them is "
            "known only when it has been measured",
            "name schemes such as 'Q4_K_M', or plan for one accelerator",
        )
    return list(planned_mixes(name, inventory, header_bytes, target, guided=guided))


def _refused(what: str, hint: str) -> RecipeError:
    return RecipeError(Problem(what, hint=hint, key="quant"))


def placed_mixes(mix: Mix, ways: Iterable[Placed]) -> Iterator[Placed]:
    """Give the ways to run a mix: whole on one side, with all of its budget reckoned as spent."""
    for placed in ways:
        if placed.gpu_layers in (ALL_LAYERS, 0):
            yield replace(placed, memory=reckoned(placed.memory, mix))
