"""The only module that writes to the screen: events while a build works, values when it is done.

Data goes to stdout, all else to stderr. Colour and moving lines only on a terminal; `NO_COLOR`,
`TERM=dumb` and pipes get plain lines that a log can keep.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from bundler.errors import BundlerError
from bundler.events import Event, Note, Progress, StepFinished, StepStarted
from bundler.value import canonical_json, format_bytes

Mode = Literal["auto", "tty", "plain", "quiet", "json"]
# A log line at most this often, as restic does off a terminal.
PLAIN_EVERY_SECONDS = 5.0


def amount(done: float, total: float | None, unit: str) -> str:
    """Write how far something is: `1.2 GiB of 4.0 GiB`, `512 of 4096 tokens`."""
    if unit == "bytes":
        text = format_bytes(int(done))
        return f"{text} of {format_bytes(int(total))}" if total else text
    return f"{done:,.0f} of {total:,.0f} {unit}" if total else f"{done:,.0f} {unit}"


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        if task.total is None and not task.completed:
            return Text("")
        return Text(amount(task.completed, task.total, task.fields["unit"]), style="cyan")


class _RateAndEta(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.speed or task.finished_speed
        if not speed:
            return Text("")
        unit = task.fields["unit"]
        rate = f"{format_bytes(int(speed))}/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s"
        left = task.time_remaining
        eta = f", {_duration(left)} left" if left else ""
        return Text(rate + eta, style="dim")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Screen:
    """Shows events in one of four ways; a context manager, so that moving lines are put away."""

    def __init__(self, mode: Mode = "auto") -> None:
        self.out = RichConsole(highlight=False, soft_wrap=True)
        self.err = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        if mode == "auto":
            mode = "tty" if self.err.is_terminal and not self.err.is_dumb_terminal else "plain"
        self.mode = mode
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Screen:
        if self.mode == "tty":
            self._bars = Bars(
                TextColumn("  {task.description}"), BarColumn(bar_width=24), _Amount(),
                _RateAndEta(), console=self.err, transient=True,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
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
            self.data(json.dumps(record, ensure_ascii=False))
            sys.stdout.flush()
        elif self.mode != "quiet" or (isinstance(event, Note) and event.level == "warning"):
            show[type(event).__name__](event)

    def _line(self, text: str) -> None:
        (self._bars.console if self._bars else self.err).print(text)

    def _started(self, event: StepStarted) -> None:
        if self._bars is None:
            self._line(f"  {escape(event.step)} …")
        elif event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(event.step, total=None, unit="bytes")

    def _progress(self, event: Progress) -> None:
        if self._bars is None:
            now = time.monotonic()
            if now - self._said.setdefault(event.step, now) >= PLAIN_EVERY_SECONDS:
                self._said[event.step] = now
                self._line(f"  {escape(event.step)}: {amount(event.done, event.total, event.unit)}")
            return
        if event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(event.step, total=None, unit=event.unit)
        self._bars.update(
            self._tasks[event.step], completed=event.done, total=event.total, unit=event.unit
        )

    def _finished(self, event: StepFinished) -> None:
        if self._bars is not None and event.step in self._tasks:
            self._bars.remove_task(self._tasks.pop(event.step))
        mark = "[green]✓[/]" if event.outcome == "done" else "[dim]=[/]"
        detail = event.detail or ("unchanged" if event.outcome == "cached" else "")
        self._line(f"{mark} {escape(event.step)}  [dim]{escape(detail)}[/]".rstrip())

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
        self.data(canonical_json(value).decode())

    def say(self, markup: str = "") -> None:
        """Write a line for a person to stdout, with rich's markup; nothing in JSON mode."""
        if self.mode != "json":
            self.out.print(markup)

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
                self.err.print(f"[dim]hint:[/] {escape(previous)}")
            self.err.print(f"[bold red]error:[/] {escape(str(problem))}")
            previous = problem.hint
            if index == len(error.problems) - 1 and previous:
                self.err.print(f"[dim]hint:[/] {escape(previous)}")
