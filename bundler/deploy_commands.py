"""The command `bundler deploy`: a bundle onto one stick or several, and what was proven of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bundler import key_commands
from bundler.errors import StepFailed

if TYPE_CHECKING:
    from bundler.console import Screen
    from bundler.deploy.cargo import Cargo
    from bundler.deploy.evidence import Evidence
    from bundler.deploy.outcome import Outcome

ProgressMode = Annotated[
    Literal["auto", "tty", "plain", "quiet", "json"],
    typer.Option("--progress", help="How to show what is going on.", envvar="BUNDLER_PROGRESS"),
]


def deploy(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", metavar="BUNDLE")],
    targets: Annotated[
        list[Path],
        typer.Argument(
            help="Where sticks are mounted; the bundle gets a folder of its name there.",
            metavar="TARGET...",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be copied; write nothing.")
    ] = False,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete what an older version of this bundle left there."),
    ] = False,
    probe: Annotated[
        bool, typer.Option(help="Try first whether a stick has the room that it claims.")
    ] = True,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Do not ask who made the bundle.")
    ] = False,
    allow_older: Annotated[
        bool,
        typer.Option("--allow-older", help="Accept a bundle older than one that was seen here."),
    ] = False,
    keys: key_commands.KeysFolder = None,
    progress: ProgressMode = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:
    """Copy a bundle onto sticks: only what differs, resumable, read back from the device."""
    import os

    from bundler.console import Screen
    from bundler.deploy.cargo import cargo_of
    from bundler.deploy.outcome import Wishes
    from bundler.deploy.sticks import deploy as deploy_to_all
    from bundler.deploy.sticks import failure
    from bundler.manifest import MANIFEST_NAME

    if not hasattr(os, "preadv"):
        raise StepFailed(
            "this system cannot copy and prove a stick",
            hint="copy the bundle's folder by other means, take the stick out, plug it in again, and "
            "run `bundler verify` on it",
        )
    cargo = cargo_of(bundle)
    if not unsigned:
        read = (cargo.manifest, cargo.beside[MANIFEST_NAME])
        key_commands.signed_by(bundle, keys, allow_older=allow_older, read=read)
    wishes = Wishes(delete=delete, dry_run=dry_run, probe=probe)
    with Screen(progress) as screen:
        outcomes = deploy_to_all(cargo, targets, wishes, screen.report)
    if as_json or screen.mode == "json":
        screen.json(_as_json(cargo, outcomes, dry_run=dry_run))
    else:
        _show(screen, outcomes)
    failed = failure(outcomes)
    if failed is not None:
        raise failed


def _as_json(cargo: Cargo, outcomes: list[Outcome], *, dry_run: bool) -> dict[str, Any]:
    return {
        "bundle": cargo.manifest.name, "version": cargo.manifest.version,
        "manifest_sha256": cargo.manifest_sha256, "dry_run": dry_run,
        "targets": [_target_json(outcome) for outcome in outcomes],
    }  # fmt: skip


def _target_json(outcome: Outcome) -> dict[str, Any]:
    from bundler.deploy.sticks import worst

    ground, survey, probe = outcome.ground, outcome.survey, outcome.probe
    return {
        "target": str(outcome.target), "place": str(outcome.place or ""), "state": outcome.state,
        "filesystem": ground.kind if ground else "", "device": ground.device if ground else "",
        "removable": ground.removable if ground else None,
        "free_bytes": ground.free_bytes if ground else None,
        "to_write_bytes": survey.write_bytes if survey else None,
        "to_write": [t.file.path for t in survey.tasks] if survey else [],
        "kept_bytes": survey.kept_bytes if survey else None,
        "written_bytes": outcome.written_bytes, "seconds": round(outcome.seconds, 3),
        "leftovers": [left.path for left in survey.leftovers] if survey else [],
        "foreign": list(survey.foreign) if survey else [],
        "deleted": list(outcome.deleted), "mended": list(outcome.mended),
        "probe": str(probe) if probe else "",
        "compared": _evidence_json(outcome, outcome.compared),
        "read_back": _evidence_json(outcome, outcome.read_back),
        "device_was_read": outcome.device_was_read(),
        "exit_code": worst([outcome]),
        "problems": [str(p) for error in outcome.errors for p in error.problems],
    }  # fmt: skip


def _evidence_json(outcome: Outcome, evidence: Evidence) -> dict[str, Any]:
    from bundler.deploy.evidence import doubts, proofs

    return {
        "read_bytes": evidence.read_bytes, "forgotten_bytes": evidence.forgotten_bytes,
        "direct_bytes": evidence.direct_bytes, "device_bytes": evidence.device_bytes,
        "proven": proofs(evidence),
        "not_proven": doubts(evidence, outcome.ground) if outcome.ground else [],
    }  # fmt: skip


def _show(screen: Screen, outcomes: list[Outcome]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stick", overflow="fold")
    for name in ("state", "written", "there already", "read back"):
        table.add_column(name)
    for outcome in outcomes:
        table.add_row(*map(escape, _row(outcome)))
    screen.show(table)
    for outcome in outcomes:
        for line in _words(outcome):
            screen.say(f"[dim]{escape(line)}[/]")


def _row(outcome: Outcome) -> tuple[str, ...]:
    from bundler.value import format_size

    survey = outcome.survey
    to_write = survey.write_bytes if survey else 0
    planned = outcome.state == "planned"
    return (
        str(outcome.place or outcome.target),
        {"planned": "would be copied", "unchanged": "is there, whole"}.get(
            outcome.state, outcome.state
        ),
        f"{format_size(to_write)} to write" if planned else format_size(outcome.written_bytes),
        format_size(survey.kept_bytes) if survey else "",
        format_size(outcome.read_back.read_bytes),
    )


def _words(outcome: Outcome) -> list[str]:
    """Return what was and was not proven of one stick."""
    from bundler.deploy.checks import ALL_NAMED, named
    from bundler.deploy.evidence import doubts, proofs

    lines = []
    if outcome.state == "planned" and outcome.survey is not None:
        lines += [f"would write {task.file.path}" for task in outcome.survey.tasks[:ALL_NAMED]]
        lines += [f"--delete would remove {left.path}" for left in outcome.survey.leftovers]
    if outcome.deleted:
        lines.append(f"deleted: {named(outcome.deleted)}")
    if outcome.mended:
        lines.append(f"came back wrong once and was written again: {named(outcome.mended)}")
    if outcome.ground is None or outcome.state not in ("copied", "unchanged"):
        return lines
    for word, evidence in (("there already", outcome.compared), ("read back", outcome.read_back)):
        lines += [f"{word}: {proof}" for proof in proofs(evidence)]
        lines += [f"{word}: not proven: {doubt}" for doubt in doubts(evidence, outcome.ground)]
    if any("not proven" in line for line in lines):
        lines.append("to be sure: take it out, plug it in again, and run `bundler verify` on it")
    return lines
