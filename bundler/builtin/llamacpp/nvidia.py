"""What NVIDIA's driver says of this process: its memory, and the driver's version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class GpuMeter:
    """Follows the memory this process takes on NVIDIA devices."""

    driver: str = ""
    source: str = ""
    """`nvml` (this process's own account), `nvml-device` (growth of the whole device), or ``."""
    peak_bytes: int = 0
    _handles: list[Any] = field(default_factory=list)
    _baseline_bytes: int = 0

    def sample(self) -> None:
        """Read the driver's account now and keep the peak."""
        if not self._handles:
            return
        mine = _process_bytes(self._handles)
        if mine is not None:
            self.source = "nvml"
        else:
            # In a container the driver knows us by another process id: take the device's growth.
            self.source = "nvml-device"
            mine = _device_bytes(self._handles) - self._baseline_bytes
        self.peak_bytes = max(self.peak_bytes, mine)


@contextlib.contextmanager
def gpu_meter(*, wanted: bool) -> Iterator[GpuMeter]:
    """Give a meter; it stays empty where there is no NVIDIA driver or it is not `wanted`."""
    meter = GpuMeter()
    if not wanted:
        yield meter
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield meter  # no driver: `source` says that nothing was measured
        return
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        meter.driver = version.decode() if isinstance(version, bytes) else str(version)
        count = pynvml.nvmlDeviceGetCount()
        meter._handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(count)]
        meter._baseline_bytes = _device_bytes(meter._handles)
        yield meter
    finally:
        pynvml.nvmlShutdown()


def _process_bytes(handles: list[Any]) -> int | None:
    """Return what the driver books on this process over all devices; None if it does not know us."""
    import pynvml

    total, known = 0, False
    for handle in handles:
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                total, known = total + int(process.usedGpuMemory), True
    return total if known else None


def _device_bytes(handles: list[Any]) -> int:
    import pynvml

    return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
