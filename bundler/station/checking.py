"""Checks, repairs and selftests that are asked for on the page: one at a time, and not in our way.

Checks and repairs are children: the very commands of the start script, telling how far they are as
lines of JSON. A child is its own process group, so that ending it ends its par2 as well. A repair
writes right bytes over wrong ones or puts a whole file in a file's place, so whatever the station
has open stays readable; it is told to start again afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from bundler.station import selftest
from bundler.station.configuration import Bundle, ModelEntry
from bundler.station.fleet import Fleet
from bundler.station.problems import StationError
from bundler.station.relay import Endpoint
from bundler.station.start_command import START_COMMAND

_MOST_WORDS = 1000
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "quick": ("check", "--quick"),
    "full": ("check",),
    "repair": ("repair",),
}
KINDS = (*COMMANDS, "selftest")
LONGEST_LINE_BYTES = 2**20
END_SECONDS = 5.0
_GUARDIAN = Path(__file__).with_name("guardian.py")
_KEPT_ERRORS = 2000


class Refused(Exception):
    """A job that cannot be started now; the text says why in plain words."""


@dataclass
class Job:
    """One check, repair or selftest, under way or ended."""

    what: str
    state: str = "running"
    """`running`, `done` or `cancelled`."""
    words: str = "It begins."
    share: float | None = None
    """How much is done, 0 to 1; None while unknown."""
    result: Mapping[str, Any] | None = None
    items: list[Mapping[str, Any]] = field(default_factory=list)
    """Of a selftest: what was found so far."""


class Checks:
    """What was asked for last, and whether it runs."""

    def __init__(self, bundle: Bundle, fleet: Fleet) -> None:
        self.bundle, self.fleet = bundle, fleet
        self.job: Job | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def program(self) -> Path:
        """Return what the start script runs."""
        return self.bundle.root / "app" / "main.py"

    def now(self) -> dict[str, Any]:
        """Say what runs, or what was found last."""
        if self.job is None:
            return {"state": "idle"}
        job = self.job
        return {
            "state": job.state, "what": job.what, "words": job.words, "share": job.share,
            "result": job.result, "items": job.items,
        }  # fmt: skip

    async def start(self, what: str, *, confirmed: bool) -> None:
        """Begin a job; returns at once.

        Raises Refused: one runs already, or it cannot be done here.
        """
        if what == "repair":
            if not confirmed:
                raise Refused("A repair writes to the drive, so it has to be confirmed.")
            if not await run_sync(is_writable, self.bundle.root):
                raise Refused(
                    "This drive cannot be written, so nothing can be repaired on it. Copy the "
                    "bundle to a disk, and repair the copy."
                )
        if what in COMMANDS and not self.program.is_file():
            raise Refused("This bundle carries no program that could check it.")
        if self._task is not None and not self._task.done():
            raise Refused("Something is running already. Wait for it, or stop it.")
        self.job = Job(what)
        self._task = asyncio.create_task(self._run(self.job), name=f"job {what}")

    async def cancel(self) -> None:
        """Stop what runs, and wait until it has ended."""
        if self._task is None or self._task.done():
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self, job: Job) -> None:
        try:
            await (self._selftest(job) if job.what == "selftest" else _child(job, self.program))
            job.state = "done"
        except asyncio.CancelledError:
            job.state, job.words = "cancelled", "It was stopped."
            raise
        except (OSError, StationError) as error:
            job.state, job.result = "done", _failed(str(error))
        except Exception as error:  # noqa: BLE001 - whatever a stick makes go wrong, the job has ended
            said = f"{type(error).__name__}: {error}"[:_MOST_WORDS]
            job.state, job.result = "done", _failed(said)

    async def _selftest(self, job: Job) -> None:
        wanted = max(1, len(self.bundle.models) + len(self.bundle.corpora))

        async def reach(entry: ModelEntry) -> Endpoint:
            job.words = f"Asking the model {entry.name}…"
            return await self.fleet.ready(self.fleet.servers[entry.name])

        def say(item: selftest.Item) -> None:
            job.items.append(selftest.as_json(item))
            job.share = len(job.items) / wanted

        items = await selftest.run(self.bundle, reach, say)
        wrong = [item.name for item in items if not item.passed]
        job.result = {
            "good": not wrong,
            "headline": f"Not as it should be: {', '.join(wrong)}." if wrong
            else "Everything works on this computer.",
            "lines": [f"{item.name}: {item.words}" for item in items],
            "next_step": "A full check says whether a file is damaged." if wrong else "",
        }  # fmt: skip


def is_writable(root: Path) -> bool:
    """Tell whether something can be written at the top of the bundle, by trying."""
    try:
        with tempfile.TemporaryFile(dir=root):
            return True
    except OSError:
        return False


async def _child(job: Job, program: Path) -> None:
    """Run a command of the start script and follow what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(_GUARDIAN),
        sys.executable, "-I", "-B", "-X", "utf8", str(program), *COMMANDS[job.what], "--events",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, limit=LONGEST_LINE_BYTES,
        start_new_session=sys.platform != "win32",
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_tail(process.stderr))
    try:
        async for line in process.stdout:
            _follow(job, line)
        await process.wait()
        if job.result is None:
            job.result = _failed((await errors) or f"It ended with code {process.returncode}.")
    finally:
        await _end(process)
        errors.cancel()


async def _tail(stream: asyncio.StreamReader) -> str:
    """Return the end of what a child complains; all of it is read, so that it never waits for us."""
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-_KEPT_ERRORS:]
    return kept.decode("utf-8", "replace").strip()


def _follow(job: Job, line: bytes) -> None:
    """Take one line of a child's: how far it is, or its result."""
    try:
        said = json.loads(line)
    except ValueError:
        return  # Not ours: a library's own word on standard output.
    if not isinstance(said, dict):
        return
    result = said.get("result")
    if isinstance(result, dict):
        job.result = {
            "good": result.get("good") is True,
            "headline": str(result.get("headline", "")),
            "lines": [str(one) for one in result.get("lines", [])],
            "next_step": _on_the_page(str(result.get("next_step", ""))),
        }
    elif isinstance(said.get("total"), (int, float)) and said["total"] > 0:
        job.share = min(1.0, float(said.get("done", 0)) / float(said["total"]))
        job.words = str(said.get("words", ""))


def _on_the_page(text: str) -> str:
    """Return what to do next in the words of the page.

    >>> _on_the_page(f"{START_COMMAND} repair   brings back what can be brought back")
    'Repair, above, brings back what can be brought back'
    """
    text = text.replace(f"{START_COMMAND} repair   ", "Repair, above, ")
    return text.replace(f"{START_COMMAND} check   ", "Full check, above, ")


def _failed(why: str) -> dict[str, Any]:
    return {"good": False, "headline": "It could not be done.", "lines": why.splitlines(),
            "next_step": f"In a terminal: {START_COMMAND} repair"}  # fmt: skip


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a child with all that it started."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
