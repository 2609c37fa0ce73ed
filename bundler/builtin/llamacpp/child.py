"""Run heavy or fragile work in a child process, and turn whatever becomes of it into an answer.

The child is our own Python running `worker`, without the current folder on its path. It gets one JSON request on stdin and
answers in JSON lines on stdout: `{"progress": [done, total, unit]}` any number of times, then
`{"result": …}` or `{"error": …}`. Everything else that it or a native library prints goes to its
stderr, of which the last lines are kept and shown when it fails.

A crash, an out-of-memory kill or an abort in native code ends the child, never the build. Stdin
stays open while the child works: when it closes, its parent is gone and the child ends itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from bundler import errors
from bundler.errors import BundlerError, DoesNotFit, Problem, StepFailed
from bundler.value import Json, format_bytes

LOG_LINES = 400
"""Lines of the child's log that are kept; a few dozen tell why llama.cpp stopped."""
LINE_BYTES = 4096
"""Longer log lines are cut: a native library can print without end."""
_MESSAGE_BYTES = 64 << 20
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
# The package's own folder goes last on the path, so that it shadows nothing: it is only needed
# where bundler runs from a checkout that is not installed.
_START = (
    "import sys, runpy; sys.path.append(sys.argv.pop()); "
    "runpy.run_module('bundler.builtin.llamacpp.worker', run_name='__main__')"
)
_SHOWN_LINES = 12
_STOP_SECONDS = 1.0
# When ggml gives up it would start a debugger, whose output buries the reason.
_CHILD_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
_TICK_SECONDS = 0.2

# What llama.cpp, ggml, numpy and CUDA say when memory runs out, in any case.
_OUT_OF_MEMORY = (
    "bad_alloc", "failed to allocate", "unable to allocate", "out of memory", "cannot allocate",
    "memoryerror", "cudamalloc failed", "erroroutofdevicememory", "failed to mmap",
)  # fmt: skip


def run_child(
    job: str,
    arguments: Json,
    *,
    environment: Mapping[str, str],
    progress: Callable[..., None] | None = None,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float | None = None,
) -> Any:
    """Run `job` (`"module:function"`) in a child process and return its result.

    `memory_limit_bytes` caps the child's address space (RLIMIT_AS). Whatever ends this call, an
    exception of `progress` or KeyboardInterrupt included, has ended the child before it is raised.

    Raises:
        BundlerError: of the kind the job raised.
        DoesNotFit: the child ran out of memory.
        StepFailed: it crashed, was killed, broke the protocol or took longer than the timeout.
    """
    oom_kills = _kernel_oom_kills()
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    child = _Child(environment)
    try:
        child.send(job, arguments, memory_limit_bytes)
        answer = _follow(child, progress, deadline)
        if answer is None:
            child.wait(deadline)
    except _TooLate:
        raise StepFailed(
            f"the child process for {_title(job)} took longer than {timeout_seconds:.0f} s"
            + child.log.tail(),
            hint="run it again on an idle machine, or with less text",
        ) from None
    finally:
        child.end()
    if answer is None:
        code = child.process.returncode
        raise _death(code, job, child.log, oom_kills, memory_limit_bytes)
    if "error" in answer:
        raise _reported(answer["error"], job, child.log, memory_limit_bytes)
    return answer["result"]


class _TooLate(Exception):
    """The deadline passed."""


class _Log:
    """The last lines a child wrote to stderr, read by a thread so that it never blocks on us."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self.thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self.thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        while line := stream.readline(LINE_BYTES):
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._lines.append("".join(c if c.isprintable() else " " for c in text))

    def tail(self) -> str:
        """Return the last lines, indented, ready to follow a message."""
        shown = list(self._lines)[-_SHOWN_LINES:]
        return "".join(f"\n  | {line}" for line in ["last lines of its log:", *shown]) * bool(shown)

    def says_out_of_memory(self) -> bool:
        text = "\n".join(self._lines).lower()
        return any(sign in text for sign in _OUT_OF_MEMORY)


_NOTHING_YET: dict[str, Any] = {}


class _Messages:
    """The child's JSON lines, handed over through a queue so that waiting can have a deadline."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self.thread.start()

    def next(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Wait a little for a message: `_NOTHING_YET`, or None when there will be none any more."""
        try:
            return self._queue.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            if process.poll() is None:
                return _NOTHING_YET
        # It is gone, though a grandchild may hold its pipe open: take what it still said.
        self.thread.join(timeout=_STOP_SECONDS)
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def _read(self, stream: IO[bytes]) -> None:
        try:
            while line := stream.readline(_MESSAGE_BYTES):
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                self._queue.put(message)
        except ValueError:  # not JSON: something is broken, which the missing answer will say
            return
        finally:
            self._queue.put(None)


class _Child:
    """The process with its pipes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(_PACKAGE_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, **_CHILD_ENVIRONMENT},
            start_new_session=True,  # Ctrl-C reaches us only; we end the child in our own order
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self._pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self.messages = _Messages(self.process.stdout)
        self.log = _Log(self.process.stderr)

    def send(self, job: str, arguments: Json, memory_limit_bytes: int | None) -> None:
        """Write the request; stdin stays open as the sign that we live."""
        request = {
            "job": job,
            "arguments": arguments,
            "parent": os.getpid(),
            "memory_limit_bytes": memory_limit_bytes,
        }
        try:
            self._pipes[0].write(json.dumps(request).encode() + b"\n")
            self._pipes[0].flush()
        except BrokenPipeError:
            return  # it died at once: its return code and log tell more than the pipe does

    def wait(self, deadline: float | None) -> None:
        """Let a child that closed its stdout end by itself, so that its own code is seen."""
        left = 10.0 if deadline is None else max(0.1, deadline - time.monotonic())
        try:
            self.process.wait(timeout=min(10.0, left))
        except subprocess.TimeoutExpired:
            raise _TooLate from None

    def end(self) -> None:
        """End the process if it still runs, and whatever it started, within two seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        # It led a session of its own: a grandchild would hold the pipes open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.messages.thread.join()
        self.log.thread.join()
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # bytes for a dead reader
                pipe.close()


def _follow(
    child: _Child, progress: Callable[..., None] | None, deadline: float | None
) -> dict[str, Any] | None:
    """Pass progress on until the answer comes; None when the child ends without one."""
    while True:
        if deadline is not None and time.monotonic() > deadline:
            raise _TooLate
        message = child.messages.next(child.process)
        if message is _NOTHING_YET:
            continue
        if message is None or "result" in message or "error" in message:
            return message
        if progress is not None and "progress" in message:
            progress(*message["progress"])


def _title(job: str) -> str:
    return job.rpartition(".")[2].replace(":", " ").split(" ", maxsplit=1)[0]


def _death(
    code: int, job: str, log: _Log, oom_kills: int, memory_limit_bytes: int | None
) -> BundlerError:
    """Name the end of a child that gave no answer."""
    what = f"the child process for {_title(job)}"
    if code >= 0:
        if log.says_out_of_memory():
            return _no_memory(what, f"exit code {code}", log, memory_limit_bytes)
        return StepFailed(f"{what} ended with exit code {code} and no answer" + log.tail())
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if -code == signal.SIGKILL and _kernel_oom_kills() > oom_kills:
        return _no_memory(what, "the kernel killed it: SIGKILL", log, memory_limit_bytes)
    if log.says_out_of_memory():
        return _no_memory(what, name, log, memory_limit_bytes)
    hints = {
        signal.SIGKILL: "somebody or the kernel killed it; check how much memory is free (dmesg)",
        signal.SIGILL: "this llama-cpp-python was built for another CPU: rebuild it here",
        signal.SIGABRT: "llama.cpp gave up on this input: its last lines say why",
    }
    return StepFailed(
        f"{what} was ended by {name}" + log.tail(),
        hint=hints.get(signal.Signals(-code), "the input may be damaged, or this is a bug")
        if -code in set(signal.Signals)
        else "",
    )


def _no_memory(what: str, how: str, log: _Log, memory_limit_bytes: int | None) -> DoesNotFit:
    limit = f" (limit {format_bytes(memory_limit_bytes)})" if memory_limit_bytes else ""
    return DoesNotFit(
        f"{what} ran out of memory{limit}: {how}" + log.tail(),
        hint="free some memory, choose a smaller quantization or context, or a larger machine",
    )


def _reported(
    error: Mapping[str, Any], job: str, log: _Log, memory_limit_bytes: int | None
) -> BundlerError:
    """Rebuild the error a job reported; a stranger's exception becomes StepFailed with its log."""
    kind = getattr(errors, str(error["kind"]), None)
    if isinstance(kind, type) and issubclass(kind, BundlerError):
        return kind(Problem(**problem) for problem in error["problems"])
    what = f"the child process for {_title(job)}"
    said = f"{error['kind']}: {error['message']}"
    if any(sign in said.lower() for sign in _OUT_OF_MEMORY) or log.says_out_of_memory():
        return _no_memory(what, said, log, memory_limit_bytes)
    return StepFailed(f"{what} failed: {said}" + log.tail())


def _kernel_oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory; 0 where it is not told."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        return 0  # not Linux, or no /proc
    return 0
