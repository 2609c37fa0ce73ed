"""Machines that are not here, from the data files in `tests/machines`."""

import json
from pathlib import Path
from types import SimpleNamespace

MACHINES = Path(__file__).parent / "machines"


def tree(name: str, folder: Path) -> Path:
    """Write a machine's `proc` and `sys` below `folder` and return it."""
    for path, text in json.loads((MACHINES / f"tree-{name}.json").read_text()).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder


class Nvml:
    """A library with the functions of pynvml that answers from a data file."""

    NVML_CLOCK_MEM = 2

    class NVMLError(Exception):
        pass

    def __init__(self, name: str | None) -> None:
        self.record = json.loads((MACHINES / f"nvml-{name}.json").read_text()) if name else None
        self.open = 0

    def nvmlInit(self):
        if self.record is None:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return self.record["driver"]

    def nvmlDeviceGetCount(self):
        return len(self.record["devices"])

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.record["devices"][index]

    def nvmlDeviceGetName(self, device):
        return device["name"].encode()

    def nvmlDeviceGetMemoryInfo(self, device):
        if "fails" in device:
            raise self.NVMLError(device["fails"])
        return SimpleNamespace(total=device["total"], free=device["free"], used=device["used"])

    def _figure(self, device, key):
        if device[key] is None:
            raise self.NVMLError("Not Supported")
        return device[key]

    def nvmlDeviceGetDisplayActive(self, device):
        return self._figure(device, "display_active")

    def nvmlDeviceGetMaxClockInfo(self, device, clock):
        assert clock == self.NVML_CLOCK_MEM
        return self._figure(device, "memory_clock_mhz")

    def nvmlDeviceGetMemoryBusWidth(self, device):
        return self._figure(device, "bus_width")
