"""The child's side of `child`: one request in, progress and one answer out.

Nothing heavy is imported before the limits are set. The protocol has a file descriptor of its own;
file descriptor 1 is pointed at stderr, so that a `printf` of a native library cannot break a line.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from bundler.errors import BundlerError, DoesNotFit

Report = Callable[[float, float | None, str], None]
"""`report(done, total, unit)`: told to the parent at most every 50 ms; never goes backwards."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_REPORT_SECONDS = 0.05


class Answers:
    """Writes JSON lines to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "wb")
        self._lock = threading.Lock()
        self._last_time = 0.0
        self._last_done = -1.0

    def send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()

    def report(self, done: float, total: float | None, unit: str) -> None:
        now = time.monotonic()
        whole = total is not None and done >= total
        if done <= self._last_done or (not whole and now - self._last_time < _REPORT_SECONDS):
            return
        self._last_time, self._last_done = now, done
        self.send({"progress": [done, total, unit]})


def main() -> int:
    """Do the one job that stdin asks for; return 0 when an answer (also an error) was sent."""
    answers = Answers(_take_protocol())
    request = json.loads(sys.stdin.buffer.readline())
    _end_with_parent(int(request["parent"]))
    _limit_memory(request["memory_limit_bytes"])
    try:
        module, _, function = str(request["job"]).partition(":")
        job = getattr(importlib.import_module(module), function)
        answers.send({"result": job(request["arguments"], answers.report)})
    except BundlerError as error:
        answers.send({"error": _describe(error)})
    except MemoryError as error:
        answers.send({"error": _describe(DoesNotFit(f"out of memory: {error}"))})
    except Exception as error:  # noqa: BLE001 - the parent decides what any failure of a job means
        traceback.print_exc()
        answers.send({"error": {"kind": type(error).__name__, "message": str(error)}})
    return 0


def _describe(error: BundlerError) -> dict[str, Any]:
    problems = [{"message": p.message, "where": p.where, "hint": p.hint} for p in error.problems]
    return {"kind": type(error).__name__, "problems": problems}


def _take_protocol() -> int:
    """Give the protocol a descriptor of its own and send everybody's prints to stderr."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def _end_with_parent(parent: int) -> None:
    """End this process when its parent does: by the kernel on Linux, by stdin's end everywhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went before we asked
            os._exit(1)
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    # os.read, not the buffered stream: a daemon thread holding its lock would disturb the exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _limit_memory(limit_bytes: int | None) -> None:
    if limit_bytes is not None:
        import resource  # POSIX only, and only needed here

        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


if __name__ == "__main__":
    code = main()
    # Skip interpreter shutdown: unloading a GPU backend can hang or crash after the work is done.
    sys.stderr.flush()
    os._exit(code)
