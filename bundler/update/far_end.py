"""Applies a delta where no bundler is installed: with the bundle's own Python and its own copy of this.

The bundle's programs may be among what is replaced while they run, so everything that is needed is
imported at the start.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import minisign  # noqa: F401 - others import it late, when its files may be gone

from bundler.errors import BundlerError, of_the_system
from bundler.events import Event, Progress
from bundler.media.keyring import trust as trust_key
from bundler.media.keys import read_ring, write_ring
from bundler.printable import printable
from bundler.update.applying import Trust, applied_in_words, apply_delta

_STEPS = {
    "check": "reading what the update brings",
    "build": "building what is new beside what is there",
    "verify": "reading the new version back",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}\nhint: sh update.sh BUNDLE; README.txt says more\n")
        raise SystemExit(2)


def main(words: list[str]) -> int:
    """Apply the delta in the first folder to the bundle in the second; return an exit code."""
    asked = _parser().parse_args(words)
    try:
        _apply(asked)
    except BundlerError as error:
        return _show(error)
    except (OSError, MemoryError) as error:
        return _show(of_the_system(error))
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="update.sh", description="Bring a bundle to its next version.")
    parser.add_argument("delta", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("bundle", type=Path, help="the folder of the bundle")
    parser.add_argument("--dry-run", action="store_true", help="look at everything, change nothing")
    parser.add_argument("--trust", metavar="KEY", help="believe this key from now on: RW…")
    parser.add_argument(
        "--same-maker", action="store_true", help="believe the maker of the bundle there, this once"
    )
    parser.add_argument("--unsigned", action="store_true", help="look for accidents only")
    parser.add_argument(
        "--allow-older", action="store_true", help="let an older version replace it"
    )
    parser.add_argument(
        "--keys", type=Path, default=os.environ.get("BUNDLER_KEYS") or None, help="where keys lie"
    )
    return parser


def _apply(asked: argparse.Namespace) -> None:
    folder = Path(asked.keys) if asked.keys else keys_folder()
    ring = read_ring(folder)
    if asked.trust:
        ring = trust_key(ring, asked.trust)
        if not asked.dry_run:
            write_ring(folder, ring)
    trust = Trust(
        ring, unsigned=asked.unsigned, same_maker=asked.same_maker, allow_older=asked.allow_older,
        learned=lambda told: write_ring(folder, told),
    )  # fmt: skip
    steps = _Steps()
    done = apply_delta(asked.delta, asked.bundle, trust, steps.report, dry_run=asked.dry_run)
    steps.end()
    if done.ring != ring and not asked.dry_run:
        write_ring(folder, done.ring)
    for line in applied_in_words(done, dry_run=asked.dry_run):
        sys.stdout.write(f"{printable(line)}\n")


def keys_folder() -> Path:
    """Return where this user's keys lie: the same place as for an installed bundler."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "bundler"
    base = os.environ.get("XDG_CONFIG_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".config") / "bundler"


class _Steps:
    """Says how far each step is, in one line that is written over on a terminal."""

    def __init__(self) -> None:
        self._step, self._percent = "", -1

    def report(self, event: Event) -> None:
        """Show one event."""
        if not isinstance(event, Progress):
            return
        percent = int(100 * event.done / event.total) if event.total else 100
        if event.step != self._step:
            self.end()
            self._step, self._percent = event.step, -1
            if not sys.stderr.isatty():
                sys.stderr.write(f"{_STEPS.get(event.step, event.step)}\n")
        if percent != self._percent and sys.stderr.isatty():
            sys.stderr.write(f"\r{_STEPS.get(event.step, event.step)}: {percent:3d} %")
            sys.stderr.flush()
        self._percent = percent

    def end(self) -> None:
        """Leave the line."""
        if self._step and sys.stderr.isatty():
            sys.stderr.write("\n")
        self._step = ""


def _show(error: BundlerError) -> int:
    for problem in error.problems:
        sys.stderr.write(f"error: {printable(str(problem))}\n")
        if problem.hint:
            sys.stderr.write(f"hint: {printable(said_here(problem.hint))}\n")
    return error.exit_code


def said_here(hint: str) -> str:
    """Return a hint with the commands that there are without bundler.

    >>> said_here("bundler repair /media/stick, then the same command again")
    '/media/stick/start repair, then the same command again'
    """
    hint = hint.replace("bundler key trust <key>", "sh update.sh BUNDLE --trust <key>")
    hint = re.sub(r"bundler repair ([^,;:]+)", r"\1/start repair", hint)
    return hint.replace("bundler verify)", "BUNDLE/start check)")
