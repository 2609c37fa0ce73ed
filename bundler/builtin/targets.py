"""The catalogue of target machines: what they can really give, and where each figure comes from.

"24 GB" is not 24 GB: driver, display and the system take their part before any model. Usable VRAM
is the nominal size less what the driver keeps and what a display takes; each figure carries its
source, and what is our judgement says so. A recipe can override every one of them, and
`bundler targets --here` measures a machine that can be reached.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundler.hardware import Accelerator, Platform, Target
from bundler.hookspecs import hookimpl

_GB = 10**9
_GIB = 2**30
_MIB = 2**20

# nvidia-smi shows 24,564 MiB on cards sold as 24 GiB and 32,607 on those of 32, and of these an
# idle RTX 5090 kept another 419 (32,607 total, 1,597 used, 30,591 free: 1.8 % of 32 GiB in all).
_DRIVER_PERCENT = 2
_DRIVER_SOURCE = (
    "2 % of the nominal size: an idle RTX 5090 of 32 GiB showed 32,607 MiB total, and 419 MiB of "
    "these neither used nor free (nvidia-smi, driver 610.88, published reading of 2026-08)"
)
_DISPLAY_BYTES = 1 * _GIB
_DISPLAY_SOURCE = (
    "judgement: desktop and browser hold 0.6-1.5 GiB of the card that drives the display; set "
    "display_reserve = 0 for a card that drives none"
)
_HEADLESS_SOURCE = "drives no display"

_PC: tuple[Platform, ...] = ("linux-x86_64", "windows-x86_64")
_LINUX: tuple[Platform, ...] = ("linux-x86_64",)
_ARM: tuple[Platform, ...] = ("linux-aarch64",)

# Main memory: transfers per second × 8 bytes × channels (JEDEC JESD79-4 and JESD79-5).
_DDR4_TWO_CHANNELS = (51.2, "two channels of DDR4-3200 (JEDEC JESD79-4): 2 × 25.6 GB/s")
_DDR5_TWO_CHANNELS = (76.8, "two channels of DDR5-4800 (JEDEC JESD79-5): 2 × 38.4 GB/s")
_SERVER_MEMORY = (204.8, "eight channels of DDR4-3200 (JEDEC JESD79-4): 8 × 25.6 GB/s")
_SATA = (500, "judgement: a SATA SSD (600 MB/s at most on the wire); NVMe reads 3-14 times that")
_NVME = (2000, "judgement: an NVMe SSD of the plainer kind")
_CPU_LEVEL_SOURCE = "AVX2: Intel since Haswell (2013), AMD since Excavator (2015) and Zen"


def _card(
    name: str, title: str, vram_gib: int, gb_per_second: float, *, specification: str,
    kind: Accelerator = "cuda", ram_gb: int = 32, memory: tuple[float, str] = _DDR5_TWO_CHANNELS,
) -> Target:  # fmt: skip
    """Return a PC with a graphics card of `vram_gib` nominal GiB that also drives the display."""
    nominal = vram_gib * _GIB
    driver = nominal * _DRIVER_PERCENT // 100
    return Target(
        name=name,
        title=title,
        accelerator=kind,
        nominal_vram_bytes=nominal,
        driver_reserve_bytes=driver,
        display_reserve_bytes=_DISPLAY_BYTES,
        usable_vram_bytes=nominal - driver - _DISPLAY_BYTES,
        ram_bytes=ram_gb * _GB - 4 * _GB,
        memory_bandwidth_bytes_per_second=round(gb_per_second * _GB),
        host_memory_bandwidth_bytes_per_second=round(memory[0] * _GB),
        disk_read_bytes_per_second=_SATA[0] * 10**6,
        platforms=_PC,
        cpu_level="x86-64-v3",
        source="nominal VRAM and bandwidth from the vendor's specification page; less 2 % "
        "(driver) and 1 GiB (display)",
        sources={
            "nominal_vram_bytes": specification,
            "memory_bandwidth_bytes_per_second": specification,
            "driver_reserve_bytes": _DRIVER_SOURCE,
            "display_reserve_bytes": _DISPLAY_SOURCE,
            "usable_vram_bytes": "nominal less driver and display",
            "ram_bytes": f"judgement: {ram_gb} GB are usual beside it, 4 GB for system and browser",
            "host_memory_bandwidth_bytes_per_second": memory[1],
            "disk_read_bytes_per_second": _SATA[1],
            "cpu_level": _CPU_LEVEL_SOURCE,
        },
    )


def _nvidia(
    name: str, model: str, vram_gib: int, bits: int, gbit_per_second: float, *,
    laptop: bool = False, ram_gb: int = 32, memory: tuple[float, str] = _DDR5_TWO_CHANNELS,
) -> Target:  # fmt: skip
    """Return a PC with a GeForce card, its bandwidth from bus width and speed of each pin."""
    kind = " Laptop" if laptop else ""
    page = "Compare GeForce RTX laptops" if laptop else "Compare current and previous GeForce GPUs"
    return _card(
        name, f"NVIDIA RTX {model}{kind} {vram_gib} GB", vram_gib, bits / 8 * gbit_per_second,
        ram_gb=ram_gb, memory=memory,
        specification=f'NVIDIA, "{page}": GeForce RTX {model}{kind}, {vram_gib} GB, {bits} bits '
        f"at {gbit_per_second:g} Gbit/s a pin",
    )  # fmt: skip


def _server(
    name: str, title: str, reported_bytes: int, gb_per_second: float, kind: Accelerator,
    *, specification: str, reported: str,
) -> Target:  # fmt: skip
    """Return a machine with an accelerator that drives no display."""
    driver = reported_bytes * _DRIVER_PERCENT // 100
    return Target(
        name=name, title=title, accelerator=kind,
        nominal_vram_bytes=reported_bytes, driver_reserve_bytes=driver,
        usable_vram_bytes=reported_bytes - driver,
        ram_bytes=240 * _GB,
        memory_bandwidth_bytes_per_second=round(gb_per_second * _GB),
        host_memory_bandwidth_bytes_per_second=round(_SERVER_MEMORY[0] * _GB),
        disk_read_bytes_per_second=_NVME[0] * 10**6,
        platforms=_LINUX, cpu_level="x86-64-v4",
        source="what the driver reports as total, less 2 % that it keeps; no display",
        sources={
            "nominal_vram_bytes": reported,
            "memory_bandwidth_bytes_per_second": specification,
            "driver_reserve_bytes": _DRIVER_SOURCE,
            "display_reserve_bytes": _HEADLESS_SOURCE,
            "usable_vram_bytes": "what the driver reports less its own part",
            "ram_bytes": "judgement: 256 GB are usual for one accelerator, 16 GB for the system",
            "host_memory_bandwidth_bytes_per_second": _SERVER_MEMORY[1],
            "disk_read_bytes_per_second": _NVME[1],
            "cpu_level": "AVX-512: Xeon Scalable (2017), EPYC since Zen 4 (2022)",
        },
    )  # fmt: skip


# M1 Max, 32 GiB: recommendedMaxWorkingSetSize = 21,845 MiB, two thirds (llama.cpp #2011); with
# 64 GiB: 49,152 MiB, three quarters (llama.cpp #1870).
_METAL_LARGE_GIB = 36


def _mac(chip: str, ram_gb: int, gb_per_second: float) -> Target:
    """Return an Apple machine: Metal may use two thirds of the shared memory, or three quarters."""
    share = (2, 3) if ram_gb <= _METAL_LARGE_GIB else (3, 4)
    ram = ram_gb * _GIB
    keeps = 3 if ram_gb <= 8 else 4
    return Target(
        name=f"apple-{chip.lower().replace(' ', '-')}-{ram_gb}gb",
        title=f"Apple {chip}, {ram_gb} GB",
        accelerator="metal",
        unified_memory=True,
        nominal_vram_bytes=ram,
        driver_reserve_bytes=ram - ram * share[0] // share[1],
        usable_vram_bytes=ram * share[0] // share[1],
        ram_bytes=ram - keeps * _GIB,
        memory_bandwidth_bytes_per_second=round(gb_per_second * _GB),
        host_memory_bandwidth_bytes_per_second=round(gb_per_second * _GB),
        disk_read_bytes_per_second=1500 * 10**6,
        platforms=("macos-arm64",),
        cpu_level="armv8.2",
        source=f"Metal's recommendedMaxWorkingSetSize: {share[0]}/{share[1]} of the memory unless "
        "iogpu.wired_limit_mb is raised",
        sources={
            "nominal_vram_bytes": f'Apple, "Technical Specifications": {chip}, {ram_gb} GB, shared',
            "memory_bandwidth_bytes_per_second": f'Apple, "Technical Specifications": {chip}, '
            f"{gb_per_second:g} GB/s",
            "host_memory_bandwidth_bytes_per_second": "the same memory",
            "driver_reserve_bytes": "what Metal's recommendedMaxWorkingSetSize leaves to the rest",
            "display_reserve_bytes": "part of what Metal leaves",
            "usable_vram_bytes": "recommendedMaxWorkingSetSize as llama.cpp logs it: 21,845 MiB of "
            "32 GiB (llama.cpp #2011), 49,152 of 64 GiB (#1870); up to 36 GB taken as two thirds",
            "ram_bytes": f"nominal less {keeps} GiB for the system and a browser: judgement",
            "disk_read_bytes_per_second": "judgement: the plainest of Apple's built-in SSDs",
            "cpu_level": "every Apple M is ARMv8.4 or later",
        },
    )


def _cpu(
    name: str, title: str, ram_gb: int, memory: tuple[float, str], disk: tuple[int, str],
    platforms: tuple[Platform, ...], cpu_level: str, reserve_gb: float,
) -> Target:  # fmt: skip
    """Return a machine without an accelerator; `reserve_gb` is what its system keeps."""
    arm = cpu_level.startswith("arm")
    return Target.model_validate(
        {
            "name": name,
            "title": title,
            "ram_bytes": int(ram_gb * _GIB - reserve_gb * _GIB),
            "memory_bandwidth_bytes_per_second": round(memory[0] * _GB),
            "host_memory_bandwidth_bytes_per_second": round(memory[0] * _GB),
            "disk_read_bytes_per_second": disk[0] * 10**6,
            "platforms": platforms,
            "cpu_level": cpu_level,
            "source": f"nominal RAM less {reserve_gb:g} GiB for the system"
            + ("" if arm else " and a browser"),
            "sources": {
                "ram_bytes": f"nominal RAM less {reserve_gb:g} GiB for the system"
                + (" (without a desktop)" if arm else " and a browser")
                + ": judgement",
                "memory_bandwidth_bytes_per_second": memory[1],
                "host_memory_bandwidth_bytes_per_second": "the same memory",
                "disk_read_bytes_per_second": disk[1],
                "cpu_level": _PI_LEVEL_SOURCE if arm else _CPU_LEVEL_SOURCE,
            },
        }
    )


_PI_LEVEL_SOURCE = "Arm: Cortex-A72 (Pi 4) is ARMv8-A, Cortex-A76 (Pi 5) is ARMv8.2-A"
_PI4_MEMORY = (5.5, "STREAM copy on a Pi 4 without a display: 5.56 GB/s (sci-pi.org.uk, Stream)")
_PI5_MEMORY = (
    9.0,
    "judgement: 32 bits of LPDDR4X-4267 are 17.1 GB/s at most (Raspberry Pi 5 product brief); "
    "published speeds of 7B models at 4 bits are a little over 2 tokens/s, which is half of it",
)
_PI4_CARD = (45, "microSD at DDR50, 50 MB/s on the wire; 45 MB/s are reported")
_PI5_CARD = (90, "microSD at SDR104, 104 MB/s on the wire; 90-100 MB/s are reported")
_ONE_CHANNEL = (25.6, "one module of DDR4-3200 (JEDEC JESD79-4): 25.6 GB/s")
_SLOW_DDR4 = (38.4, "two channels of DDR4-2400 (JEDEC JESD79-4): 2 × 19.2 GB/s")


def _pi(model: int, ram_gb: int) -> Target:
    memory, card = (_PI4_MEMORY, _PI4_CARD) if model == 4 else (_PI5_MEMORY, _PI5_CARD)
    return _cpu(
        f"raspberry-pi-{model}-{ram_gb}gb", f"Raspberry Pi {model}, {ram_gb} GB", ram_gb, memory,
        card, _ARM, "armv8" if model == 4 else "armv8.2", 1.0,
    )  # fmt: skip


def _pc(ram_gb: int, memory: tuple[float, str], reserve_gb: float) -> Target:
    return _cpu(
        f"cpu-{ram_gb}gb", f"PC without a GPU, {ram_gb} GB RAM", ram_gb, memory, _SATA, _PC,
        "x86-64-v3", reserve_gb,
    )  # fmt: skip


CATALOGUE: tuple[Target, ...] = (
    _nvidia("rtx-3060-12gb", "3060", 12, 192, 15, memory=_DDR4_TWO_CHANNELS),
    _nvidia("rtx-3060-laptop", "3060", 6, 192, 14, laptop=True, ram_gb=16,
            memory=_DDR4_TWO_CHANNELS),
    _nvidia("rtx-3090", "3090", 24, 384, 19.5, ram_gb=64, memory=_DDR4_TWO_CHANNELS),
    # There is no RTX 4050 for desktops.
    _nvidia("rtx-4050-laptop", "4050", 6, 96, 16, laptop=True, ram_gb=16),
    _nvidia("rtx-4060", "4060", 8, 128, 17),
    _nvidia("rtx-4060-laptop", "4060", 8, 128, 16, laptop=True, ram_gb=16),
    _nvidia("rtx-4070", "4070", 12, 192, 21),
    _nvidia("rtx-4070-laptop", "4070", 8, 128, 16, laptop=True, ram_gb=16),
    _nvidia("rtx-4080", "4080", 16, 256, 22.4),
    _nvidia("rtx-4080-laptop", "4080", 12, 192, 18, laptop=True),
    _nvidia("rtx-4090", "4090", 24, 384, 21, ram_gb=64),
    _nvidia("rtx-4090-laptop", "4090", 16, 256, 18, laptop=True),
    _nvidia("rtx-5090", "5090", 32, 512, 28, ram_gb=64),
    _nvidia("rtx-5090-laptop", "5090", 24, 256, 28, laptop=True, ram_gb=64),
    _card("rx-7900-xtx", "AMD RX 7900 XTX 24 GB", 24, 960, kind="rocm", ram_gb=64,
          specification='AMD, "Radeon RX 7900 XTX": 24 GB, 384 bits at 20 Gbit/s a pin'),
    _server("a100-40gb", "NVIDIA A100 40 GB", 40960 * _MIB, 1555, "cuda",
            specification='NVIDIA, "A100 Tensor Core GPU" data sheet: 40 GB, 1,555 GB/s',
            reported="nvidia-smi: 40,960 MiB"),
    _server("a100-80gb", "NVIDIA A100 80 GB", 81920 * _MIB, 2039, "cuda",
            specification='NVIDIA, "A100 Tensor Core GPU" data sheet: SXM 80 GB, 2,039 GB/s',
            reported="nvidia-smi: 81,920 MiB"),
    _server("h100-80gb", "NVIDIA H100 80 GB", 81559 * _MIB, 3350, "cuda",
            specification='NVIDIA, "H100 Tensor Core GPU" data sheet: SXM, 3.35 TB/s',
            reported="nvidia-smi: 81,559 MiB"),
    _server("h200", "NVIDIA H200 141 GB", 143771 * _MIB, 4800, "cuda",
            specification='NVIDIA, "H200 Tensor Core GPU" data sheet: 141 GB, 4.8 TB/s',
            reported="nvidia-smi: 143,771 MiB"),
    _server("mi300x", "AMD MI300X 192 GB", 206_141_652_992, 5300, "rocm",
            specification='AMD, "Instinct MI300X" data sheet: 192 GB, 5.3 TB/s',
            reported="rocm-smi: 206,141,652,992 bytes, 284 MiB of them used when idle"),
    _mac("M1", 8, 68.25),
    _mac("M1 Max", 32, 400),
    _mac("M2", 16, 100),
    _mac("M2 Ultra", 192, 800),
    _mac("M3 Pro", 36, 150),
    _mac("M3 Max", 64, 400),
    _mac("M4", 16, 120),
    _mac("M4 Pro", 48, 273),
    _mac("M4 Max", 128, 546),
    _pi(4, 4),
    _pi(4, 8),
    _pi(5, 4),
    _pi(5, 8),
    _pc(8, _ONE_CHANNEL, 3.0),
    _pc(16, _SLOW_DDR4, 4.0),
    _pc(32, _DDR4_TWO_CHANNELS, 4.0),
    _pc(64, _DDR5_TWO_CHANNELS, 4.0),
)  # fmt: skip


@hookimpl
def bundler_targets() -> Sequence[Target]:
    """Give the catalogue."""
    return CATALOGUE
