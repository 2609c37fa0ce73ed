"""NVIDIA accelerators as the driver's own library (NVML) shows them."""

from __future__ import annotations

from typing import Any

from bundler.machine.values import Card

_DOUBLE_DATA_RATE = 2  # two transfers in each clock of the memory, for GDDR and HBM alike


def nvidia_cards(given: Any = None) -> tuple[tuple[Card, ...], tuple[str, ...]]:
    """Return the cards, and what could not be read. `given` has pynvml's functions, else it is pynvml.

    Without a driver there are no cards and there is nothing to say.
    """
    library = given or _pynvml()
    try:
        library.nvmlInit()
    except library.NVMLError:
        return (), ()
    try:
        driver = _text(library.nvmlSystemGetDriverVersion())
        cards, notes = [], []
        for index in range(int(library.nvmlDeviceGetCount())):
            try:
                cards.append(_card(library, index, driver))
            except library.NVMLError as error:
                notes.append(f"the NVIDIA driver shows device {index} but not its memory: {error}")
        return tuple(cards), tuple(notes)
    except library.NVMLError as error:
        return (), (f"the NVIDIA driver is there but does not answer: {error}",)
    finally:
        library.nvmlShutdown()


def _pynvml() -> Any:
    import pynvml

    return pynvml


def _card(library: Any, index: int, driver: str) -> Card:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    display = _asked(library, "nvmlDeviceGetDisplayActive", handle)
    clock = _asked(library, "nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_MEM)
    width = _asked(library, "nvmlDeviceGetMemoryBusWidth", handle)
    return Card(
        name=_text(library.nvmlDeviceGetName(handle)),
        kind="cuda",
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        how=f"NVML, driver {driver}",
        bandwidth_bytes_per_second=int(
            (clock or 0) * 10**6 * _DOUBLE_DATA_RATE * (width or 0) // 8
        ),
        drives_display=None if display is None else bool(display),
        driver=driver,
    )


def _asked(library: Any, function: str, *arguments: Any) -> int | None:
    """Ask for a figure that not every card or driver knows; None then."""
    try:
        return int(getattr(library, function)(*arguments))
    except library.NVMLError:
        return None


def _text(given: Any) -> str:
    return given.decode("utf-8", "replace") if isinstance(given, bytes) else str(given)
