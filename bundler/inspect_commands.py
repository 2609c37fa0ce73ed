"""The command `bundler inspect`: look inside a model before its bits are taken away."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from bundler.console import Screen
    from bundler.inspection import Inspection, Outliers
    from bundler.plugins import Plugins

_MANIFEST = "manifest.json"
_SHOWN = 12
_MOST_TEXT_BYTES = 64 << 20

ProgressMode = Annotated[
    Literal["auto", "tty", "plain", "quiet", "json"],
    typer.Option("--progress", help="How to show what is going on.", envvar="BUNDLER_PROGRESS"),
]


def inspect(
    model: Annotated[
        Path,
        typer.Argument(help="A GGUF file, a published model's folder, or a bundle.", metavar="MODEL"),
    ],
    outliers: Annotated[
        bool, typer.Option("--outliers", help="Outlier channels, massive activations, sinks.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="What it reads meanwhile.", show_default="a text we ship"),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=64, help="How much of it.")] = 4096,
    mitigate: Annotated[
        str,
        typer.Option("--mitigate", help="Look again after: scale, rotate or rotate+scale.",
                     metavar="WAY", show_default=False),
    ] = "",
    named: Annotated[
        str, typer.Option("--model", help="Which model of a bundle.", show_default=False)
    ] = "",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw it, as SVG.", metavar="FILE.svg")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", help="Folder for intermediate files.",
                     show_default="the system's"),
    ] = None,
    progress: ProgressMode = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Look inside a model while it reads: is there anything that few bits would spoil?"""
    from bundler.console import Screen
    from bundler.errors import RecipeError
    from bundler.plugins import load_plugins
    from bundler.store import write_durably

    if not outliers:
        raise RecipeError("say what to look for", hint=f"bundler inspect {model} --outliers")
    _check(model, text, plot)
    file, title = _file_of(model, named)
    with Screen(progress) as screen, tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = _ask(
            load_plugins(), file, text or _shipped(Path(folder)), title=title, tokens=tokens,
            mitigate=mitigate, scratch=Path(folder), progress=_teller(screen),
        )  # fmt: skip
    if plot is not None:
        from bundler.drawing.outliers_svg import outliers_svg

        write_durably(plot, outliers_svg(found).encode())
        screen.err.print(f"drawn: {plot}", markup=False)
    if as_json or screen.mode == "json":
        screen.json(found.model_dump(mode="json"))
    else:
        _show(screen, found)


def _check(model: Path, text: Path | None, plot: Path | None) -> None:
    """Refuse what cannot be, before anything long is begun; all problems at once."""
    from bundler.errors import Problem, RecipeError

    problems = []
    if not model.exists():
        problems.append(Problem("there is no such model", str(model), "give a file or a folder"))
    if text is not None and not text.is_file():
        problems.append(Problem("there is no such text", str(text), "give a UTF-8 text file"))
    elif text is not None and not text.stat().st_size:
        problems.append(Problem("the text is empty", str(text), "give some pages of text"))
    elif text is not None and text.stat().st_size > _MOST_TEXT_BYTES:
        problems.append(Problem("the text is too large", str(text), "64 MiB are more than enough"))
    if plot is not None and (plot.suffix.lower() != ".svg" or not plot.parent.is_dir()):
        problems.append(
            Problem("cannot be drawn there", str(plot), "give FILE.svg in a folder that is there")
        )
    if problems:
        raise RecipeError(problems)


def _file_of(model: Path, named: str) -> tuple[Path, str]:
    """Return the file or folder to look at, and what to call it."""
    if not (model.is_dir() and (model / _MANIFEST).is_file()):
        return model, model.resolve().name
    from bundler.errors import RecipeError
    from bundler.verify import read_manifest

    manifest = read_manifest(model)
    found = {entry.name: entry for entry in manifest.models}
    if not named and len(found) == 1:
        named = next(iter(found))
    if named not in found:
        raise RecipeError(
            f"there is no model {named!r} in it" if named else f"it holds {len(found)} models",
            where=str(model), hint=f"--model with one of: {', '.join(sorted(found))}",
        )  # fmt: skip
    if len(found[named].files) > 1:
        raise RecipeError(
            "this model lies there in shards", where=str(model / found[named].file),
            hint="inspect it as it was published, before it was cut",
        )  # fmt: skip
    return model / found[named].file, f"{manifest.name}/{named}"


def _shipped(folder: Path) -> Path:
    from importlib.resources import files

    path = folder / "calibration.txt"
    path.write_bytes((files("bundler") / "texts" / "calibration.txt").read_bytes())
    return path


def _teller(screen: Screen) -> Callable[..., None]:
    from bundler.events import Progress

    reached: dict[str, float] = {}

    def tell(done: float, total: float | None, unit: str) -> None:
        # Several jobs follow each other: each counts from the beginning.
        if unit in ("bytes", "tokens") and done > reached.get(unit, -1.0):
            reached[unit] = done
            screen.report(Progress("inspect", done, total, unit))  # type: ignore[arg-type]
        if total is not None and done >= total:
            reached.pop(unit, None)

    return tell


def _ask(plugins: Plugins, model: Path, text: Path, **given: Any) -> Inspection:
    """Ask the engines that can look inside a model."""
    from bundler.errors import PluginError

    for engine in plugins.engines.values():
        look = getattr(engine, "inspect_outliers", None)
        if look is not None:
            found: Inspection = look(model, text, environment=dict(os.environ), **given)
            return found
    raise PluginError(
        "no engine that is installed can look inside a model", hint="see `bundler plugins`"
    )


def _show(screen: Screen, found: Inspection) -> None:
    from rich.markup import escape

    screen.say(
        f"[bold]{escape(found.before.title)}[/]  [dim]{escape(found.before.architecture)}, "
        f"{found.before.tokens:,} tokens of {escape(found.text)}[/]"
    )
    _table(screen, found.before, found.after)
    if found.sameness is not None:
        screen.say(
            f"[dim]mitigated by {escape(found.way)}: in full precision a logit moved by "
            f"{found.sameness:.1e} of its row's spread at most[/]"
        )
    for sentence in found.meaning:
        screen.say(f"\n{escape(sentence)}")


def _table(screen: Screen, before: Outliers, after: Outliers | None) -> None:
    """Show the most uneven places; all of them are in the JSON."""
    from rich.table import Table

    later = {spread.place: spread for spread in after.spreads} if after else {}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("place", no_wrap=True)
    for name in ("worst:mid", *(("after",) if later else ()), "max:mid", "kurtosis", "> 6 σ",
                 "near 0", "channel"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(before.spreads, key=lambda spread: (-spread.channel_ratio, spread.place))
    for spread in ranked[:_SHOWN]:
        same = later.get(spread.place)
        after_words = [f"{same.channel_ratio:.1f}" if same else "–"] if later else []
        table.add_row(
            spread.place, f"{spread.channel_ratio:.1f}", *after_words, f"{spread.value_ratio:.0f}",
            f"{spread.kurtosis:.1f}", f"{spread.beyond_six_sigma:.3%}", f"{spread.near_zero:.1%}",
            str(spread.worst_channel),
        )  # fmt: skip
    screen.show(table)
    if len(ranked) > _SHOWN:
        screen.say(f"[dim]and {len(ranked) - _SHOWN} places that are more even: --json[/]")
