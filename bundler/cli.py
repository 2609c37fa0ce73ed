"""Words on the command line → one call → an exit code. Errors are caught here and nowhere else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, Protocol, runtime_checkable

import typer
from typer.exceptions import TyperException

import bundler
from bundler import (
    command_order,
    deploy_commands,
    inspect_commands,
    key_commands,
    machine_commands,
    packing_commands,
    repair_commands,
    update_commands,
)
from bundler.errors import BundlerError, RecipeError, StepFailed, of_the_system
from bundler.starting import asked_for

app = typer.Typer(
    name="bundler",
    help="Build offline AI bundles: models, knowledge and everything needed to run them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(key_commands.app, name="key")
app.command()(repair_commands.repair)
app.command()(deploy_commands.deploy)
app.command()(machine_commands.targets)
app.command()(machine_commands.doctor)
app.command()(inspect_commands.inspect)
packing_commands.add_to(app)
update_commands.add_to(app)

# As huggingface_hub reads its own switches.
_TRUE = frozenset({"1", "on", "yes", "true"})

Recipe = Annotated[Path, typer.Argument(help="The recipe, a TOML file.", metavar="RECIPE")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Directory to make. [default: dist/<name>]"),
]
StoreDir = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Where bytes rest between builds.", envvar="BUNDLER_STORE",
        show_default="the user's cache directory",
    ),
]  # fmt: skip
ProgressMode = Annotated[
    Literal["auto", "tty", "plain", "quiet", "json"],
    typer.Option("--progress", help="How to show what is going on.", envvar="BUNDLER_PROGRESS"),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Open no connection.", envvar="BUNDLER_OFFLINE")
]
Locked = Annotated[
    bool,
    typer.Option("--locked", help="Fail when there is no lock or it is stale.",
                 envvar="BUNDLER_LOCKED"),
]  # fmt: skip
Frozen = Annotated[
    bool,
    typer.Option("--frozen", help="Use the lock without comparing it to local files.",
                 envvar="BUNDLER_FROZEN"),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout.")]
Explain = Annotated[
    bool, typer.Option("--explain", help="Say why, what more would buy, and what to give up.")
]
FrontierFile = Annotated[
    Path | None,
    typer.Option(
        "--frontier",
        help="Draw quality against memory against context, as SVG.",
        metavar="FILE.svg",
    ),
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, max=64, help="Files fetched at the same time.")
]
Limit = Annotated[
    str | None,
    typer.Option("--limit-rate", help="Cap on all transfers together, as '5 MB' (per second)."),
]


def main() -> None:
    """Run the command line: what `bundler.__main__` calls."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        # typer answers Ctrl-C with 130 and an explicit Exit with its code.
        code = asked_for(app, sys.argv[1:])(standalone_mode=False) or 0
        if code == 130:
            _say_interrupted()
    except BundlerError as error:
        code = _show(error, debug)
    except TyperException as error:
        error.show() if isinstance(error, _Showable) else typer.echo(str(error), err=True)
        code = error.exit_code
    except (OSError, MemoryError) as error:
        code = _show(of_the_system(error), debug)
    except Exception as error:  # noqa: BLE001 - the last catcher: no traceback is for users
        code = _show(_bug(error), debug)
    sys.stdout.flush()
    raise SystemExit(code)


@runtime_checkable
class _Showable(Protocol):
    def show(self) -> None: ...


def _terminate(number: int, frame: FrameType | None) -> None:
    """Answer SIGTERM: put everything away as for Ctrl-C. A second one ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _say_interrupted() -> None:
    from bundler.console import Screen

    Screen("plain").err.print("stopped; run the same command again to go on from here")


def _bug(error: Exception) -> StepFailed:
    broken = StepFailed(
        f"{type(error).__name__}: {error}",
        hint="this is a fault of bundler: please report it with the output of `--debug`",
    )
    broken.__cause__ = error
    return broken


def _show(error: BundlerError, debug: bool) -> int:
    from bundler.console import Screen

    if debug:
        import traceback

        traceback.print_exception(error)
    given = _option("--progress") or [os.environ.get("BUNDLER_PROGRESS", "")]
    Screen("json" if given[-1] == "json" else "plain").error(error)
    return error.exit_code


def _option(name: str) -> list[str]:
    """Return what was given for an option on the command line, before anything is parsed."""
    words = sys.argv[1:]
    return [b for a, b in pairwise(words) if a == name] + [
        word.partition("=")[2] for word in words if word.startswith(f"{name}=")
    ]


@contextmanager
def _world(
    recipe: Path | None, store: Path | None, progress: str, *, offline: bool = False,
    jobs: int = 4, limit_rate: str | None = None,
) -> Iterator[tuple]:  # type: ignore[type-arg]  # fmt: skip
    """Give (screen, world, plugins) for one command."""
    from bundler.console import Screen
    from bundler.plugins import load_plugins
    from bundler.store import Store
    from bundler.value import parse_bytes
    from bundler.world import World

    try:
        cap = parse_bytes(limit_rate.removesuffix("/s")) if limit_rate else None
    except ValueError as error:
        raise RecipeError(f"--limit-rate: {error}") from error
    with Screen(progress) as screen, _places(recipe):  # type: ignore[arg-type]
        yield (
            screen,
            World(
                store=Store(machine_commands.store_folder(store)),
                environment=dict(os.environ),
                report=screen.report,
                offline=offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE,
                folder=recipe.parent if recipe is not None else Path.cwd(),
                bandwidth_bytes_per_second=cap,
                parallel_transfers=jobs,
            ),
            load_plugins(),
        )


@contextmanager
def _places(recipe: Path | None) -> Iterator[None]:
    """Give problems of the block that name a key of the recipe their line and column in it."""
    try:
        yield
    except BundlerError as error:
        if recipe is None:
            raise
        from bundler.recipe_places import placed

        raise placed(error, recipe) from error.__cause__


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"bundler {bundler.__version__}")
        raise typer.Exit


@app.command()
def build(
    recipe: Recipe, output: Output = None, locked: Locked = False, frozen: Frozen = False,
    offline: Offline = False, store: StoreDir = None, progress: ProgressMode = "auto",
    as_json: AsJson = False, jobs: Jobs = 4, limit_rate: Limit = None,
    keys: key_commands.KeysFolder = None,
    share: Annotated[
        bool, typer.Option("--share", help="Refuse what may not be passed on to others.")
    ] = False,
) -> None:  # fmt: skip
    """Do the main job: a recipe in, a bundle that runs with no network out."""
    from bundler import pipeline, results
    from bundler.recipe_file import read_recipe

    with _world(recipe, store, progress, offline=offline, jobs=jobs, limit_rate=limit_rate) as (
        screen,
        world,
        plugins,
    ):
        target = output or Path("dist") / read_recipe(recipe).bundle.name
        sign = key_commands.signer(key_commands.keys_folder(keys))
        built = pipeline.build(
            recipe, target, plugins, world, locked=locked, frozen=frozen, sign=sign, share=share
        )
    signed = sign is not None
    if as_json or screen.mode == "json":
        screen.json(results.built_json(built, signed=signed))
    else:
        results.show_built(screen, built, signed=signed)


@app.command()
def plan(
    recipe: Recipe, locked: Locked = False, frozen: Frozen = False, offline: Offline = False,
    store: StoreDir = None, progress: ProgressMode = "auto", as_json: AsJson = False,
    explain: Explain = False, frontier: FrontierFile = None,
) -> None:  # fmt: skip
    """Show what would be built and why, whether it fits, and what will be fetched."""
    from bundler import locking
    from bundler.advice.advised import NothingFits, plan_with_advice
    from bundler.drawing import plan_view
    from bundler.recipe_file import read_recipe

    if frontier is not None:
        plan_view.check_drawing(frontier)
    with _world(recipe, store, progress, offline=offline) as (screen, world, plugins):
        wanted = read_recipe(recipe)
        lock = locking.ensure_lock(recipe, wanted, plugins, world, locked=locked, frozen=frozen)
        for_program = as_json or screen.mode == "json"
        try:
            made = plan_with_advice(wanted, lock, plugins)
        except NothingFits as error:
            if for_program:
                screen.json(plan_view.shortfall_json(error))
            raise
        why = None
        if explain or for_program:
            from bundler.advice.asking import explanation_of

            why = explanation_of(wanted, lock, plugins)
        if frontier is not None:
            from bundler.advice.asking import frontiers_of

            plan_view.write_frontier(frontier, frontiers_of(made, wanted, lock, plugins), made)
            screen.err.print(f"drawn: {frontier}", markup=False)
    cached, download = locking.to_fetch(made, lock, plugins, world)
    if for_program:
        screen.json({
            **made.model_dump(mode="json"), "cached_bytes": cached, "download_bytes": download,
            "explanation": why.model_dump(mode="json") if why else None,
        })  # fmt: skip
    else:
        plan_view.show_plan(screen, made, cached, download, explanation=why, recipe=str(recipe))


@app.command()
def lock(
    recipe: Recipe,
    check: Annotated[bool, typer.Option("--check", help="Only tell whether it is stale.")] = False,
    offline: Offline = False,
    store: StoreDir = None, progress: ProgressMode = "auto",
) -> None:  # fmt: skip
    """Turn every name in a recipe into revisions, sizes and digests, beside the recipe."""
    from bundler import locking
    from bundler.recipe_file import read_recipe

    with _world(recipe, store, progress, offline=offline) as (screen, world, plugins):
        wanted = read_recipe(recipe)
        if check:
            locking.ensure_lock(recipe, wanted, plugins, world, locked=True)
            screen.err.print("the lock fits the recipe")
        else:
            locking.make_lock(recipe, wanted, plugins, world)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", metavar="BUNDLE")],
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Look for accidents only; trust nobody.")
    ] = False,
    allow_older: Annotated[
        bool,
        typer.Option("--allow-older", help="Accept a bundle older than one that was seen here."),
    ] = False,
    proofs: Annotated[
        bool, typer.Option("--proofs", help="Run its models again: do they do what is recorded?")
    ] = False,
    keys: key_commands.KeysFolder = None,
    progress: ProgressMode = "auto", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say who made a bundle, and read every byte of it: what is missing, extra or changed."""
    from bundler import results
    from bundler.console import Screen
    from bundler.errors import DamagedError
    from bundler.events import Progress
    from bundler.verify import verify_bundle

    with Screen(progress) as screen:
        found = verify_bundle(
            bundle,
            workers=min(4, os.cpu_count() or 1),
            progress=lambda done, total: screen.report(Progress("verify", done, total)),
        )
    if as_json or screen.mode == "json":
        screen.json(results.findings_json(found))
    if found.findings:
        raise DamagedError(results.finding_problems(bundle, found))
    read = (found.manifest, found.manifest_data)
    signed_by = "" if unsigned else key_commands.signed_by(
        bundle, keys, allow_older=allow_older, read=read
    )  # fmt: skip
    if not as_json:
        results.show_whole(screen, found, signed_by)
    if proofs:
        results.recheck(screen, bundle, found.manifest)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", metavar="BUNDLE")],
    port: Annotated[int, typer.Option(help="Port of the page; 0 for any.")] = 8765,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    tier: Annotated[str, typer.Option(help="Which of the bundle's sets of models to use.")] = "",
) -> None:
    """Start a bundle's station with this Python, as `./start` does with the bundle's own."""
    from bundler.station.__main__ import main as station
    from bundler.verify import read_manifest

    read_manifest(bundle)
    words = ["--bundle", str(bundle), "--port", str(port), *(["--tier", tier] if tier else [])]
    raise typer.Exit(station(words if browser else [*words, "--no-browser"]))


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List what is installed: sources, engines, corpora, runtimes, and who brought them."""
    from rich.table import Table

    from bundler.console import Screen
    from bundler.plugins import load_plugins

    screen, found = Screen("plain"), load_plugins()
    rows = [
        (*label.partition(":")[::2], origin)
        for label, origin in sorted(found.origins.items())
        if not label.startswith("target:")
    ]
    if as_json:
        screen.json([{"kind": kind, "name": name, "from": origin} for kind, name, origin in rows])
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("kind", "name", "from"):
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    screen.show(table)
    screen.say(f"[dim]and {len(found.targets)} targets: see `bundler targets`[/]")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors: `bundler schema > recipe.schema.json`."""
    from bundler.console import Screen
    from bundler.recipe_schema import recipe_schema
    from bundler.value import pretty_json

    Screen("plain").data(pretty_json(recipe_schema()))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("recipe.toml"),
    target: Annotated[str, typer.Option(help="A name from `bundler targets`.")] = "cpu-16gb",
) -> None:
    """Write a small recipe to start from."""
    from bundler.console import Screen
    from bundler.errors import UnsafeInput
    from bundler.planning.targeting import choose_target
    from bundler.plugins import load_plugins
    from bundler.recipe import TargetRequest
    from bundler.recipe_file import starter_recipe

    choose_target(TargetRequest(use=target), load_plugins().targets)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(starter_recipe(path.stem, target))
    except FileExistsError as error:
        hint = "give another name, or remove it yourself"
        raise UnsafeInput(
            "is there already, not overwritten", where=str(path), hint=hint
        ) from error
    Screen("plain").say(f"wrote {path}; next: bundler plan {path}")


command_order.in_order(app)
