"""When to try again, how long to wait, and how fast to go: the clock side of a transfer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from bundler.errors import PassingFault

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often something is tried again and how long is waited in between.

    With the defaults a host that cannot be reached is given up after about 15 seconds.
    """

    attempts: int = 6
    """Attempts in a row *without progress* after which a transfer is given up."""
    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 30.0
    longest_retry_after_seconds: float = 300.0
    """Cap on what a server may ask for: the Hub counts its rate limits in windows of 5 minutes."""
    random: Callable[[], float] = field(default=random.random)
    """Numbers in [0, 1) for the jitter that keeps many clients from coming back at once."""

    def delay_seconds(self, failures: int, retry_after_seconds: float | None) -> float:
        """Return the wait after the `failures`-th failure in a row (1 for the first)."""
        longest = min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** (failures - 1))
        delay = longest * (0.5 + self.random() / 2)
        if retry_after_seconds is None:
            return delay
        asked = min(max(0.0, retry_after_seconds), self.longest_retry_after_seconds)
        return max(delay, asked)


DEFAULT_PATIENCE = Patience()
UNKNOWN_HOST_ATTEMPTS = 2
"""For small things: who has no network should read so in seconds, with ten sources, too. The system
has asked its name servers several times already. A transfer that has begun waits longer."""


def patiently(
    action: Callable[[], T], patience: Patience, wait: Callable[[float], object] = time.sleep
) -> T:
    """Do a small thing whole, again after each passing fault, and return its value.

    Raises the last `PassingFault` when all attempts are used up.
    """
    for failures in range(1, patience.attempts):
        try:
            return action()
        except PassingFault as fault:
            if fault.unknown_host and failures >= UNKNOWN_HOST_ATTEMPTS:
                raise
            wait(patience.delay_seconds(failures, fault.retry_after_seconds))
    return action()


class Bandwidth:
    """A cap on the sum of all transfers: every byte books its slice of time, first come first."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._booked_until = 0.0

    @property
    def capped(self) -> bool:
        """Whether there is a cap at all."""
        return self._rate is not None

    def take(self, count: int, wait: Callable[[float], object]) -> None:
        """Return when `count` more bytes may have passed; `wait(seconds)` does the waiting."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._booked_until = max(self._booked_until, now) + count / self._rate
            delay = self._booked_until - now
        wait(delay)
