"""The processor: its platform, its name, and the newest instruction level it has."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from bundler.hardware import Platform

# x86-64 psABI, "Micro-Architecture Levels": what each level adds, as the kernel names it
# (`pni` is SSE3, `abm` holds LZCNT, `cx16` CMPXCHG16B).
_X86_LEVELS = (
    ("x86-64-v2", {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    ("x86-64-v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)
# Arm ARM, A2.2: ARMv8.1 demands LSE atomics and RDM, ARMv8.2 DC CVAP on top.
_ARM_82 = {"atomics", "asimdrdm", "dcpop"}
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "aarch64"}
# winnt.h: PF_SSE4_2_…, PF_AVX2_…, PF_AVX512F_INSTRUCTIONS_AVAILABLE.
_WINDOWS_FEATURES = ((38, "x86-64-v2"), (40, "x86-64-v3"), (41, "x86-64-v4"))


def this_platform() -> Platform | None:
    """Return our name of this system, None when no bundle can be made for it."""
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, "")
    name = f"{system}-{_MACHINES.get(platform.machine().lower(), '')}"
    return name if name in get_args(Platform) else None  # type: ignore[return-value]


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name(root: Path = Path("/")) -> str:
    """Return what the processor calls itself, or an empty string."""
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string")
    text = _read(root / "proc/cpuinfo")
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    board = _read(root / "proc/device-tree/model").strip("\0\n ")
    return board or (match[1].strip() if match else platform.processor())


def cpu_level(root: Path = Path("/")) -> tuple[str, str]:
    """Return the newest level the processor has, and how that is known; `any` when it is not."""
    if sys.platform == "linux":
        return level_of(_read(root / "proc/cpuinfo"))
    if sys.platform == "win32":
        return _windows_level()
    if sys.platform == "darwin":
        return _mac_level()
    return "any", f"not known how to ask {sys.platform}"


def level_of(cpuinfo: str) -> tuple[str, str]:
    """Return the level that the text of `/proc/cpuinfo` shows."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    if flags:
        return _x86_level(set(flags[1].split())), "flags in /proc/cpuinfo"
    features = re.search(r"^Features\s*:(.*)$", cpuinfo, re.MULTILINE)
    if features:
        newer = set(features[1].split()) >= _ARM_82
        return "armv8.2" if newer else "armv8", "Features in /proc/cpuinfo"
    return "any", "/proc/cpuinfo lists no features"


def _x86_level(flags: set[str]) -> str:
    found = "any"
    for level, needed in _X86_LEVELS:
        if not flags >= needed:
            break
        found = level
    return found


def _windows_level() -> tuple[str, str]:
    how = "IsProcessorFeaturePresent"
    if platform.machine().lower() not in ("amd64", "x86_64"):
        return "any", f"{how} is asked for x86-64 only"
    ask = ctypes.WinDLL("kernel32").IsProcessorFeaturePresent  # type: ignore[attr-defined,unused-ignore]
    found = [level for number, level in _WINDOWS_FEATURES if ask(number)]
    return (found[-1] if found else "any"), how


def _mac_level() -> tuple[str, str]:
    if platform.machine() == "arm64":
        return "armv8.2", "every Apple M is ARMv8.4 or later"
    flags = sysctl("machdep.cpu.leaf7_features").lower().split()
    return ("x86-64-v3" if "avx2" in flags else "x86-64-v2"), "sysctl machdep.cpu.leaf7_features"


def is_virtual(root: Path = Path("/")) -> bool:
    """Tell whether a hypervisor shows itself: then its host may cache what is read."""
    return bool(re.search(r"^flags\s*:.*\bhypervisor\b", _read(root / "proc/cpuinfo"), re.M))


def last_level_cache_bytes(root: Path = Path("/")) -> int:
    """Return the size of the largest caches together, 0 when the system does not say."""
    sizes: dict[str, int] = {}
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*")):
        match = re.fullmatch(r"(\d+)([KMG]?)\s*", _read(folder / "size"))
        if match and _read(folder / "level").strip() in ("3", "4"):
            shared = _read(folder / "level") + _read(folder / "shared_cpu_list")
            sizes[shared] = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return sum(sizes.values())


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # not on this system: the caller says what could not be found out


def sysctl(name: str) -> str:
    """Ask macOS for one of its figures; an empty string when it does not know it."""
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
