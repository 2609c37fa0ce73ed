"""The machines a recipe asks for: `[target]`, and `[tiers.<name>]` when there are several. Values."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, ValidationInfo, field_validator, model_validator

from bundler.hardware import Accelerator
from bundler.value import Bytes, Value, format_bytes


class WrongValue(ValueError):
    """A value that cannot be, with what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


_GIB = 2**30
TARGET_LIMITS: Mapping[str, tuple[int, int, str]] = {
    "usable_vram": (_GIB // 4, 1024 * _GIB, "22 GB"),
    "max_vram": (_GIB // 4, 1024 * _GIB, "23.5 GB"),
    "display_reserve": (0, 64 * _GIB, "1 GiB"),
    "ram": (_GIB // 4, 64 * 1024 * _GIB, "16 GB"),
    "memory_bandwidth": (10**8, 10**15, "1008 GB"),
    "host_memory_bandwidth": (10**8, 10**14, "51.2 GB"),
    "disk_read": (10**5, 10**12, "500 MB"),
}
"""Smallest and largest figure that a machine can have, per key, and one as an example: a figure
outside is a slip of the pen, most often a unit that was left out."""


class TargetRequest(Value):
    """`[target]`: the absent machine; `use` names one of the catalogue, the rest overrides it."""

    use: str | None = None
    """Name in the catalogue: see `bundler targets`."""
    accelerator: Accelerator | None = None
    """What llama.cpp would run on there; `none` for the CPU."""
    devices: int | None = Field(default=None, ge=1, le=64)
    """How many accelerators there are, all alike; figures of VRAM are of each."""
    usable_vram: Bytes | None = None
    """What models may really use on each accelerator: what is left by driver and display."""
    max_vram: Bytes | None = None
    """Your own cap on it, as `"23.5 GB"`: the smaller of both counts, to the byte."""
    display_reserve: Bytes | None = None
    """What desktop and browser take of the accelerator, instead of the catalogue's 1 GiB; 0 for a
    card that drives no display."""
    ram: Bytes | None = None
    """What programs may use of its main memory."""
    memory_bandwidth: Bytes | None = None
    """Bytes per second of the memory the weights lie in."""
    host_memory_bandwidth: Bytes | None = None
    """Bytes per second of the main memory, for layers that are not on the accelerator."""
    disk_read: Bytes | None = None
    """Bytes per second at which models are read from the disk or stick they lie on."""
    unified_memory: bool | None = None
    """Whether accelerator and CPU share one memory."""

    @field_validator(*TARGET_LIMITS)
    @classmethod
    def _plausible(cls, given: int | None, info: ValidationInfo) -> int | None:
        low, high, example = TARGET_LIMITS[str(info.field_name)]
        if given is not None and not low <= given <= high:
            raise ValueError(
                f"{format_bytes(given)} cannot be right; write it with its unit, as {example!r} "
                f"(from {format_bytes(low)} to {format_bytes(high)})"
            )
        return given

    @field_validator("usable_vram", "max_vram", "display_reserve", "devices")
    @classmethod
    def _of_an_accelerator(cls, given: int | None, info: ValidationInfo) -> int | None:
        if given is None:
            return given
        if info.data.get("accelerator") == "none":
            raise ValueError('says nothing when accelerator = "none"; leave one of them out')
        if "use" in info.data and info.data["use"] is None:
            if info.field_name == "display_reserve":
                raise ValueError("replaces a figure of the catalogue: give `use`, or `usable_vram`")
            if info.data.get("accelerator", "") is None:
                raise ValueError("of which accelerator? give `accelerator`, or `use`")
        if info.field_name == "display_reserve" and info.data.get("usable_vram") is not None:
            raise ValueError("usable_vram is what the display has left already; give one of them")
        return given

    @model_validator(mode="after")
    def _named_or_spelled_out(self) -> TargetRequest:
        if self.use is None and self.ram is None:
            raise ValueError("name a target with `use`, or give at least `ram`")
        accelerated = self.use is None and self.accelerator not in (None, "none")
        if accelerated and self.usable_vram is None and self.max_vram is None:
            raise ValueError("how much may models use on the accelerator? give `usable_vram`")
        return self


class TierRequest(TargetRequest):
    """`[tiers.<name>]`: one of several machines that one bundle is for. The keys of `[target]`, and a
    title. The order in the file is the order of preference, best first.
    """

    title: str = Field(default="", max_length=200)
    """What people at the far end see, as `A computer with a 24 GB card`; the machine's own title
    when absent."""
