"""The commands about machines: `bundler targets` lists and measures them, `bundler doctor` checks
this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bundler

if TYPE_CHECKING:
    from bundler.console import Screen
    from bundler.doctor.findings import Finding
    from bundler.doctor.software import EngineAnswers
    from bundler.hardware import Target
    from bundler.machine.values import Machine
    from bundler.manifest import Manifest
    from bundler.plugins import Plugins

AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout.")]
StoreDir = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Where bytes rest between builds.", envvar="BUNDLER_STORE",
        show_default="the user's cache directory",
    ),
]  # fmt: skip


def store_folder(given: Path | None) -> Path:
    """Return the store's folder: the one given, or the user's own."""
    if given is not None:
        return given
    import platformdirs

    return Path(platformdirs.user_cache_dir("bundler"))


# -- targets ---------------------------------------------------------------------------------------


def targets(
    name: Annotated[
        str | None, typer.Argument(help="Show one of them with the source of every figure.")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Measure this machine and write a [target] table.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write that table to a new file.")
    ] = None,
    store: StoreDir = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List the machines a recipe can name, with what they can really give; or measure this one."""
    from bundler.console import Screen
    from bundler.errors import RecipeError
    from bundler.planning.targeting import choose_target
    from bundler.plugins import load_plugins
    from bundler.recipe import TargetRequest

    screen, plugins = Screen("plain"), load_plugins()
    if (here and name) or (output and not here):
        raise RecipeError("give a NAME, or --here with or without --output")
    if here:
        _measure(screen, plugins, store_folder(store), output, as_json=as_json)
    elif name is not None:
        _show_one(screen, choose_target(TargetRequest(use=name), plugins.targets), as_json=as_json)
    elif as_json:
        screen.json([target.model_dump(mode="json") for target in plugins.targets.values()])
    else:
        _show_all(screen, list(plugins.targets.values()))


def _measure(
    screen: Screen, plugins: Plugins, store: Path, output: Path | None, *, as_json: bool
) -> None:
    """Measure this machine; write the table to stdout, or to a file that is not there yet."""
    from bundler.errors import UnsafeInput
    from bundler.machine.as_target import target_lines, target_toml
    from bundler.machine.disk import large_file

    there = UnsafeInput(
        "is there already, not overwritten", where=str(output),
        hint="give another name, or remove it yourself",
    )  # fmt: skip
    if output is not None and output.exists():
        raise there
    machine, _ = _look(plugins, store, sample=large_file(store))
    text = target_toml(machine, datetime.now(UTC).date().isoformat(), bundler.__version__)
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError as error:
            raise there from error
    if as_json:
        table = {line.key: line.value for line in target_lines(machine)}
        screen.json({"target": table, "machine": machine.model_dump(mode="json")})
    elif output is None:
        screen.data(text)
    else:
        screen.say(f"wrote {output}; paste its table into a recipe")


def _look(
    plugins: Plugins, disk: Path | None, *, sample: Path | None = None
) -> tuple[Machine, EngineAnswers]:
    """Look at this machine and at what engines say of it."""
    from bundler.doctor.software import ask_engines
    from bundler.errors import BundlerError
    from bundler.machine.look import look

    answers = ask_engines(plugins, dict(os.environ))
    told = [answer for answer in answers.values() if not isinstance(answer, BundlerError)]
    return look(disk, engines=told, sample=sample), answers


def _show_all(screen: Screen, found: Sequence[Target]) -> None:
    from rich.table import Table

    from bundler.value import format_bytes

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("name", "machine"):
        table.add_column(name)
    for name in ("usable VRAM", "RAM", "GB/s"):
        table.add_column(name, justify="right")
    for target in found:
        vram = format_bytes(target.usable_vram_bytes) if target.accelerator != "none" else "–"
        speed = f"{target.memory_bandwidth_bytes_per_second / 1e9:.0f}"
        table.add_row(target.name, target.title, vram, format_bytes(target.ram_bytes), speed)
    screen.show(table)
    screen.say("[dim]where a figure comes from: bundler targets NAME; this machine: --here[/]")


def _show_one(screen: Screen, target: Target, *, as_json: bool) -> None:
    """Show every figure of a target with its source."""
    from rich.markup import escape

    if as_json:
        screen.json(target)
        return
    screen.say(f"[bold]{escape(target.title)}[/]  [dim]{escape(target.source)}[/]")
    rows = [*_figures(target), ("processor", target.cpu_level, target.sources.get("cpu_level", ""))]
    for word, figure, source in rows:
        screen.say(f"{word:21}  {figure:>10}  [dim]{escape(source)}[/]")
    screen.say(f"{'platforms':21}  {', '.join(target.platforms)}")


def _figures(target: Target) -> Iterator[tuple[str, str, str]]:
    """Yield every figure that is known with its name and its source."""
    from bundler.value import format_bytes

    for field, figure in target.model_dump().items():
        if not figure or not field.endswith(("_bytes", "_bytes_per_second")):
            continue
        word = field.removesuffix("_per_second").removesuffix("_bytes").replace("_", " ")
        is_rate = field.endswith("_per_second")
        amount = f"{figure / 1e9:.4g} GB/s" if is_rate else format_bytes(figure)
        yield word, amount, target.sources.get(field, "")


# -- doctor ----------------------------------------------------------------------------------------


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="Hold this recipe's plan against the machine.",
                                    metavar="[RECIPE]"),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Tell whether this bundle can be served here."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory to make. [default: dist/<name>]"),
    ] = None,
    store: StoreDir = None,
    online: Annotated[
        bool, typer.Option("--online", help="Also ask every source of the recipe for one byte."),
    ] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Tell what this machine can build, verify and serve, and what to do where it cannot."""
    from bundler.console import Screen
    from bundler.doctor.findings import exit_code
    from bundler.errors import RecipeError

    if online and recipe is None:
        raise RecipeError("--online asks the sources of a recipe: give one")
    screen = Screen("plain")
    found = list(_findings(recipe, bundle, output, store_folder(store), online=online))
    code = exit_code(found)
    if as_json:
        findings = [finding.model_dump(mode="json") for finding in found]
        screen.json({"findings": findings, "exit_code": code})
    else:
        show_findings(screen, found)
    raise typer.Exit(code)


def _findings(
    recipe: Path | None, bundle: Path | None, output: Path | None, store: Path, *, online: bool
) -> Iterator[Finding]:
    """Look at everything that was asked about, in the order in which it is shown."""
    from bundler.doctor.machine_findings import machine_findings
    from bundler.doctor.recipes import recipe_findings
    from bundler.doctor.serving import serving
    from bundler.doctor.software import software
    from bundler.machine.disk import large_file
    from bundler.plugins import load_plugins
    from bundler.verify import read_manifest

    plugins = load_plugins()
    manifest = read_manifest(bundle) if bundle is not None else None
    # Nothing is written into a bundle, not even to measure.
    disk, sample = (store, large_file(store)) if bundle is None else (None, None)
    if bundle is not None and manifest is not None:
        sample = _large_bundled_file(bundle, manifest)
    machine, answers = _look(plugins, disk, sample=sample)
    yield from machine_findings(machine)
    if bundle is None or recipe is not None:
        yield from software(answers, machine.cards)
        yield from recipe_findings(
            recipe, output, store, plugins, machine, answers, online=online,
            environment=dict(os.environ),
        )  # fmt: skip
    if manifest is not None and bundle is not None:
        yield from serving(manifest, bundle, machine, plugins.runtimes)


def _large_bundled_file(bundle: Path, manifest: Manifest) -> Path | None:
    """Return a file of a bundle that is large enough to measure its disk with."""
    from bundler.machine.disk import LARGE_FILE_BYTES

    sizes = {bundle / file.path: file.size_bytes for file in manifest.files}
    for path in sorted(sizes, key=lambda one: (-sizes[one], one)):
        if sizes[path] < LARGE_FILE_BYTES:
            return None
        if path.is_file() and not path.is_symlink():
            return path
    return None


_MARKS = {
    "good": "[green]✓[/]", "note": "[dim]·[/]", "warning": "[yellow]![/]", "missing": "[red]✗[/]",
}  # fmt: skip
_TITLES = {
    "machine": "This machine", "software": "Software", "build": "Disks", "recipe": "The recipe",
    "bundle": "The bundle", "network": "Network",
}  # fmt: skip


def show_findings(screen: Screen, found: Sequence[Finding]) -> None:
    """Show findings in sections, each remedy under what it cures, and the sum of it all."""
    from rich.markup import escape

    width = max((len(finding.name) for finding in found), default=0)
    topic = ""
    for finding in found:
        if finding.topic != topic:
            screen.say(f"{'' if not topic else chr(10)}[bold]{_TITLES[finding.topic]}[/]")
            topic = finding.topic
        screen.say(
            f"{_MARKS[finding.state]} {escape(finding.name):{width}}  {escape(finding.said)}"
        )
        if finding.remedy:
            screen.say(f"  {'':{width}}  [dim]→[/] {escape(finding.remedy)}")
    missing = sum(finding.state == "missing" for finding in found)
    warnings = sum(finding.state == "warning" for finding in found)
    screen.say()
    screen.say(_summary(missing, warnings))


def _summary(missing: int, warnings: int) -> str:
    def count(number: int, word: str) -> str:
        return f"{number} {word}" + ("" if number == 1 else "s")

    if missing:
        more = f", and {count(warnings, 'warning')}" if warnings else ""
        return f"[red]{count(missing, 'need')} cannot be met[/]{more}"
    if warnings:
        return f"[yellow]{count(warnings, 'warning')}[/]; nothing is missing"
    return "[green]all is well[/]"
