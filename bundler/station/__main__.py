"""`python -m bundler.station --bundle DIR`: start the station and open its page."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import webbrowser
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from bundler.station.configuration import Bundle, read_bundle, this_platform
from bundler.station.problems import StationError
from bundler.station.start_command import START_COMMAND

if TYPE_CHECKING:
    from bundler.station.probe import Machine
    from bundler.station.tiers import Picked

DEFAULT_PORT = 8765


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code (0 ended, 2 usage or a bundle that cannot start)."""
    options = _parser().parse_args(arguments)
    try:
        bundle = read_bundle(options.bundle)
        if options.probe:
            return show_pick(bundle, options) if options.machine else show_machine(bundle, options)
        if options.machine:
            _machine(bundle, options)  # Wrong in a bundle for one kind of computer, too.
        return run(bundle, options)
    except StationError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        if error.hint:
            _say(f"hint: {error.hint}")
        return 2
    except KeyboardInterrupt:
        return 130


def run(bundle: Bundle, options: argparse.Namespace) -> int:
    """Serve a bundle until ended; open the running station instead if there is one."""
    from bundler.station.serving import Listen, Station, already_running, serve
    from bundler.station.status import instance_of

    wish = _wish(bundle, options)
    listen = Listen(options.listen, options.port, _token(options))
    if options.port and not listen.beyond_this_machine:
        running = already_running(options.port, instance_of(bundle))
        if running is not None:
            url = f"http://127.0.0.1:{options.port}/"
            _check_same_tier(wish, running, url)
            print(f"{bundle.title} is already open at {url}", flush=True)  # noqa: T201
            _open(url, options.no_browser)
            return 0
    if unfinished := bundle.unfinished():
        _say(f"warning: {unfinished}")
    picked = pick_tier(bundle, options, wish)
    if picked is not None:
        bundle = bundle.for_tier(picked.tier.name)

    def announce(url: str, station: Station) -> None:
        print(f"{bundle.title} is open at {url}  (Ctrl-C ends it)", flush=True)  # noqa: T201
        if listen.beyond_this_machine:
            _say(
                f"warning: other computers can reach this station at {listen.address}. They need "
                "the token. What is sent is not encrypted: use it in a network you trust."
            )
        _open(url + (f"sign-in#token={listen.token}" if listen.token else ""), options.no_browser)

    asyncio.run(serve(bundle, listen, options.platform, announce, picked))
    return 0


def pick_tier(bundle: Bundle, options: argparse.Namespace, wish: str) -> Picked | None:
    """Return which set of models this computer gets, and say so."""
    from bundler.station.tiers import pick

    if not bundle.tiers or not bundle.models:
        return None
    picked = pick(bundle.tiers, _machine(bundle, options), wish)
    if picked is None:
        return None
    if picked.line:
        others = [one.tier.name for one in picked.judged if one.tier is not picked.tier]
        print(f"{picked.line} {_sentence(picked.own.reason)}", flush=True)  # noqa: T201
        print(f"(--tier NAME takes another: {', '.join(others)})", flush=True)  # noqa: T201
    for note in picked.notes:
        _say(f"note: {note}")
    if picked.warning:
        _say(f"warning: {picked.warning}")
    return picked


def show_machine(bundle: Bundle, options: argparse.Namespace) -> int:
    """Print what this computer can give, as `--machine` reads it."""
    print(json.dumps(_machine(bundle, options).as_json(), indent=1))  # noqa: T201
    return 0


def show_pick(bundle: Bundle, options: argparse.Namespace) -> int:
    """Say which set of models a computer that is described in a file would get; start nothing."""
    machine = _machine(bundle, options)
    if pick_tier(bundle, options, _wish(bundle, options)) is None:
        free = machine.ram_bytes
        memory = "memory that nobody measured" if free is None else f"{free:,} bytes of free memory"
        print(f"A computer with {memory} gets the one set of models there is.", flush=True)  # noqa: T201
    return 0


def _machine(bundle: Bundle, options: argparse.Namespace) -> Machine:
    from bundler.station.probe import probe, read_machine

    return read_machine(options.machine) if options.machine else probe(bundle, options.platform)


def _wish(bundle: Bundle, options: argparse.Namespace) -> str:
    """Return the tier that was asked for; a bundle for one kind of computer leaves the variable be."""
    from bundler.station.tiers import named

    several = any(tier.name for tier in bundle.tiers)
    wish = str(options.tier or (os.environ.get("BUNDLER_TIER", "") if several else ""))
    return named(bundle.tiers, wish).name if wish else ""


def _check_same_tier(wish: str, running: dict[str, object], url: str) -> None:
    """Refuse to open a running station as if it had the set of models that is asked for."""
    tier = running.get("tier")
    now = tier.get("name") if isinstance(tier, dict) else ""
    if wish and wish != now:
        raise StationError(
            f"this bundle is already open at {url} with the models of {now or 'one set'!r}",
            hint=f"Close that station first, then start again with --tier {wish}.",
        )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=START_COMMAND,
        description="Ask, search and read a bundle. Nothing leaves this computer.",
        epilog=f"{START_COMMAND} check, {START_COMMAND} repair and {START_COMMAND} selftest look after "
        "the bundle itself: is it "
        "as it was made, bring back what is damaged, do its models and collections work here? Each has "
        "a --help of its own.",
    )
    parser.add_argument("--bundle", type=Path, default=Path.cwd(), help="the bundle's folder")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="0 for any free one")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="ADDRESS",
        help="let other computers in at this address (needs --token)",
    )  # fmt: skip
    parser.add_argument("--token", default="", help="what other computers must know (12 or more)")
    parser.add_argument(
        "--tier", default="", metavar="NAME",
        help="which set of models to use, in a bundle that has several (also: BUNDLER_TIER)",
    )  # fmt: skip
    parser.add_argument(
        "--probe", action="store_true", help="only print what this computer can give to models"
    )
    parser.add_argument(
        "--machine", type=Path, metavar="FILE",
        help="pick the set of models as the computer would that printed FILE with --probe; "
        "with --probe only say which",
    )  # fmt: skip
    parser.add_argument("--platform", default=this_platform(), help="whose programs to start")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _token(options: argparse.Namespace) -> str:
    token = str(options.token or os.environ.get("BUNDLER_STATION_TOKEN", ""))
    if options.listen != "127.0.0.1" and len(token) < 12:
        raise StationError(
            f"--listen {options.listen} lets other computers in, so it needs a token",
            hint="Add --token with at least 12 characters, and tell it to those who may come in.",
        )
    return token


def _open(url: str, no_browser: bool) -> None:
    headless = sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if not no_browser and not headless:
        # Some browsers' launchers do not return until the browser is closed.
        Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
