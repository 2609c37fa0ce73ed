"""The machine a bundle is for, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from bundler.value import Bytes, Value

Platform = Literal["linux-x86_64", "linux-aarch64", "macos-arm64", "macos-x86_64", "windows-x86_64"]
Accelerator = Literal["none", "cuda", "rocm", "vulkan", "metal"]
Filesystem = Literal["ext4", "exfat", "ntfs", "apfs", "fat32"]


class Target(Value):
    """An absent machine: what it can really give, not what its box says."""

    name: str
    title: str = ""
    accelerator: Accelerator = "none"
    usable_vram_bytes: Bytes = 0
    """What models may use on the accelerator, on each of them where there are several: nominal
    less what driver and display take."""
    nominal_vram_bytes: Bytes = 0
    """What its box says; 0 when unknown."""
    driver_reserve_bytes: Bytes = 0
    """What the driver keeps of each accelerator for itself."""
    display_reserve_bytes: Bytes = 0
    """What desktop and browser take of each accelerator; 0 for one that drives no display."""
    device_count: int = Field(default=1, ge=1, le=64)
    """How many accelerators there are, all alike."""
    ram_bytes: Bytes
    """What programs may use of the main memory."""
    memory_bandwidth_bytes_per_second: int = 0
    """Peak bandwidth of the memory the weights lie in; 0 when unknown."""
    host_memory_bandwidth_bytes_per_second: int = 0
    """Peak bandwidth of the main memory, for layers that are not on the accelerator; 0 when
    unknown."""
    disk_read_bytes_per_second: int = 0
    """How fast models can be read into memory; 0 when unknown."""
    unified_memory: bool = False
    """Whether accelerator and CPU share one memory (Apple, Raspberry Pi)."""
    platforms: tuple[Platform, ...] = ("linux-x86_64",)
    cpu_level: Literal["x86-64-v2", "x86-64-v3", "x86-64-v4", "armv8", "armv8.2", "any"] = "any"
    source: str = ""
    """Where the figures come from, in one line."""
    sources: Mapping[str, str] = Field(default_factory=dict)
    """Where each figure comes from, by the name of its field, in words a reader can check."""

    def __hash__(self) -> int:
        # A mapping has no hash; equal targets have these in common, and few others do.
        return hash((self.name, self.usable_vram_bytes, self.device_count, self.ram_bytes))
