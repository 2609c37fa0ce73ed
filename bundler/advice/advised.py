"""A plan, or what would make one possible. What advises is loaded only where nothing fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bundler.errors import DoesNotFit
from bundler.lock import Lock
from bundler.offering import Allows, every_offer, make_the_plan
from bundler.plan import Plan
from bundler.plugins import Plugins
from bundler.recipe import Recipe

if TYPE_CHECKING:
    from bundler.advice.explanation import Remedy


class NothingFits(DoesNotFit):
    """Nothing fits, and these changes would help."""

    remedies: Mapping[str, tuple[Remedy, ...]] = {}
    """By the tier that is too small; for the only machine, or what all share, under an empty name."""


def plan_with_advice(
    recipe: Recipe, lock: Lock, plugins: Plugins, allows: Allows = every_offer
) -> Plan:
    """Make the plan; where nothing fits, find out what would.

    Raises:
        NothingFits: with the smallest changes that help.
        BundlerError: as `make_the_plan`.
    """
    try:
        return make_the_plan(recipe, lock, plugins, allows)
    except DoesNotFit as error:
        from bundler.advice.asking import with_remedies

        better = with_remedies(error, recipe, lock, plugins)
        if better is error:
            raise
        raise better from error
