"""What is wished for a stick, what became of it, and which of several fared worst."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bundler.deploy.capacity import Probe
from bundler.deploy.evidence import Evidence, device_was_read
from bundler.deploy.ground import Ground
from bundler.deploy.survey import Survey
from bundler.errors import BundlerError

State = Literal["copied", "unchanged", "planned", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to copy."""

    delete: bool = False
    """Delete what an older version of the same bundle left."""
    dry_run: bool = False
    probe: bool = True
    """Try whether the stick has the room it claims."""


@dataclass
class Outcome:
    """What became of one stick; filled while it is worked on, so that also a failure tells much."""

    target: Path
    place: Path | None = None
    state: State = "failed"
    ground: Ground | None = None
    survey: Survey | None = None
    written_bytes: int = 0
    """New bytes of files that reached the stick in this run."""
    compared: Evidence = field(default_factory=Evidence)
    """How what was there already was read."""
    read_back: Evidence = field(default_factory=Evidence)
    """How what was written was read."""
    probe: Probe | None = None
    deleted: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    """Files of which something came back wrong and was written a second time."""
    errors: list[BundlerError] = field(default_factory=list)
    seconds: float = 0.0

    def device_was_read(self) -> bool:
        """Tell whether every byte of the files that the stick holds provably came from its device."""
        read = [each for each in (self.compared, self.read_back) if each.read_bytes]
        ground = self.ground
        return bool(read) and ground is not None and all(device_was_read(e, ground) for e in read)


def together(errors: Iterable[BundlerError]) -> BundlerError:
    """Return all problems as one error, of the kind that is worst."""
    found = list(errors)
    worst = min(found, key=lambda error: severity(error.exit_code))
    return type(worst)([problem for error in found for problem in error.problems])


def severity(exit_code: int) -> int:
    """Return how bad an exit code is among several sticks: 0 is the worst."""
    # Lost bytes, then what would harm, then what cannot be, then what may pass.
    order = (6, 8, 7, 4, 2, 1, 10, 130, 0)
    return order.index(exit_code) if exit_code in order else len(order)
