"""What commands say when they are done: a build's last lines, and what verifying found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from bundler.console import Screen
from bundler.errors import Problem
from bundler.events import Progress
from bundler.manifest import UPDATE_NAME, Manifest
from bundler.pipeline import Built
from bundler.value import format_size
from bundler.verify import Finding, Verification


def built_json(built: Built, *, signed: bool) -> dict[str, Any]:
    """Return what a program is told of a build."""
    proofs = {
        f"{name}@{tier}" if tier else name: proof.model_dump(mode="json")
        for (name, tier), proof in built.proofs.items()
    }
    return {
        "output": str(built.output), "manifest_sha256": built.manifest_sha256,
        "proofs": proofs, "signed": signed, "warnings": list(built.warnings),
    }  # fmt: skip


def show_built(screen: Screen, built: Built, *, signed: bool) -> None:
    """Say where the bundle is and what to do next; what its reader should know stands last."""
    output = escape(str(built.output))
    screen.say(f"[bold green]{output}[/] is ready  [dim]{built.manifest_sha256[:16]}[/]")
    screen.say(f"[dim]start it: {output}/start   what was measured: {output}/report.html[/]")
    if not signed:
        screen.say("[dim]it is not signed; to sign what you build: bundler key new[/]")
    for warning in built.warnings:
        screen.say(f"[yellow]note:[/] {escape(warning)}")


def findings_json(found: Verification) -> dict[str, Any]:
    """Return what a program is told of a bundle that was read."""
    return {
        "bundle": found.manifest.name, "version": found.manifest.version,
        "manifest_sha256": found.manifest_sha256, "files": found.files,
        "size_bytes": found.size_bytes,
        "findings": [{"path": f.path, "kind": f.kind, "detail": f.detail, "ranges": f.ranges}
                     for f in found.findings],
    }  # fmt: skip


def finding_problems(bundle: Path, found: Verification) -> list[Problem]:
    """Return how much is wrong, then each finding: the bundle is named once, each remedy too."""
    foreign = "what is not of this bundle: remove it, or move it elsewhere"
    if any(finding.path == UPDATE_NAME for finding in found.findings):
        foreign = "run the same update again to finish it, or remove what was begun"
    repair = f"what can be brought back: bundler repair {bundle}"
    own = [finding for finding in found.findings if finding.kind != "extra"]
    others = [finding for finding in found.findings if finding.kind == "extra"]
    said = Problem(_how_much(found, own, others), str(bundle), repair if own else foreign)
    return [
        said,
        *(Problem(str(finding), hint=repair) for finding in own),
        *(Problem(str(finding), hint=foreign) for finding in others),
    ]


def _how_much(found: Verification, own: Sequence[Finding], others: Sequence[Finding]) -> str:
    parts = [f"{len(own)} of {found.files:,} files are not as the manifest says"] if own else []
    if others:
        parts.append(
            f"{len(others)} files are not of it" if len(others) > 1 else "one is not of it"
        )
    return f"{found.manifest.name} {found.manifest.version}: {'; '.join(parts)}"


def show_whole(screen: Screen, found: Verification, signed_by: str) -> None:
    """Say that every file is right, and who speaks for the bundle."""
    screen.say(
        f"{escape(found.manifest.name)} {escape(found.manifest.version)}: all {found.files:,} files "
        f"({format_size(found.size_bytes)}) are as the manifest says"
    )
    screen.say(signed_by or "[dim]this finds accidents; it does not tell who made the bundle[/]")


def recheck(screen: Screen, root: Path, manifest: Manifest) -> None:
    """Run a bundle's models again, hold them against their proofs, and say what was found."""
    from bundler.plugins import load_plugins
    from bundler.rechecking import recheck_models

    def tell(done: float, total: float | None, _unit: str = "tokens") -> None:
        screen.report(Progress("proofs", done, total, "tokens"))

    with screen:
        found, without = recheck_models(root, manifest, load_plugins(), tell)
    if screen.mode == "json":
        screen.json({"proofs": [one.model_dump(mode="json") for one in found]})
        return
    for one in found:
        screen.say(
            f"{escape(one.model)}: as its proof says; at {one.positions} places it diverges from the "
            f"unquantized model by at least {one.found:.5f} nats (then {one.expected:.5f}; "
            f"{one.spread:.5f} apart on average, {one.allowed:.5f} is allowed)"
        )
    if without:
        screen.say(f"[dim]nothing to compare was recorded of {escape(', '.join(without))}[/]")
