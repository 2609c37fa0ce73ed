"""The sources that ship with bundler: local paths, web servers, the Hugging Face Hub, our texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bundler.hookspecs import Source, hookimpl
from bundler.later import exports, later

if TYPE_CHECKING:
    from bundler.builtin.sources.http import HttpSource
    from bundler.builtin.sources.hub import HubSource
    from bundler.builtin.sources.path import PathSource
    from bundler.builtin.sources.shipped import ShippedSource

_PLACES = {
    "PathSource": "bundler.builtin.sources.path:PathSource",
    "HttpSource": "bundler.builtin.sources.http:HttpSource",
    "HubSource": "bundler.builtin.sources.hub:HubSource",
    "ShippedSource": "bundler.builtin.sources.shipped:ShippedSource",
}
__getattr__ = exports(_PLACES)


@hookimpl
def bundler_sources() -> Sequence[Source]:
    """Give the four."""
    return [
        later(_PLACES["PathSource"], name="path"),
        later(_PLACES["HttpSource"], name="http"),
        later(_PLACES["HubSource"], name="hf"),
        later(_PLACES["ShippedSource"], name="shipped"),
    ]


__all__ = ["HttpSource", "HubSource", "PathSource", "ShippedSource", "bundler_sources"]
