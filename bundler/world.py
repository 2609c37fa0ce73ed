"""The outside world as one small value: what a stage needs that is not a value itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bundler.events import Report, silent
from bundler.store import Store


@dataclass(frozen=True)
class World:
    """Passed to whatever acts; tests pass one with a temporary store and a fake environment."""

    store: Store
    """Where bytes rest."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables (`HF_TOKEN`, `HF_ENDPOINT`…); nothing reads `os.environ` itself."""
    report: Report = silent
    """Where progress and notes go."""
    offline: bool = False
    """No connection may be opened."""
    folder: Path = field(default_factory=Path.cwd)
    """Relative paths of a recipe start here: the recipe's own folder."""
    bandwidth_bytes_per_second: int | None = None
    """Cap on the sum of all transfers, or None."""
    parallel_transfers: int = 4
    """How many files are fetched at once."""
