"""What was found out about this machine, as values."""

from __future__ import annotations

from bundler.hardware import Accelerator, Platform
from bundler.value import Value


class Figure(Value):
    """One measured figure: bytes, or bytes per second."""

    value: int
    how: str
    """How it was measured, in words."""
    low: int = 0
    """The smallest of several measurements; 0 when there was one."""
    high: int = 0

    @property
    def is_disturbed(self) -> bool:
        """Whether the measurements differ so much that something else was at work meanwhile."""
        return self.high > 1.5 * self.low > 0


class Card(Value):
    """One accelerator."""

    name: str
    kind: Accelerator
    total_bytes: int
    free_bytes: int
    how: str
    """Who said so."""
    bandwidth_bytes_per_second: int = 0
    """Peak, from clock and bus width as the driver says them; 0 when it does not."""
    drives_display: bool | None = None
    """None when nobody says."""
    shares_main_memory: bool = False
    driver: str = ""


class Machine(Value):
    """This machine. What could not be found out is None or empty, and `notes` says why."""

    platform: Platform | None = None
    processor: str = ""
    cores: int = 1
    """What this process may use, not what the machine has."""
    cpu_level: str = "any"
    cpu_level_how: str = ""
    ram_total: Figure | None = None
    """What there is, or what a container's limit leaves of it."""
    ram_free: Figure | None = None
    """What programs could have now."""
    ram_bandwidth: Figure | None = None
    disk_read: Figure | None = None
    cards: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()
