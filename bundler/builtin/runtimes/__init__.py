"""Runtimes: what serves a model at the far end, and the portable Python under it."""

from __future__ import annotations

from typing import get_args

from bundler.builtin.runtimes.packages import (
    ACCELERATORS,
    CARD_ACCELERATORS,
    CARD_PLATFORMS,
    COMPANIONS,
)
from bundler.hardware import Platform
from bundler.hookspecs import Runtime, Source, hookimpl
from bundler.later import later


@hookimpl
def bundler_runtimes() -> list[Runtime]:
    """Give the runtimes that ship with bundler."""
    return [
        later(
            "bundler.builtin.runtimes.xllamacpp:XllamacppRuntime",
            name="xllamacpp",
            formats=frozenset({"gguf"}),
            platforms=frozenset(get_args(Platform)),
            accelerators=ACCELERATORS,
            companions=COMPANIONS,
        ),
        later(
            "bundler.builtin.runtimes.llama_server:LlamaServerRuntime",
            name="llama-server",
            formats=frozenset({"gguf"}),
            platforms=CARD_PLATFORMS,
            accelerators=CARD_ACCELERATORS,
            companions=COMPANIONS,
        ),
    ]


@hookimpl
def bundler_sources() -> list[Source]:
    """Give the source that runtimes' wheels come from."""
    return [later("bundler.builtin.runtimes.pypi:PypiSource", name="pypi")]
