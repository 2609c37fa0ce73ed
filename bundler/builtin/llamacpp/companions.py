"""What a model runs with, as its offers have it: adapters and a projector. Pure."""

from __future__ import annotations

from functools import lru_cache

from bundler.builtin.llamacpp.adapter_facts import pairs
from bundler.builtin.llamacpp.graph.shape import Same, ThinPair, ThinPairs
from bundler.builtin.llamacpp.projector import image_tokens
from bundler.lock import LockedAdapter, LockedModel, Resolution
from bundler.plan import Companion, FileInput
from bundler.recipe import ModelRequest


def companions_of(request: ModelRequest, model: LockedModel) -> tuple[Companion, ...]:
    """Return the files that a model runs with: adapters in the recipe's order, then a projector."""
    scales = [adapter.scale for adapter in request.adapters]
    found = [
        Companion(kind="adapter", file=_gguf(adapter.resolution), scale=scale)
        for adapter, scale in zip(model.adapters, scales, strict=True)
    ]
    if model.projector is not None:
        found.append(Companion(kind="projector", file=_gguf(model.projector.resolution)))
    return tuple(found)


def notes_of(request: ModelRequest, model: LockedModel) -> tuple[str, ...]:
    """Say what an image takes of the context."""
    if model.projector is None:
        return ()
    tokens = image_tokens(model.projector.facts, request.context_tokens)
    return (
        f"each image takes up to {tokens:,} of a user's {request.context_tokens:,} tokens of context",
    )


def _gguf(resolution: Resolution) -> FileInput:
    """Return the GGUF file of a source that was checked to have one."""
    (file,) = (file for file in resolution.files if file.path.lower().endswith(".gguf"))
    return FileInput(sha256=file.sha256, size_bytes=file.size_bytes)


def input_names(companions: tuple[Companion, ...]) -> dict[str, FileInput]:
    """Return them as inputs of a step: `adapters/0.gguf`, `projector.gguf`."""
    adapters = [one for one in companions if one.kind == "adapter"]
    found = {f"adapters/{number}.gguf": one.file for number, one in enumerate(adapters)}
    return found | {f"{one.kind}.gguf": one.file for one in companions if one.kind == "projector"}


def adapters_of(model: LockedModel) -> tuple[ThinPairs, ...]:
    """Return the shapes of a model's adapters, as its graph needs them."""
    return tuple(_thin(Same(adapter)) for adapter in model.adapters)


@lru_cache(maxsize=64)
def _thin(adapter: Same[LockedAdapter]) -> ThinPairs:
    return tuple(
        ThinPair(name, down.type, down.shape[::-1], up.type, up.shape[::-1])
        for name, (down, up) in sorted(pairs(adapter.value.facts).items())
    )
