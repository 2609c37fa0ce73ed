"""The sources that ship with bundler: local paths, web servers, the Hugging Face Hub, our texts."""

from __future__ import annotations

from collections.abc import Sequence

from bundler.builtin.sources.http import HttpSource
from bundler.builtin.sources.hub import HubSource
from bundler.builtin.sources.path import PathSource
from bundler.builtin.sources.shipped import ShippedSource
from bundler.hookspecs import Source, hookimpl


@hookimpl
def bundler_sources() -> Sequence[Source]:
    """Give the four."""
    return [PathSource(), HttpSource(), HubSource(), ShippedSource()]
