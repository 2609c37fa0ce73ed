"""What this computer can give to models now: main memory and accelerators. Standard library only.

Main memory is what the system calls available, and no more than a container's limit leaves.
Accelerators are those that the bundle's own runtime lists, asked through a child process: a card
that it cannot drive is of no use, so what drivers show beside that is told and not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bundler.station.attempts import expand
from bundler.station.configuration import Bundle, RuntimeCommand, read_runtime
from bundler.station.fields import Reader, load_object
from bundler.station.memory import free_memory
from bundler.station.problems import StationError

LIST_SECONDS = 60.0
"""The runtime's libraries may have to be read from a slow stick first."""
DRIVER_SECONDS = 10.0
MOST_DEVICES = 64
# What a process that lists CUDA devices takes of each for itself: 0.3 to 0.6 GB on cards of the
# last ten years (its context). The driver's own figure, read before, is free of that.
_OWN_CONTEXT_BYTES = 2**30
_AMD = "0x1002"


@dataclass(frozen=True)
class Device:
    """An accelerator as it is now."""

    kind: str
    """`cuda`, `rocm`, `vulkan`, `metal`, or what a runtime calls it."""
    name: str
    free_bytes: int
    total_bytes: int = 0
    shared: bool = False
    """Whether its memory is the main memory (Apple, graphics inside a processor)."""


@dataclass(frozen=True)
class Machine:
    """What was found."""

    ram_bytes: int | None
    """Main memory that is free for programs; None when the system does not say."""
    ram_limited_by: str = ""
    """What leaves less than the machine has: `a limit on this container`."""
    devices: tuple[Device, ...] = ()
    """Accelerators that the bundle's runtime can use."""
    seen: tuple[Device, ...] = ()
    """Accelerators that drivers show, whether or not the runtime can use them."""
    notes: tuple[str, ...] = ()
    """What could not be found out, and why."""

    def as_json(self) -> dict[str, Any]:
        """Return it as `read_machine` reads it."""
        return {**asdict(self), "schema_version": 1}


def probe(bundle: Bundle, platform: str) -> Machine:
    """Look at this computer; takes a second or two when accelerators matter to the bundle."""
    ram, limited_by = free_memory()
    if all(tier.accelerator == "none" for tier in bundle.tiers):
        return Machine(ram, limited_by)
    seen = (*nvidia_devices(), *amd_devices())
    listed, notes = _listed_by_runtime(bundle, platform)
    return Machine(ram, limited_by, tuple(_before_us(d, seen) for d in listed), seen, notes)


def _before_us(listed: Device, seen: Sequence[Device]) -> Device:
    """Return a device with what was free before listing it took memory of its own."""
    for driver in seen:
        extra = driver.free_bytes - listed.free_bytes
        if (driver.kind, driver.name) == (
            listed.kind,
            listed.name,
        ) and 0 < extra < _OWN_CONTEXT_BYTES:
            return Device(**{**asdict(listed), "free_bytes": driver.free_bytes})
    return listed


# -- what the runtime can use ----------------------------------------------------------------------


def _listed_by_runtime(bundle: Bundle, platform: str) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Ask the runtime that will be tried first."""
    for name in bundle.runtimes:
        try:
            runtime = read_runtime(bundle.root, platform, name)
        except StationError as error:
            return (), (str(error),)
        if runtime is not None:
            return list_devices(runtime, bundle.root, platform)
    return (), ()


def list_devices(
    runtime: RuntimeCommand, root: Path, platform: str
) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Return the accelerators a runtime lists, and what went wrong if it did not.

    Its `devices` command prints, as the last line of its stdout, a JSON list of objects with
    `kind`, `name`, `free_bytes`, `total_bytes` and `shared`.
    """
    if not runtime.devices:
        return (), ()
    values = {
        "python": sys.executable,
        "runtime": str(root / "runtime" / platform),
        "bundle": str(root),
    }
    command = [expand(part, values) for part in runtime.devices]
    environment = {k: expand(v, values) for k, v in runtime.environment.items()}
    code, said, told = _asked(command, LIST_SECONDS, environment)
    if code != 0:
        words = [line for line in (told or said).splitlines() if line.strip()]
        why = f": {words[-1].strip()[:300]}" if words else ""
        return (), (f"{runtime.name} could not say which accelerators it can use{why}",)
    try:
        return read_devices(said), ()
    except StationError as error:
        return (), (f"{runtime.name} lists accelerators wrongly: {error.problems[0]}",)


def read_devices(text: str) -> tuple[Device, ...]:
    """Return the devices in the last line of a runtime's answer; StationError when it is none."""
    lines = text.strip().splitlines()
    try:
        listed = json.loads(lines[-1] if lines else "")
    except (ValueError, RecursionError) as error:
        raise StationError(f"not JSON: {str(error)[:200]}") from error
    reader = Reader("its answer")
    devices = _devices(reader, {"devices": listed}, "devices")
    reader.finish("")
    return devices


def _devices(reader: Reader, document: Mapping[str, Any], key: str) -> tuple[Device, ...]:
    tables = reader.tables(document, key)
    if len(tables) > MOST_DEVICES:
        reader.say(key, f"expected at most {MOST_DEVICES}")
    return tuple(
        Device(
            kind=reader.name(table, "kind", where),
            name=printable(reader.text(table, "name", where)),
            free_bytes=reader.number(table, "free_bytes", where),
            total_bytes=reader.number(table, "total_bytes", where),
            shared=reader.switch(table, "shared", where),
        )
        for where, table in tables
    )


# -- what drivers show -----------------------------------------------------------------------------


def nvidia_devices(program: str = "nvidia-smi") -> tuple[Device, ...]:
    """Return NVIDIA's cards as their driver's own tool lists them; none when it is not there."""
    found = shutil.which(program)
    if found is None:
        return ()
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    code, said, _ = _asked([found, *query], DRIVER_SECONDS, {})
    return nvidia_rows(said) if code == 0 else ()


def nvidia_rows(text: str) -> tuple[Device, ...]:
    """Return the cards in `nvidia-smi`'s table; its unit is MiB.

    Cards that share the main memory say `[N/A]` there and are left out: nothing is known of them.
    """
    devices = []
    for line in text.splitlines()[:MOST_DEVICES]:
        name, *figures = (part.strip() for part in line.rsplit(",", 2))
        if len(figures) == 2 and all(figure.isdigit() and len(figure) < 12 for figure in figures):
            total, free = (int(figure) * 2**20 for figure in figures)
            devices.append(Device("cuda", printable(name), free, total))
    return tuple(devices)


def amd_devices(root: Path = Path("/")) -> tuple[Device, ...]:
    """Return AMD's cards as the Linux kernel's driver shows them (amdgpu: `mem_info_vram_*`)."""
    devices = []
    for folder in sorted((root / "sys/class/drm").glob("card[0-9]*/device"))[:MOST_DEVICES]:
        try:
            vendor, total, used, name = (
                (folder / file).read_text(errors="replace").strip()
                if file != "product_name" or (folder / file).is_file()
                else ""
                for file in ("vendor", "mem_info_vram_total", "mem_info_vram_used", "product_name")
            )
            if vendor == _AMD:
                size = int(total)
                named = printable(name) or "an AMD card"
                devices.append(Device("rocm", named, max(0, size - int(used)), size))
        except (OSError, ValueError):
            continue  # Another maker's card, or one the driver says nothing of: not seen.
    return tuple(devices)


def _asked(command: Sequence[str], seconds: float, more: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a program for its answer; return exit code (-1: not run, or not in time) and output."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            encoding="utf-8", errors="replace", timeout=seconds, env={**os.environ, **more},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, "", f"no answer within {seconds:.0f} seconds"
    except OSError as error:
        return -1, "", error.strerror or str(error)
    return done.returncode, done.stdout, done.stderr


# -- a machine that is not here --------------------------------------------------------------------


def read_machine(path: Path) -> Machine:
    """Return the machine that a file describes, as `--probe` prints it.

    Raises StationError that names every wrong field.
    """
    document = load_object(path, "Give a file that --probe has printed.")
    reader = Reader(path.name)
    known = document.get("ram_bytes") is not None
    machine = Machine(
        ram_bytes=reader.number(document, "ram_bytes", "") if known else None,
        ram_limited_by=printable(reader.text(document, "ram_limited_by", default="")),
        devices=_devices(reader, document, "devices"),
        seen=_devices(reader, document, "seen"),
        notes=tuple(map(printable, reader.texts(document, "notes"))),
    )
    reader.finish("Give a file that --probe has printed.")
    return machine


def printable(text: str) -> str:
    r"""Return text that can stand in a terminal: no control characters, not endless.

    >>> printable("card\x1b[2J  one")
    'card [2J one'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
