"""Runtimes: what serves a model at the far end, and the portable Python under it."""

from __future__ import annotations

from bundler.builtin.runtimes.pypi import PypiSource
from bundler.builtin.runtimes.xllamacpp import XllamacppRuntime
from bundler.hookspecs import Runtime, Source, hookimpl


@hookimpl
def bundler_runtimes() -> list[Runtime]:
    """Give the runtimes that ship with bundler."""
    return [XllamacppRuntime()]


@hookimpl
def bundler_sources() -> list[Source]:
    """Give the source that runtimes' wheels come from."""
    return [PypiSource()]
