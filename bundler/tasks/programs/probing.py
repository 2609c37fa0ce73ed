"""Whether a sandbox holds: it is attacked before anything is run in it. Flags are not believed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from bundler.errors import StepFailed
from bundler.plan import Step
from bundler.tasks.items import CodeItem
from bundler.tasks.programs.running import verdict_on
from bundler.tasks.programs.sandbox import INSTALL, Sandbox, found_sandbox

_SECONDS = 60
_SPIN_SECONDS = 1
_MOST_SAID_BYTES = 1 << 14
_SHOWN_CHARACTERS = 300
_FORBIDDEN = (
    "let this machine make user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "user.max_user_namespaces; on Ubuntu an AppArmor profile for bwrap; in a container "
    "--security-opt seccomp=unconfined), or leave the tasks of kind = 'code' out"
)
_PROGRAM = "def double(x):\n    return 2 * x\n"
_TEST = "def check(candidate):\n    assert candidate(21) == 42\n"


@cache
def sandbox_that_holds(search_path: str | None = None) -> Sandbox:
    """Return this machine's sandbox, after everything that it has to withstand was tried on it.

    Args:
        search_path: as PATH; the process's own when absent.

    Raises:
        StepFailed: there is no sandbox, it does not start, or it does not hold; with what would help.
    """
    sandbox = found_sandbox(search_path)
    if found := list(weaknesses(sandbox)):
        raise StepFailed(
            "the sandbox for programs that a model wrote does not hold here; what runs in it "
            + "; ".join(found),
            hint=f"{_FORBIDDEN}; a newer bubblewrap may help, too",
        )
    return sandbox


def require_sandbox(steps: Iterable[Step]) -> None:
    """Raise StepFailed where a step has to run a model's programs and nothing holds them."""
    if any(told["kind"] == "code" for step in steps for told in step.parameters.get("tasks", ())):
        sandbox_that_holds()


def weaknesses(sandbox: Sandbox) -> Iterator[str]:
    """Yield what a process in a sandbox can do and must not. Raises StepFailed if none starts."""
    yield from _holes(sandbox)
    if not _ends_in_time(sandbox):
        yield "does not end when its processor time is over"
    item = CodeItem(1, "", "", "double", "double", "", _TEST, "")
    for program, ending in ((_PROGRAM, "passed"), (_PROGRAM.replace("2", "3"), "failed")):
        verdict = verdict_on(program, item, sandbox, cpu_seconds=10)
        if verdict.ending != ending:
            yield f"is judged wrongly ({verdict.ending}: {verdict.why})"


def _holes(sandbox: Sandbox) -> list[str]:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        tempfile.TemporaryFile() as log,
    ):
        canary = Path(folder, "canary")
        canary.write_text("to be found by nobody", encoding="utf-8")
        message = {
            "canary": str(canary), "process": os.getpid(), "port": server.getsockname()[1],
        }  # fmt: skip
        read, write = os.pipe()
        try:
            with sandbox.running("probe", message, 20, write, log=log.fileno()) as process:
                os.close(write)
                code = _ended(process, _SECONDS)
                said = os.read(read, _MOST_SAID_BYTES)
        finally:
            os.close(read)
        log.seek(0)
        shown = log.read(_MOST_SAID_BYTES).decode("utf-8", "replace")
    if code or not said:
        raise _does_not_start(shown)
    return [str(one) for one in json.loads(said)]


def _does_not_start(said: str) -> StepFailed:
    words = "".join(c if c.isprintable() else " " for c in said.strip())[-_SHOWN_CHARACTERS:]
    return StepFailed(
        "programs that a model wrote cannot be run here: the sandbox does not start: "
        + (words or "it says nothing"),
        hint=_FORBIDDEN if "bwrap" in words or "ermission" in words else INSTALL,
    )


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def _ends_in_time(sandbox: Sandbox) -> bool:
    """Tell whether what runs for ever is ended by its processor time, not only by us."""
    read, write = os.pipe()
    try:
        began = time.monotonic()
        with sandbox.running("probe", {"spin": True}, _SPIN_SECONDS, write) as process:
            os.close(write)
            code = _ended(process, _SECONDS)
    finally:
        os.close(read)
    return code not in (None, 0) and time.monotonic() - began >= _SPIN_SECONDS / 2
