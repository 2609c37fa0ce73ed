"""A child process with limits of memory and time, for work on what strangers wrote.

The parent sends one JSON request at a time and gets one JSON answer. A child that crashes, hangs
or takes too much memory is killed and replaced; the parent learns which it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import bundler

MAX_MESSAGE_BYTES = 256 * 2**20
_LENGTH = struct.Struct(">I")
_POLL_SECONDS = 0.5


class ChildFailed(Exception):
    """The child did not answer; the message says why in words for a report."""


class LimitedChild:
    """Runs `python -m module` on demand and asks it questions; a context manager."""

    def __init__(self, module: str, *, memory_bytes: int) -> None:
        self._module = module
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> LimitedChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(
        self, request: Any, *, seconds: float, while_waiting: Callable[[int], None] | None = None
    ) -> Any:
        """Send `request` and return the answer (JSON types both).

        `while_waiting` is called twice a second with the child's process id.

        Raises:
            ChildFailed: no answer: it crashed, ran out of memory or took longer than `seconds`.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            _write(process.stdin, request)
            waiting = _Waiting(process, deadline, while_waiting)
            (length,) = _LENGTH.unpack(waiting.read(_LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise ChildFailed("gave an answer that is too large")
            answer = json.loads(waiting.read(length))
        except TimeoutError as error:
            self.stop()
            raise ChildFailed(f"took more than {seconds:g} s") from error
        except (EOFError, BrokenPipeError, ValueError) as error:
            raise ChildFailed(self._cause_of_death()) from error
        except BaseException:
            self.stop()
            raise
        if "failed" in answer:
            raise ChildFailed(str(answer["failed"]))
        return answer["answer"]

    def stop(self) -> None:
        """Kill the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # unsent bytes for a dead child
                        stream.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
            self._process = subprocess.Popen(
                # -P: the current folder, which may be a stranger's, is no place to import from.
                [sys.executable, "-P", "-m", self._module, str(self._memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={
                    "PYTHONPATH": str(Path(bundler.__file__).parent.parent),
                    "PYTHONHASHSEED": "0",
                    "LC_ALL": "C.UTF-8",
                },
            )
        return self._process

    def _cause_of_death(self) -> str:
        assert self._process is not None
        assert self._log is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 2000))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        self.stop()
        if code is not None and code < 0:
            said = f" ({lines[-1]})" if lines else ""
            return f"the process working on it was stopped by {signal.Signals(-code).name}{said}"
        return f"the process working on it ended: {lines[-1] if lines else f'exit code {code}'}"


class _Waiting:
    """Reads from a child's pipe until a deadline."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        deadline: float,
        tick: Callable[[int], None] | None,
    ) -> None:
        assert process.stdout is not None
        self._descriptor = process.stdout.fileno()
        self._pid = process.pid
        self._deadline = deadline
        self._tick = tick

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes, or raise EOFError or TimeoutError."""
        parts = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            while len(parts) < count:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if selector.select(min(left, _POLL_SECONDS)):
                    block = os.read(self._descriptor, min(count - len(parts), 1 << 20))
                    if not block:
                        raise EOFError
                    parts += block
                if self._tick is not None:
                    self._tick(self._pid)
        return bytes(parts)


def _write(stream: IO[bytes], message: Any) -> None:
    data = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def answer_requests(handle: Callable[[Any], Any]) -> None:
    """Be the child: limit this process, then answer requests until the parent closes the pipe.

    `handle` may raise ChildFailed to refuse one request; anything else ends the process.
    """
    import resource

    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    while len(head := requests.read(_LENGTH.size)) == _LENGTH.size:
        request = json.loads(requests.read(_LENGTH.unpack(head)[0]))
        try:
            answer = {"answer": handle(request)}
        except ChildFailed as refusal:
            answer = {"failed": str(refusal)}
        except MemoryError:
            answer = {"failed": f"needs more than {memory_bytes >> 20} MiB of memory to read"}
        _write(answers, answer)
