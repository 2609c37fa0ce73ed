"""The only module that writes to the screen: events while a build works, values when it is done.

Data goes to stdout, all else to stderr. Colour and moving lines only on a terminal; `NO_COLOR`,
`TERM=dumb` and pipes get plain lines that a log can keep.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console as RichConsole
from rich.markup import escape

from bundler.errors import BundlerError
from bundler.events import Event, Note, Progress, StepFinished, StepStarted
from bundler.printable import printable, printable_json
from bundler.value import format_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID
    from rich.table import Table
    from rich.text import Text

Mode = Literal["auto", "tty", "plain", "quiet", "json"]
# A log line at most this often, as restic does off a terminal.
PLAIN_EVERY_SECONDS = 5.0
# What takes longer than this is said when it begins, too.
PLAIN_AFTER_SECONDS = 2.0


def amount(done: float, total: float | None, unit: str) -> str:
    """Write how far something is: `1.20 GB of 4.00 GB`, `512 of 4096 tokens`."""
    if unit == "bytes":
        text = format_size(int(done))
        return f"{text} of {format_size(int(total))}" if total else text
    return f"{done:,.0f} of {total:,.0f} {unit}" if total else f"{done:,.0f} {unit}"


def pace(done: float, left: float, seconds: float, unit: str) -> str:
    """Write how fast something goes, and for how long yet: `, 12.0 MB/s, 3 min 20 s left`.

    >>> pace(30_000_000, 600_000_000, 5, "bytes")
    ', 6.00 MB/s, 1 min 40 s left'
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    fast = f"{format_size(int(rate))}/s" if unit == "bytes" else f"{rate:,.0f} {unit}/s"
    return f", {fast}, {duration(left / rate)} left" if left > 0 else f", {fast}"


def duration(seconds: float) -> str:
    """Write a duration: `2 h 5 min`, `1 min 40 s`, `7 s`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Screen:
    """Shows events in one of four ways; a context manager, so that moving lines are put away."""

    def __init__(self, mode: Mode = "auto") -> None:
        # Names of models and files hold colons: no `:word:` of theirs is a picture.
        self.out = RichConsole(highlight=False, soft_wrap=True, emoji=False)
        self.err = RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        if mode == "auto":
            mode = "tty" if self.err.is_terminal and not self.err.is_dumb_terminal else "plain"
        self.mode = mode
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._began: dict[str, tuple[float, float, str]] = {}
        self._waiting: dict[str, threading.Timer] = {}

    def __enter__(self) -> Screen:
        if self.mode == "tty":
            from bundler.moving_lines import moving_lines

            self._bars = moving_lines(self.err)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._no_longer_waiting(*self._waiting)
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def report(self, event: Event) -> None:
        """Show one event; this is the `Report` that stages are given."""
        show: dict[str, Callable[[Any], None]] = {
            "StepStarted": self._started, "Progress": self._progress,
            "StepFinished": self._finished, "Note": self._note,
        }  # fmt: skip
        if self.mode == "json":
            record = {"event": type(event).__name__, **asdict(event)}
            self.data(printable_json(json.dumps(record, ensure_ascii=False)))
            sys.stdout.flush()
        elif self.mode != "quiet" or (isinstance(event, Note) and event.level == "warning"):
            show[type(event).__name__](event)

    def _line(self, text: str) -> None:
        (self._bars.console if self._bars else self.err).print(printable(text))

    def _started(self, event: StepStarted) -> None:
        if self._bars is None:
            # A step that ends soon has one line, at its end.
            timer = threading.Timer(PLAIN_AFTER_SECONDS, self._line, [f"  {escape(event.step)} …"])
            timer.daemon = True
            self._waiting[event.step] = timer
            timer.start()
        elif event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(event.step, total=None, unit="bytes")

    def _no_longer_waiting(self, *steps: str) -> None:
        for step in steps:
            timer = self._waiting.pop(step, None)
            if timer is not None:
                timer.cancel()

    def _progress(self, event: Progress) -> None:
        if self._bars is None:
            now = time.monotonic()
            when, done, unit = self._began.get(event.step, (now, event.done, event.unit))
            if unit != event.unit or event.done < done:
                when, done = now, event.done  # it counts something else now
            self._began[event.step] = when, done, event.unit
            if now - self._said.setdefault(event.step, now) >= PLAIN_EVERY_SECONDS:
                self._said[event.step] = now
                left = (event.total or event.done) - event.done
                far = amount(event.done, event.total, event.unit)
                fast = pace(event.done - done, left, now - when, event.unit)
                self._line(f"  {escape(event.step)}: {far}{fast}")
            return
        if event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(event.step, total=None, unit=event.unit)
        self._bars.update(
            self._tasks[event.step], completed=event.done, total=event.total, unit=event.unit
        )

    def _finished(self, event: StepFinished) -> None:
        self._no_longer_waiting(event.step)
        if self._bars is not None and event.step in self._tasks:
            self._bars.remove_task(self._tasks.pop(event.step))
        mark = "[green]✓[/]" if event.outcome == "done" else "[dim]=[/]"
        detail = event.detail or ("unchanged" if event.outcome == "cached" else "")
        said = f"  [dim]{escape(detail)}[/]" if detail else ""
        self._line(f"{mark} {escape(event.step)}{said}")

    def _note(self, event: Note) -> None:
        word = "[yellow]warning:[/] " if event.level == "warning" else ""
        self._line(f"{word}{escape(event.message)}")
        if event.hint:
            self._line(f"[dim]hint:[/] {escape(event.hint)}")

    # -- values ----------------------------------------------------------------------------------

    def data(self, text: str) -> None:
        """Write data for another program, or for a file."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def json(self, value: Any) -> None:
        """Write a value as one line of canonical JSON."""
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        self.data(printable_json(text))

    def say(self, markup: str = "") -> None:
        """Write a line for a person to stdout, with rich's markup; nothing in JSON mode."""
        if self.mode != "json":
            self.out.print(printable(markup))

    def show(self, table: Table | Text) -> None:
        """Write a table or a picture for a person to stdout; nothing in JSON mode."""
        if self.mode != "json":
            self.out.print(table)

    def error(self, error: BundlerError) -> None:
        """Show every problem of an error, and each hint once, to stderr."""
        if self.mode == "json":
            problems = [asdict(problem) for problem in error.problems]
            self.json({"event": "error", "exit_code": error.exit_code, "problems": problems})
            return
        previous = ""
        for index, problem in enumerate(error.problems):
            if previous and problem.hint != previous:
                self.err.print(f"[dim]hint:[/] {escape(printable(previous))}")
            self.err.print(f"[bold red]error:[/] {escape(printable(str(problem)))}")
            previous = problem.hint
            if index == len(error.problems) - 1 and previous:
                self.err.print(f"[dim]hint:[/] {escape(printable(previous))}")
