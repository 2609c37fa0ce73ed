"""`./start check` and `./start repair`: a bundle looks at itself and mends itself.

What a repair needs is imported before anything is read or written: it may replace these very files.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from random import SystemRandom
from typing import NoReturn

from bundler.errors import BundlerError, of_the_system
from bundler.events import Progress
from bundler.far_end.sampling import draw
from bundler.far_end.showing import Events, Lines
from bundler.far_end.telling import Told, checked, repaired
from bundler.far_end.vouching import vouched_for
from bundler.manifest import BESIDE
from bundler.media.copies import right_manifest
from bundler.station.start_command import START_COMMAND
from bundler.verify import refuse_unsafe, unsafe_findings, verify_against

Screen = Lines | Events


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}\nhint: {self.prog} --help says what there is\n")
        raise SystemExit(2)


def main(root: Path, words: list[str]) -> int:
    """Run a command on the bundle at `root`; return an exit code as everywhere (see `errors`)."""
    asked = _parser().parse_args(words)
    screen: Screen = Events() if asked.events else Lines()
    act = _check if asked.command == "check" else _repair
    try:
        told, code = act(root, asked, screen)
    except BundlerError as error:
        screen.failed(error)
        return error.exit_code
    except (OSError, MemoryError) as error:
        refused = of_the_system(error)
        screen.failed(refused)
        return refused.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command starts again\n")
        return 130
    screen.told(told)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=START_COMMAND, description="A bundle looks at itself, and mends itself.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="is everything as it was made? changes nothing")
    check.add_argument("--quick", action="store_true", help="only a sample: a minute at most")
    check.add_argument("--keys", type=Path, help="where this computer's trusted keys lie")
    repair = commands.add_parser("repair", help="bring back what is damaged or lost")
    repair.add_argument("--dry-run", action="store_true", help="only say what could be repaired")
    repair.add_argument("--scratch", type=Path, help="a folder for up to 1 GiB for a while")
    for one in (check, repair):
        one.add_argument("--events", action="store_true", help=argparse.SUPPRESS)
    return parser


def _check(root: Path, asked: argparse.Namespace, screen: Screen) -> tuple[Told, int]:
    refuse_unsafe(root, unsafe_findings(root), (*BESIDE, "parity"))
    believed = right_manifest(root)
    assert believed.manifest is not None
    sample = draw(believed.manifest, SystemRandom()) if asked.quick else None
    found = verify_against(
        root, believed, workers=min(4, os.cpu_count() or 1),
        progress=lambda done, total: screen.report(Progress("verify", done, total)),
        only=None if sample is None else sample.pieces,
    )  # fmt: skip
    vouched = vouched_for(root, believed, asked.keys)
    told = checked(found, sample, vouched, can_repair=can_write(root))
    unsafe = any(finding.kind == "unsafe" for finding in found.findings)
    return told, 8 if unsafe else 6 if found.findings else 0


def can_write(root: Path) -> bool:
    """Tell whether something can be repaired in this place, by trying."""
    try:
        with tempfile.TemporaryFile(dir=root):
            return True
    except OSError:
        return False


def _repair(root: Path, asked: argparse.Namespace, screen: Screen) -> tuple[Told, int]:
    from bundler.media import mending, par2, parity  # noqa: F401 - none may be read later
    from bundler.media.repair import repair_bundle

    par2.program_version()
    done = repair_bundle(
        root, dry_run=asked.dry_run, workers=min(4, os.cpu_count() or 1), scratch=asked.scratch,
        report=screen.report,
    )  # fmt: skip
    return repaired(done, dry_run=asked.dry_run), 6 if done.unrepaired else 0
