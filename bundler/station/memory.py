"""How much main memory this system has to give now, by the system's own account.

Linux: `MemAvailable` (proc(5)) and what control groups leave (cgroups(7)); macOS: `vm_stat`;
Windows: `GlobalMemoryStatusEx`. Swap is not counted: a model that is swapped answers in hours.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_CONTAINER = "a limit on this container"
_ASK_SECONDS = 5.0


def free_memory() -> tuple[int | None, str]:
    """Return the bytes that programs can have now, and what limits them beside the machine.

    None when the system does not say.
    """
    try:
        if sys.platform == "darwin":
            return mac_bytes(_vm_stat()), ""
        if sys.platform == "win32":
            return windows_bytes(), ""
        return linux_bytes()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, ""  # Said by whoever shows it: "this system does not say".


class _Names(NamedTuple):
    """What a version of control groups calls its files."""

    limits: tuple[str, ...]
    usage: str
    unneeded: str


_VERSION_1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")


# -- Linux -----------------------------------------------------------------------------------------


def linux_bytes(root: Path = Path("/")) -> tuple[int | None, str]:
    """Return what is available on Linux; `root` holds `proc` and `sys`."""
    text = (root / "proc/meminfo").read_text(errors="replace")
    match = re.search(r"^MemAvailable:\s+(\d{1,15}) kB$", text, re.MULTILINE)
    available = int(match[1]) * 1024 if match else None
    left = min(_left_by_groups(root), default=None)
    if left is not None and (available is None or left < available):
        return left, _CONTAINER
    return available, ""


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each limit above this process leaves: a group's, and its parents'."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return  # A kernel without control groups limits nothing.
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield from _left(root / "sys/fs/cgroup", path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _left(root / "sys/fs/cgroup/memory", path, _VERSION_1)


def _left(base: Path, path: str, names: _Names) -> Iterator[int]:
    for folder in _with_parents(base, path):
        used = _number(folder / names.usage)
        for limit in names.limits:
            most = _number(folder / limit)
            if most is not None and used is not None:
                yield max(0, most - used + _counted(folder / "memory.stat", names.unneeded))


def _with_parents(base: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a group and of all that it is in."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for length in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:length])


def _number(path: Path) -> int | None:
    """Return the number in a file; None for `max`, or when the file is not there."""
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and len(text) < 20 else None


def _counted(path: Path, key: str) -> int:
    """Return one line of `memory.stat`: file pages the kernel drops when memory gets tight."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return 0
    match = re.search(rf"^{key} (\d{{1,18}})$", text, re.MULTILINE)
    return int(match[1]) if match else 0


# -- macOS and Windows -----------------------------------------------------------------------------


def _vm_stat() -> str:
    return subprocess.run(
        ["/usr/bin/vm_stat"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=True, timeout=_ASK_SECONDS,
    ).stdout  # fmt: skip


def mac_bytes(text: str) -> int:
    """Return what macOS can give, from `vm_stat`: pages that are free, or freed without writing.

    Raises ValueError when it does not read like `vm_stat`.
    """
    size = re.search(r"page size of (\d{1,9}) bytes", text)
    pages = {
        name: int(count)
        for name, count in re.findall(r"^(Pages [a-z ]+):\s+(\d{1,15})\.$", text, re.MULTILINE)
    }
    if size is None or "Pages free" not in pages:
        raise ValueError("vm_stat does not say how many pages are free")
    kinds = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    return int(size[1]) * sum(pages.get(kind, 0) for kind in kinds)


class _MemoryStatus(ctypes.Structure):
    """`MEMORYSTATUSEX` of sysinfoapi.h."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    ]


def windows_bytes() -> int:
    """Return what Windows calls available physical memory."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    library: Any = getattr(ctypes, "WinDLL")  # noqa: B009 - exists on Windows only
    kernel = library("kernel32", use_last_error=True)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status.available_physical)
