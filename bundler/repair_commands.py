"""The command `bundler repair`: says what was damaged, what is right again, and what is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bundler.errors import DamagedError
from bundler.printable import printable_name

if TYPE_CHECKING:
    from bundler.console import Screen
    from bundler.media.repair import Repair

ProgressMode = Annotated[
    Literal["auto", "tty", "plain", "quiet", "json"],
    typer.Option("--progress", help="How to show what is going on.", envvar="BUNDLER_PROGRESS"),
]


def repair(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", metavar="BUNDLE")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be repaired; change nothing.")
    ] = False,
    scratch: Annotated[
        Path | None,
        typer.Option(
            "--scratch", help="Folder for up to 1 GiB that is needed for a while.",
            show_default="the system's, else the bundle's own disk",
        ),
    ] = None,
    progress: ProgressMode = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Bring damaged, lost, renamed and cut off files back, as far as the bundle's parity goes."""
    from bundler.console import Screen
    from bundler.media.repair import repair_bundle

    with Screen(progress) as screen:
        done = repair_bundle(
            bundle, dry_run=dry_run, workers=min(4, os.cpu_count() or 1), scratch=scratch,
            report=screen.report,
        )  # fmt: skip
    if as_json or screen.mode == "json":
        screen.json(_as_json(done, dry_run))
    else:
        _show(screen, done, dry_run)
    if done.unrepaired:
        raise DamagedError(done.unrepaired)


def _as_json(done: Repair, dry_run: bool) -> dict[str, object]:
    return {
        "bundle": done.before.manifest.name, "version": done.before.manifest.version,
        "dry_run": dry_run, "repaired": list(done.repaired),
        "unrepaired": [problem.message for problem in done.unrepaired],
        "extra": list(done.extra), "budgets": list(done.budgets),
        "findings": [
            {"path": f.path, "kind": f.kind, "detail": f.detail, "ranges": f.ranges}
            for f in done.before.findings
        ],
    }  # fmt: skip


def _show(screen: Screen, done: Repair, dry_run: bool) -> None:
    from rich.markup import escape

    name = f"{done.before.manifest.name} {done.before.manifest.version}"
    damaged = [finding for finding in done.before.findings if finding.kind != "extra"]
    if not damaged:
        screen.say(f"{name}: all {done.before.files} files are as the manifest says")
    for finding in damaged:
        state = "not repaired"
        if finding.path in done.repaired:
            state = "can be repaired" if dry_run else "repaired"
        screen.say(escape(f"{state}: {finding}"))
    for budget in done.budgets:
        screen.say(f"[dim]{escape(budget)}[/]")
    for path in done.extra:
        other = escape(printable_name(path))
        screen.say(f"[dim]{other} is not of this bundle, and is left alone[/]")
    if done.repaired and not dry_run:
        screen.say("[dim]who made the bundle tells: bundler verify[/]")
