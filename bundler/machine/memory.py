"""Main memory: how much there is, how much of it programs could have now, and what limits that."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bundler.machine.values import Figure

# A control group without a limit says `max`, or a number near 2^63 (memory.limit_in_bytes).
_NO_LIMIT = 2**60


class Group(NamedTuple):
    """A control group that limits memory."""

    limit_bytes: int
    left_bytes: int
    name: str


def main_memory(root: Path = Path("/")) -> tuple[Figure | None, Figure | None]:
    """Return what there is and what programs could have now; None where the system does not say.

    `root` holds `proc` and `sys`.
    """
    if sys.platform == "darwin":
        return _mac()
    if sys.platform == "win32":
        return _windows()
    return _linux(root)


# -- Linux -----------------------------------------------------------------------------------------


def _linux(root: Path) -> tuple[Figure | None, Figure | None]:
    """MemTotal and MemAvailable (proc(5)), lowered to what control groups allow (cgroups(7))."""
    try:
        text = (root / "proc/meminfo").read_text(errors="replace")
    except OSError:
        return None, None
    total, free = _kibibytes(text, "MemTotal"), _kibibytes(text, "MemAvailable")
    groups = list(control_groups(root))
    tightest = min(groups, key=lambda group: group.limit_bytes, default=None)
    fullest = min(groups, key=lambda group: group.left_bytes, default=None)
    there = _lowered(total, "MemTotal", tightest and tightest.limit_bytes, tightest)
    left = _lowered(free, "MemAvailable", fullest and fullest.left_bytes, fullest)
    return there, left


def _lowered(
    figure: int | None, word: str, allowed: int | None, group: Group | None
) -> Figure | None:
    if allowed is not None and group is not None and (figure is None or allowed < figure):
        return Figure(value=allowed, how=f"limit of control group {group.name}")
    return None if figure is None else Figure(value=figure, how=f"{word} in /proc/meminfo")


def _kibibytes(text: str, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d{{1,15}}) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def control_groups(root: Path = Path("/")) -> Iterator[Group]:
    """Yield every control group above this process that limits memory (versions 1 and 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return  # a kernel without control groups limits nothing
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for base in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):
                # Above memory.high a group is slowed down until it can hardly run.
                for limit in ("memory.max", "memory.high"):
                    yield from _groups(base, path, limit, "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _groups(
                root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                "memory.usage_in_bytes", "total_inactive_file",
            )  # fmt: skip


def _groups(base: Path, path: str, limit: str, usage: str, unneeded: str) -> Iterator[Group]:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for length in range(len(parts), -1, -1):
        folder = base.joinpath(*parts[:length])
        most, used = _number(folder / limit), _number(folder / usage)
        if most is None or most >= _NO_LIMIT:
            continue
        # File pages that nobody needs are given back before anything is refused.
        spare = _statistic(folder / "memory.stat", unneeded)
        left = most if used is None else max(0, min(most, most - used + spare))
        yield Group(most, left, "/" + "/".join(parts[:length]))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if re.fullmatch(r"\d{1,20}", text) else None


def _statistic(path: Path, name: str) -> int:
    try:
        match = re.search(rf"^{name} (\d{{1,20}})$", path.read_text(errors="replace"), re.M)
    except OSError:
        return 0
    return int(match[1]) if match else 0


# -- others ----------------------------------------------------------------------------------------


def _mac() -> tuple[Figure | None, Figure | None]:
    total = _said(["/usr/sbin/sysctl", "-n", "hw.memsize"]).strip()
    there = Figure(value=int(total), how="sysctl hw.memsize") if total.isdigit() else None
    free = mac_free_bytes(_said(["/usr/bin/vm_stat"]))
    return there, None if free is None else Figure(value=free, how="free and inactive of vm_stat")


def mac_free_bytes(text: str) -> int | None:
    """Return what `vm_stat` calls free, inactive, speculative and purgeable together."""
    page = re.search(r"page size of (\d{1,9}) bytes", text)
    counts = re.findall(
        r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d{1,15})\.$", text, re.M
    )
    return int(page[1]) * sum(map(int, counts)) if page and counts else None


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64), ("page_total", ctypes.c_uint64),
        ("page_available", ctypes.c_uint64), ("virtual_total", ctypes.c_uint64),
        ("virtual_available", ctypes.c_uint64), ("extended", ctypes.c_uint64),
    )  # fmt: skip


def _windows() -> tuple[Figure | None, Figure | None]:
    status: Any = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    how = "GlobalMemoryStatusEx"
    return Figure(value=status.total, how=how), Figure(value=status.available, how=how)
