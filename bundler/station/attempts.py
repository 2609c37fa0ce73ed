"""The ways to start a model, best first, and the words of each: which program, card, draft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundler.station.configuration import (
    Bundle,
    DraftEntry,
    ModelEntry,
    RuntimeCommand,
    read_runtime,
)
from bundler.station.problems import StationError


@dataclass(frozen=True)
class Attempt:
    """One way to start a model."""

    runtime: RuntimeCommand
    gpu_layers: int
    draft: DraftEntry | None = None

    @property
    def label(self) -> str:
        """Name it for the log of a restart."""
        return f"{self.runtime.name}{'' if self.gpu_layers else ' without accelerator'}"


def attempts_of(entry: ModelEntry, bundle: Bundle, platform: str) -> list[Attempt]:
    """Return the ways to start a model here, best first.

    Raises:
        StationError: a file of the model is missing, or a runtime's description is wrong.
    """
    for file in (entry.file, *entry.shards):
        if not (bundle.root / file).is_file():
            raise StationError(f"Its file {file} is missing from the bundle.")
    draft = entry.draft if entry.draft and not missing_of_draft(entry, bundle.root) else None
    found: list[Attempt] = []
    for name in bundle.runtimes:
        runtime = read_runtime(bundle.root, platform, name)
        if runtime is not None:
            found += _with_runtime(runtime, entry.gpu_layers, draft)
    return found


def _with_runtime(
    runtime: RuntimeCommand, gpu_layers: int, draft: DraftEntry | None
) -> Iterator[Attempt]:
    drafts = (draft, None) if draft is not None and runtime.draft else (None,)
    for one in drafts:
        yield Attempt(runtime, gpu_layers, one)
    if gpu_layers != 0 and "{gpu_layers}" in " ".join(runtime.command):
        for one in drafts:
            yield Attempt(runtime, 0, one)


def missing_of_draft(entry: ModelEntry, root: Path) -> str:
    """Return a file of a model's draft that is not there; "" when all are, or it has none."""
    draft = entry.draft
    files = (draft.file, *draft.shards) if draft is not None else ()
    return next((file for file in files if not (root / file).is_file()), "")


def fallen_back(entry: ModelEntry, first: Attempt, now: Attempt, told: str) -> str:
    """Say that a model does not run as planned, and why as far as `told`; "" when it does."""
    ways = []
    if first.gpu_layers and not now.gpu_layers:
        ways.append("without a graphics card")
    elif now.runtime.name != first.runtime.name:
        ways.append(f"with {now.runtime.name}")
    if entry.draft is not None and now.draft is None:
        ways.append("without its draft model, so more slowly")
    if not ways:
        return ""
    why = f": {told}" if told else ""
    return f"It could not be started as planned and runs {' and '.join(ways)}{why}."


def beside(entry: ModelEntry, attempt: Attempt, root: Path) -> list[str]:
    """Return the words by which a runtime is given a model's adapters, its projector, its draft."""
    runtime, draft, words = attempt.runtime, attempt.draft, []
    for file, scale in entry.adapters:
        values = {"file": str(root / file), "scale": str(scale)}
        words += [expand(part, values) for part in runtime.adapter]
    if entry.projector:
        values = {"file": str(root / entry.projector)}
        words += [expand(part, values) for part in runtime.projector]
    if draft is not None:
        layers = draft.gpu_layers if attempt.gpu_layers else 0
        values = {
            "file": str(root / draft.file),
            "kv_cache": draft.kv_cache,
            "gpu_layers": str(layers),
        }
        words += [expand(part, values) for part in runtime.draft]
    return words


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `{name}` in a part of a runtime's command; unknown names stay as they are.

    >>> expand("--port={port} {x}", {"port": "80"})
    '--port=80 {x}'
    """
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text
