"""How far the steps on a stick are, as events."""

from __future__ import annotations

import time

from bundler.events import Progress, Report
from bundler.value import format_size

REPORT_SECONDS = 0.1
"""Progress is told no more often than this."""


class Step:
    """How far one step on one stick is; never goes back."""

    def __init__(self, name: str, report: Report) -> None:
        self.detail = ""
        self._name, self._report = name, report
        self._done, self._said = 0, 0.0
        self._started = time.monotonic()

    def progress(self, done: int, total: int) -> None:
        """Tell how far it is."""
        self._done = max(self._done, done)
        now = time.monotonic()
        if now - self._said >= REPORT_SECONDS or done >= total:
            self._said = now
            self._report(Progress(self._name, min(self._done, total), total))

    def more(self, count: int, total: int) -> None:
        """Tell that so many bytes more are done."""
        self.progress(self._done + count, total)

    def rate(self, total: int) -> str:
        """Return how much it was and how fast."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        return f"{format_size(total)}, {format_size(int(self._done / seconds))}/s"
