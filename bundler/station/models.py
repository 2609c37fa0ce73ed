"""Model servers: started as children, watched, restarted, ended. A state per model, in plain words.

Degrade, never die: when a server does not come up with the accelerator it is tried without, then
with the next runtime of the bundle; when nothing helps the model is `failed` with the reason, and
search and reader go on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bundler.station.attempts import (
    Attempt,
    attempts_of,
    beside,
    expand,
    fallen_back,
    missing_of_draft,
)
from bundler.station.configuration import Bundle, ModelEntry
from bundler.station.problems import ModelUnavailable, StationError
from bundler.station.relay import Endpoint, ask_json
from bundler.station.slots import Slots, Ticket

State = Literal["waiting", "starting", "ready", "failed", "stopped"]

START_SECONDS = 600.0
"""A 20 GB model read from a USB 2 stick takes up to ten minutes."""
HEALTH_INTERVAL_SECONDS = 0.2
BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Before each restart in a row; one more crash than this and the model counts as failed."""
STEADY_SECONDS = 120.0
"""A server that ran this long and then crashed starts with a fresh count."""
END_SECONDS = 5.0
LAST_WORDS_SECONDS = 1.0
"""How long the rest of an ended server's log is awaited."""
LOG_LINES = 200
DEVICE_LINE = "device: "
"""How a runtime's program says what a model runs on, on a line of its own."""
_GUARDIAN = Path(__file__).with_name("guardian.py")


@dataclass
class ModelServer:
    """One model and the child process that serves it."""

    entry: ModelEntry
    bundle: Bundle
    platform: str
    state: State = "waiting"
    reason: str = ""
    """Why it is not ready, for a person; empty when it is."""
    device: str = ""
    """What it runs on, if the server says: `CPU`, `CUDA0`…"""
    fallback: str = ""
    """What it was to run on and could not, for a person; empty when it runs as it was planned."""
    restarts: int = 0
    tokenizes: bool = True
    """Whether `/tokenize` is worth asking; found out with the first question."""
    endpoint: Endpoint | None = None
    process: asyncio.subprocess.Process | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))

    def __post_init__(self) -> None:
        self.slots = Slots(self.entry.parallel)
        self.changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- what the rest of the station does with it ------------------------------------------------

    def start(self) -> None:
        """Begin to start the server; returns at once."""
        if self._task is None or self._task.done():
            self._say("starting")
            self._task = asyncio.create_task(self._supervise(), name=f"model {self.entry.name}")

    async def stop(self) -> None:
        """End the server and wait until its process is gone."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._say("stopped", "It was stopped.")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Ticket]:
        """Stand in line for the model; see `Slots.ticket`."""
        if self.state == "failed":
            raise ModelUnavailable(self.reason)
        async with self.slots.ticket() as ticket:
            yield ticket

    async def ready(self) -> Endpoint:
        """Return where the server listens, waiting while it starts.

        Raises ModelUnavailable with the reason when it will not come up.
        """
        while self.state in ("waiting", "starting"):
            self.changed.clear()
            await self.changed.wait()
        if self.state != "ready" or self.endpoint is None:
            raise ModelUnavailable(self.reason or "The model is not running.")
        return self.endpoint

    # -- the child process ------------------------------------------------------------------------

    def _say(self, state: State, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self.changed.set()

    async def _supervise(self) -> None:
        try:
            attempts = attempts_of(self.entry, self.bundle, self.platform)
        except StationError as error:
            self._say("failed", str(error))
            return
        if not attempts:
            self._say("failed", self._nothing_to_start())
            return
        missing = missing_of_draft(self.entry, self.bundle.root)
        if missing:
            self.log.append(f"error: its file {missing} is missing from the bundle")
        for attempt in attempts:
            self.fallback = fallen_back(self.entry, attempts[0], attempt, self._told())
            self.device = ""
            await self._keep_running(attempt)
        self._say("failed", self._last_words())

    async def _keep_running(self, attempt: Attempt) -> None:
        """Run the server again and again; return when it crashes too often."""
        crashes = 0
        while crashes <= len(BACK_OFF_SECONDS):
            self._say("starting", self.reason)
            began = time.monotonic()
            came_up = await self._run_once(attempt)
            if not came_up:
                return
            crashes = 0 if time.monotonic() - began > STEADY_SECONDS else crashes + 1
            self.restarts += 1
            self._say(
                "starting", f"It stopped unexpectedly and is being restarted ({attempt.label})."
            )
            if crashes <= len(BACK_OFF_SECONDS):
                await asyncio.sleep(BACK_OFF_SECONDS[max(0, crashes - 1)])

    async def _run_once(self, attempt: Attempt) -> bool:
        """Start the server, wait until it ends; return whether it was ever ready."""
        self.endpoint = Endpoint(_free_port(), secrets.token_urlsafe(24))
        try:
            self.process = await self._spawn(attempt, self.endpoint)
        except OSError as error:
            self.log.append(f"cannot start {attempt.runtime.command[0]}: {error}")
            return False
        reading = asyncio.create_task(self._keep_log(self.process))
        try:
            if not await self._wait_until_healthy(attempt, self.endpoint, self.process):
                return False
            self._say("ready")
            await self.process.wait()
            return True
        finally:
            await _end(self.process)
            # What it said last is often why it ended; but a grandchild may hold the pipe open.
            await asyncio.wait([reading], timeout=LAST_WORDS_SECONDS)
            reading.cancel()
            self.process = None

    async def _spawn(self, attempt: Attempt, endpoint: Endpoint) -> asyncio.subprocess.Process:
        values = self._values(attempt, endpoint)
        command = [expand(part, values) for part in attempt.runtime.command]
        command += beside(self.entry, attempt, self.bundle.root)
        environment = {
            **os.environ,
            **{k: expand(v, values) for k, v in attempt.runtime.environment.items()},
            attempt.runtime.api_key_environment: endpoint.key,
        }
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(_GUARDIAN), *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )  # fmt: skip

    def _values(self, attempt: Attempt, endpoint: Endpoint) -> Mapping[str, str]:
        root = self.bundle.root
        return {
            "python": sys.executable,
            "runtime": str(root / "runtime" / self.platform),
            "bundle": str(root),
            "model": str(root / self.entry.file),
            "port": str(endpoint.port),
            "context_tokens": str(self.entry.context_tokens),
            "parallel": str(self.entry.parallel),
            "kv_cache": self.entry.kv_cache,
            "role": self.entry.role,
            "gpu_layers": str(attempt.gpu_layers),
            "threads": str(generation_threads()),
        }

    async def _wait_until_healthy(
        self, attempt: Attempt, endpoint: Endpoint, process: asyncio.subprocess.Process
    ) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while process.returncode is None and time.monotonic() < deadline:
            try:
                status, answer = await ask_json(
                    endpoint, "GET", attempt.runtime.health, seconds=5.0
                )
            except (ModelUnavailable, TimeoutError):
                status, answer = 0, None
            if status == 200:
                device = answer.get("device", "") if isinstance(answer, dict) else ""
                self.device = str(device)[:60] or self.device
                return True
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
        return False

    async def _keep_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        pending = b""
        while chunk := await process.stdout.read(4096):
            *lines, pending = (pending + chunk).split(b"\n")
            self.log.extend(map(self._heard, lines))
            pending = pending[-4096:]
        if pending:
            self.log.append(_log_line(pending))

    def _heard(self, line: bytes) -> str:
        """Return a line for the log; `device: NAME` in it says what the model runs on."""
        text = _log_line(line)
        if text.startswith(DEVICE_LINE):
            named = "".join(c for c in text.removeprefix(DEVICE_LINE) if c.isprintable())
            self.device = named.strip()[:60]
        return text

    def _told(self) -> str:
        """Return what the program that ended last gave as its reason."""
        said = [line for line in self.log if line.startswith("error:")]
        return said[-1][6:].strip().rstrip(".") if said else ""

    def _nothing_to_start(self) -> str:
        if not self.bundle.runtimes:
            return "This bundle holds no program that can run it."
        return f"This bundle holds no program that can run it on this computer ({self.platform})."

    def _last_words(self) -> str:
        said = [line for line in self.log if line.strip()]
        told = [line[6:].strip() for line in said if line.startswith("error:")] or said
        return f"The program that runs it did not start{f': {told[-1]}' if told else ''}."


def _log_line(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip()[:500]


def generation_threads() -> int:
    """Return the physical cores this process may use: a second thread per core does not help."""
    try:
        allowed = os.sched_getaffinity(0)
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list").read_text()
            for n in allowed
        }
        return max(1, len(siblings))
    except (AttributeError, OSError):
        logical = os.cpu_count() or 2
        return max(1, logical // 2 if logical > 4 else logical)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
