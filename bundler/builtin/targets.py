"""The catalogue of target machines: what they can really give, and where the figure comes from.

"24 GB" is not 24 GB: driver, display and CUDA context take their part before any model. Usable
VRAM here is the nominal size less what was reported or measured as taken on an otherwise idle
machine with a display (2 % ECC/driver reserve, then 0.6-1 GiB for a desktop). A recipe can
override each figure.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundler.hardware import Accelerator, Platform, Target
from bundler.hookspecs import hookimpl

_GB = 10**9
_GIB = 2**30
_MIB = 2**20
# A desktop with a browser open holds 0.7-1 GiB on the display's card; the driver reserves about
# 2 % on top (nvidia-smi shows 24,564 MiB on cards sold as 24 GiB).
_DISPLAY_RESERVE_BYTES = 1 * _GIB
_PC: tuple[Platform, ...] = ("linux-x86_64", "windows-x86_64")


def _card(
    name: str, title: str, vram_gib: int, gb_per_second: int, *, kind: Accelerator = "cuda",
    ram_gb: int = 32, laptop: bool = False,
) -> Target:  # fmt: skip
    """Return a PC with a graphics card of `vram_gib` nominal GiB that also drives the display."""
    return Target(
        name=name,
        title=title,
        accelerator=kind,
        usable_vram_bytes=vram_gib * _GIB * 98 // 100 - _DISPLAY_RESERVE_BYTES,
        ram_bytes=ram_gb * _GB - 4 * _GB,
        memory_bandwidth_bytes_per_second=gb_per_second * _GB,
        platforms=_PC,
        cpu_level="x86-64-v3",
        source="nominal VRAM and bandwidth from the vendor's specification page; "
        f"less 2 % (driver) and 1 GiB ({'laptop panel' if laptop else 'display'})",
    )


def _server(
    name: str, title: str, usable_gib: int, gb_per_second: int, kind: Accelerator
) -> Target:
    """Return a machine with an accelerator that drives no display."""
    return Target(
        name=name, title=title, accelerator=kind, usable_vram_bytes=usable_gib * _GIB,
        ram_bytes=240 * _GB, memory_bandwidth_bytes_per_second=gb_per_second * _GB,
        platforms=("linux-x86_64",), cpu_level="x86-64-v4",
        source="vendor's specification less 2-3 % that the driver keeps; no display",
    )  # fmt: skip


def _mac(name: str, title: str, ram_gb: int, gb_per_second: int) -> Target:
    """Return an Apple machine: Metal may use about 70 % of the shared memory by default."""
    return Target(
        name=name, title=title, accelerator="metal", unified_memory=True,
        usable_vram_bytes=ram_gb * _GIB * 7 // 10, ram_bytes=ram_gb * _GIB - 4 * _GIB,
        memory_bandwidth_bytes_per_second=gb_per_second * _GB,
        platforms=("macos-arm64",), cpu_level="armv8.2",
        source="recommendedMaxWorkingSetSize is 67-75 % of the memory unless "
        "iogpu.wired_limit_mb is raised",
    )  # fmt: skip


def _cpu(
    name: str, title: str, ram_gb: int, gb_per_second: float, platforms: tuple[Platform, ...],
    cpu_level: str, reserve_gb: float,
) -> Target:  # fmt: skip
    """Return a machine without an accelerator; `reserve_gb` is what its system keeps."""
    return Target.model_validate(
        {
            "name": name,
            "title": title,
            "ram_bytes": int(ram_gb * _GIB - reserve_gb * _GIB),
            "memory_bandwidth_bytes_per_second": int(gb_per_second * _GB),
            "platforms": platforms,
            "cpu_level": cpu_level,
            "source": f"nominal RAM less {reserve_gb:g} GiB for the system and a browser",
        }
    )


_ARM: tuple[Platform, ...] = ("linux-aarch64",)

CATALOGUE: tuple[Target, ...] = (
    _card("rtx-3060-12gb", "NVIDIA RTX 3060 12 GB", 12, 360),
    _card("rtx-4050-laptop", "NVIDIA RTX 4050 Laptop 6 GB", 6, 192, laptop=True, ram_gb=16),
    _card("rtx-4060", "NVIDIA RTX 4060 8 GB", 8, 272),
    _card("rtx-4060-laptop", "NVIDIA RTX 4060 Laptop 8 GB", 8, 256, laptop=True, ram_gb=16),
    _card("rtx-4070", "NVIDIA RTX 4070 12 GB", 12, 504),
    _card("rtx-4080", "NVIDIA RTX 4080 16 GB", 16, 717),
    _card("rtx-4090", "NVIDIA RTX 4090 24 GB", 24, 1008, ram_gb=64),
    _card("rtx-5090", "NVIDIA RTX 5090 32 GB", 32, 1792, ram_gb=64),
    _card("rx-7900-xtx", "AMD RX 7900 XTX 24 GB", 24, 960, kind="rocm", ram_gb=64),
    _server("a100-80gb", "NVIDIA A100 80 GB", 78, 2039, "cuda"),
    _server("h100-80gb", "NVIDIA H100 80 GB", 78, 3350, "cuda"),
    _server("h200", "NVIDIA H200 141 GB", 138, 4800, "cuda"),
    _server("mi300x", "AMD MI300X 192 GB", 188, 5300, "rocm"),
    _mac("apple-m2-16gb", "Apple M2, 16 GB", 16, 100),
    _mac("apple-m3-max-64gb", "Apple M3 Max, 64 GB", 64, 400),
    _cpu("raspberry-pi-4-8gb", "Raspberry Pi 4, 8 GB", 8, 4.4, _ARM, "armv8", 1.0),
    _cpu("raspberry-pi-5-8gb", "Raspberry Pi 5, 8 GB", 8, 9.0, _ARM, "armv8.2", 1.0),
    _cpu("cpu-8gb", "PC without a GPU, 8 GB RAM", 8, 30, _PC, "x86-64-v3", 3.0),
    _cpu("cpu-16gb", "PC without a GPU, 16 GB RAM", 16, 38, _PC, "x86-64-v3", 4.0),
    _cpu("cpu-32gb", "PC without a GPU, 32 GB RAM", 32, 38, _PC, "x86-64-v3", 4.0),
)


@hookimpl
def bundler_targets() -> Sequence[Target]:
    """Give the catalogue."""
    return CATALOGUE
