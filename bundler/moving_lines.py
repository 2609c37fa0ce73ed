"""Moving lines for a terminal: one for each step that is being done, with how far it is."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from bundler.console import amount, duration
from bundler.value import format_size


def moving_lines(console: Console) -> Progress:
    """Return the lines, not started; each task has a field `unit`: "bytes", or a plural."""
    return Progress(
        TextColumn("  {task.description}"), BarColumn(bar_width=24), _Amount(), _RateAndEta(),
        console=console, transient=True,
    )  # fmt: skip


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
        rate = f"{format_size(int(speed))}/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s"
        left = task.time_remaining
        eta = f", {duration(left)} left" if left else ""
        return Text(rate + eta, style="dim")
