"""`python -m bundler.station --bundle DIR`: start the station and open its page."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import webbrowser
from pathlib import Path
from threading import Thread

from bundler.station.configuration import Bundle, read_bundle, this_platform
from bundler.station.problems import StationError

DEFAULT_PORT = 8765


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code (0 ended, 2 usage or a bundle that cannot start)."""
    options = _parser().parse_args(arguments)
    try:
        bundle = read_bundle(options.bundle)
        return run(bundle, options)
    except StationError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        if error.hint:
            _say(f"\nhint: {error.hint}")
        return 2
    except KeyboardInterrupt:
        return 130


def run(bundle: Bundle, options: argparse.Namespace) -> int:
    """Serve a bundle until ended; open the running station instead if there is one."""
    from bundler.station.serving import Listen, Station, already_running, serve
    from bundler.station.status import instance_of

    listen = Listen(options.listen, options.port, _token(options))
    if (
        options.port
        and not listen.beyond_this_machine
        and already_running(options.port, instance_of(bundle))
    ):
        url = f"http://127.0.0.1:{options.port}/"
        print(f"{bundle.title} is already open at {url}", flush=True)  # noqa: T201
        _open(url, options.no_browser)
        return 0

    def announce(url: str, station: Station) -> None:
        print(f"{bundle.title} is open at {url}  (Ctrl-C ends it)", flush=True)  # noqa: T201
        if listen.beyond_this_machine:
            _say(
                f"warning: other computers can reach this station at {listen.address}. They need "
                "the token. What is sent is not encrypted: use it in a network you trust."
            )
        _open(url + (f"sign-in#token={listen.token}" if listen.token else ""), options.no_browser)

    asyncio.run(serve(bundle, listen, options.platform, announce))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="station", description="Ask, search and read a bundle. Nothing leaves this computer."
    )
    parser.add_argument("--bundle", type=Path, default=Path.cwd(), help="the bundle's folder")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="0 for any free one")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="ADDRESS",
        help="let other computers in at this address (needs --token)",
    )  # fmt: skip
    parser.add_argument("--token", default="", help="what other computers must know (12 or more)")
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
