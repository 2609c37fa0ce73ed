"""Accelerators: what drivers show (NVIDIA, AMD, Apple), and what engines say they would use."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bundler.hardware import Accelerator
from bundler.machine.memory import main_memory
from bundler.machine.nvml import nvidia_cards
from bundler.machine.processor import processor_name, sysctl
from bundler.machine.values import Card

_AMD, _INTEL, _NVIDIA = "0x1002", "0x8086", "0x10de"
_MIB = 2**20
# Metal's recommendedMaxWorkingSetSize: two thirds of up to 36 GiB, three quarters of more (what
# llama.cpp logs: 21,845 MiB of 32 GiB in its #2011, 49,152 of 64 GiB in #1870).
_METAL_LARGE_BYTES = 36 * 2**30


def cards(
    engines: Iterable[Mapping[str, Any]] = (), root: Path = Path("/"), nvml: Any = None
) -> tuple[tuple[Card, ...], tuple[str, ...]]:
    """Return every accelerator once, and what was seen without its memory being known.

    Args:
        engines: what engines say they see, as their `devices` gives it.
        root: holds `sys`.
        nvml: a library with pynvml's functions; pynvml itself when None.
    """
    nvidia, notes = nvidia_cards(nvml)
    known = [*nvidia, *amd_cards(root), *_apple_cards()]
    told = [_told(device) for answer in engines for device in answer["devices"] if device["is_gpu"]]
    unknown = [card for card in told if not _shown(card, known)]
    seen = list(notes)
    if not unknown:
        seen += _without_memory(root, known)
    return (*known, *unknown), tuple(seen)


def _told(device: Mapping[str, Any]) -> Card:
    """Return a device of an engine's own list as a card."""
    kinds: dict[str, Accelerator] = {"cuda": "cuda", "rocm": "rocm", "metal": "metal"}
    return Card(
        name=str(device["description"] or device["name"]),
        kind=kinds.get(str(device["kind"]), "vulkan"),
        total_bytes=int(device["total_bytes"]),
        free_bytes=int(device["free_bytes"]),
        how=f"llama.cpp's own backend, device {device['name']}",
        shares_main_memory=device["kind"] == "metal",
    )


def _shown(told: Card, known: Iterable[Card]) -> bool:
    """Tell whether a driver shows the same card: by name, or the only one of its kind.

    Vulkan gives cards another name and sees those that other drivers show too.
    """
    by_vendor = {"cuda": ("nvidia",), "rocm": ("amd", "radeon"), "metal": ("apple",)}
    return any(
        card.name == told.name
        or card.kind == told.kind
        or any(word in told.name.lower() for word in by_vendor.get(card.kind, ()))
        for card in known
    )


# -- AMD -------------------------------------------------------------------------------------------


def amd_cards(root: Path = Path("/")) -> tuple[Card, ...]:
    """Return AMD's cards, from what the amdgpu driver shows in sysfs."""
    # Only the compute part of the driver (kfd) can run ROCm; Vulkan works without.
    compute = (root / "sys/class/kfd/kfd/topology").is_dir()
    found = []
    for device in _drm_devices(root):
        total = _number(device / "mem_info_vram_total")
        used = _number(device / "mem_info_vram_used")
        if _text(device / "vendor") != _AMD or total is None or used is None:
            continue
        name = _text(device / "product_name") or f"AMD device {_text(device / 'device')}"
        version = _text(root / "sys/module/amdgpu/version")
        found.append(
            Card(
                name=name,
                kind="rocm" if compute else "vulkan",
                total_bytes=total,
                free_bytes=max(0, total - used),
                how=f"mem_info_vram_* of {device.parent.name} in sysfs",
                drives_display=_is_connected(device.parent),
                driver=f"amdgpu {version}".strip(),
            )
        )
    return tuple(found)


def _drm_devices(root: Path) -> list[Path]:
    folder = root / "sys/class/drm"
    return sorted(
        path / "device" for path in folder.glob("card*") if re.fullmatch(r"card\d+", path.name)
    )


def _is_connected(card: Path) -> bool | None:
    """Tell whether a screen hangs on one of a card's outputs; None when no output is shown."""
    states = [_text(path / "status") for path in card.glob(f"{card.name}-*")]
    return any(state == "connected" for state in states) if states else None


def _without_memory(root: Path, known: Iterable[Card]) -> list[str]:
    """Name the graphics that are there but whose memory nobody tells."""
    kinds = {card.kind for card in known}
    seen = []
    for device in _drm_devices(root):
        vendor, driver = _text(device / "vendor"), (device / "driver").resolve().name
        if vendor == _INTEL:
            seen.append(
                f"{device.parent.name} is Intel graphics ({driver}); its memory is known to a "
                "llama.cpp with Vulkan only, and there is none here"
            )
        elif vendor == _NVIDIA and "cuda" not in kinds:
            seen.append(
                f"{device.parent.name} is an NVIDIA card without a working driver ({driver}): "
                "install NVIDIA's, then nvidia-smi shows it"
            )
    return seen


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


# -- Apple -----------------------------------------------------------------------------------------


def _apple_cards() -> tuple[Card, ...]:
    if sys.platform != "darwin" or not processor_name().startswith("Apple"):
        return ()
    total, free = main_memory()
    if total is None or free is None:
        return ()
    limit = sysctl("iogpu.wired_limit_mb")
    most, how = metal_limit(total.value, int(limit) if limit.isdigit() else 0)
    return (
        Card(
            name=processor_name(), kind="metal", total_bytes=total.value,
            free_bytes=min(most, free.value), how=how, shares_main_memory=True,
        ),
    )  # fmt: skip


def metal_limit(memory_bytes: int, wired_limit_mib: int) -> tuple[int, str]:
    """Return what Metal lets models have of the shared memory, and how that is known."""
    if wired_limit_mib:
        return wired_limit_mib * _MIB, "sysctl iogpu.wired_limit_mb"
    if memory_bytes <= _METAL_LARGE_BYTES:
        return memory_bytes * 2 // 3, "two thirds of the memory, Metal's default up to 36 GB"
    return memory_bytes * 3 // 4, "three quarters of the memory, Metal's default above 36 GB"
