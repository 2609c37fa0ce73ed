"""How a command at the far end says how far it is: lines for people, or JSON for the station."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

from bundler.errors import BundlerError
from bundler.events import Event, Progress
from bundler.far_end.telling import MOST_LINES, Told
from bundler.value import format_size

_EVERY_SECONDS = 0.25
_PLAIN_SECONDS = 10.0
"""Where no line can be written over: seldom enough to stay readable."""
_NAMES = {"verify": "reading", "repair": "repairing"}


class Lines:
    """Writes for a person: one line that is written over on a terminal."""

    def __init__(self, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._out, self._err = out, err
        self._live = err.isatty()
        self._step, self._started, self._said = "", 0.0, 0.0

    def report(self, event: Event) -> None:
        """Show how far it is."""
        if not isinstance(event, Progress) or not event.total:
            return
        now = time.monotonic()
        if event.step != self._step:
            self._step, self._started, self._said = event.step, now, 0.0
        if now - self._said < (_EVERY_SECONDS if self._live else _PLAIN_SECONDS):
            return
        self._said = now
        line = progress_words(event, now - self._started)
        self._err.write(f"\r{line}\x1b[K" if self._live else f"{line}\n")
        self._err.flush()

    def told(self, told: Told) -> None:
        """Show the result."""
        self._end()
        for line in (told.headline, *(f"  {one}" for one in told.lines)):
            self._out.write(f"{_plain(line)}\n")
        if told.next_step:
            self._out.write(f"\nNext: {told.next_step}\n")

    def failed(self, error: BundlerError) -> None:
        """Show why there is no result."""
        self._end()
        for problem in error.problems:
            self._err.write(f"error: {_plain(str(problem))}\n")
        for hint in dict.fromkeys(problem.hint for problem in error.problems if problem.hint):
            self._err.write(f"hint: {_plain(hint)}\n")

    def _end(self) -> None:
        if self._live and self._step:
            self._err.write("\r\x1b[K")
        self._step = ""


class Events:
    """Writes for the station: one JSON object a line."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._step, self._started, self._said = "", 0.0, 0.0

    def report(self, event: Event) -> None:
        """Say how far it is, four times a second."""
        if not isinstance(event, Progress) or not event.total:
            return
        now = time.monotonic()
        if event.step != self._step:
            self._step, self._started, self._said = event.step, now, 0.0
        if now - self._said >= _EVERY_SECONDS or event.done == event.total:
            self._said = now
            words = progress_words(event, now - self._started)
            self._write({"done": event.done, "total": event.total, "words": words})

    def told(self, told: Told) -> None:
        """Say the result."""
        self._write({"result": told.as_json()})

    def failed(self, error: BundlerError) -> None:
        """Say why there is none."""
        lines = [str(problem) for problem in error.problems[:MOST_LINES]]
        if len(error.problems) > MOST_LINES:
            lines.append(f"… and {len(error.problems) - MOST_LINES:,} more")
        hints = dict.fromkeys(p.hint for p in error.problems[:MOST_LINES] if p.hint)
        told = Told(False, lines[0], tuple(lines[1:]), "; ".join(hints))
        self._write({"result": told.as_json()})

    def _write(self, said: dict[str, object]) -> None:
        self._out.write(json.dumps(said) + "\n")
        self._out.flush()


def progress_words(event: Progress, seconds: float) -> str:
    """Return how far something is, how fast it goes and how long it will take.

    >>> progress_words(Progress("verify", 50_000_000, 200_000_000), 5)
    'reading: 25 %, 10.0 MB/s, 15 s left'
    """
    total = event.total or 1
    said = f"{_NAMES.get(event.step, event.step)}: {100 * event.done / total:.0f} %"
    if event.unit != "bytes" or seconds < 1 or not event.done:
        return said
    rate = event.done / seconds
    left = (total - event.done) / rate
    return f"{said}, {format_size(int(rate))}/s, {_time(left)} left"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _plain(text: str) -> str:
    """Return text without what would steer a terminal: names on a medium may be anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)
