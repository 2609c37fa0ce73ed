"""The llama.cpp engine: safetensors to GGUF, quantization, measurement; all in child processes."""

from __future__ import annotations

from collections.abc import Sequence

from bundler.hookspecs import Engine, hookimpl


@hookimpl
def bundler_engines() -> Sequence[Engine]:
    """Give the llama.cpp engine."""
    from bundler.builtin.llamacpp.engine import LlamaCppEngine

    return [LlamaCppEngine()]
