"""Looks at this machine: everything there is to measure, each once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bundler.machine import processor
from bundler.machine.bandwidth import memory_bandwidth
from bundler.machine.disk import disk_read_speed
from bundler.machine.graphics import cards
from bundler.machine.memory import main_memory
from bundler.machine.values import Figure, Machine


def look(
    disk: Path | None,
    *,
    engines: Iterable[Mapping[str, Any]] = (),
    sample: Path | None = None,
    measure: bool = True,
) -> Machine:
    """Return what this machine has and how fast it is; takes a few seconds.

    Args:
        disk: the folder whose disk is read; a file is written there when there is no `sample`.
            None for a disk that must not be written to.
        engines: what engines say they see, as their `devices` gives it.
        sample: a large file on that disk; one is written when None.
        measure: measure speeds too.
    """
    total, free = main_memory()
    notes = [] if total else ["main memory: this system does not say how much there is"]
    found, said = cards(engines)
    notes += said
    bandwidth = speed = None
    if measure:
        bandwidth, why = memory_bandwidth(free.value if free else None)
        speed, why_not = _disk_speed(disk, sample)
        notes += [word for word in (why, why_not) if word]
    level, how = processor.cpu_level()
    return Machine(
        platform=processor.this_platform(),
        processor=processor.processor_name(),
        cores=processor.cores(),
        cpu_level=level,
        cpu_level_how=how,
        ram_total=total,
        ram_free=free,
        ram_bandwidth=bandwidth,
        disk_read=speed,
        cards=found,
        notes=tuple(notes),
    )


def _disk_speed(disk: Path | None, sample: Path | None) -> tuple[Figure | None, str]:
    if disk is None and sample is None:
        return None, "disk read speed was not measured: no file there is large enough"
    return disk_read_speed(disk or (sample or Path()).parent, sample=sample)
