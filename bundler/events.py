"""What a build says while it works. The core makes these values; only `console` shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step begins; `detail` says on what."""

    step: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is: `done` of `total` (None while unknown) in `unit`. Never goes backwards
    but to begin with another total or unit.
    """

    step: str
    done: float
    total: float | None
    unit: Literal["bytes", "tokens", "articles", "tensors", "files", "questions"] = "bytes"


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step ended; `outcome` says whether it was worked for or found finished."""

    step: str
    outcome: Literal["done", "cached"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should know. `warning` when they should act on it."""

    message: str
    level: Literal["info", "warning"] = "info"
    hint: str = ""


Event = StepStarted | Progress | StepFinished | Note
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """A `Report` that shows nothing: the default of every function used as a library."""
