"""Tries what a sandbox must not allow, and says what it could do all the same."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .limits import told

_MOST_FILE_NUMBER = 1024
_OWN_VARIABLES = {"PWD", "LC_CTYPE"}
"""What bubblewrap and Python themselves set."""
_REFUSED = (OSError, MemoryError, RuntimeError, ValueError, OverflowError)
"""What says that something could not be done; anything else is an error of this probe."""


def _could(attempt: Callable[..., Any], *arguments: Any) -> bool:
    try:
        attempt(*arguments)
    except _REFUSED:
        return False
    return True


def _write(path: str, size: int = 1) -> None:
    Path(path).write_bytes(b"x" * size)


def _map(size: int) -> None:
    mmap.mmap(-1, size).close()


def _start_thread() -> None:
    threading.Thread(target=int).start()


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _fill(folder: str, size: int) -> None:
    for number in range(4):
        _write(f"{folder}/{number}", size // 2)


def _lift() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _leaked_files(own: int) -> Iterator[int]:
    for number in range(_MOST_FILE_NUMBER):
        with contextlib.suppress(OSError):
            os.fstat(number)
            if number > 2 and number != own:
                yield number


def holes(given: dict[str, Any], own: int) -> Iterator[str]:
    """Yield what could be done.

    Args:
        given: canary (a file outside), process (one outside), port (that somebody listens on),
            memory_bytes and file_bytes (the limits).
        own: the open file that is this probe's own.
    """
    # Before anything else opens files of its own.
    if leaked := list(_leaked_files(own)):
        yield f"used open files of its parent ({leaked})"
    if extra := set(os.environ) - _OWN_VARIABLES:
        yield f"saw the environment ({', '.join(sorted(extra))})"
    canary = given["canary"]
    for path in (canary, "/etc/passwd", "/proc/self/maps", "/sys/kernel"):
        if _could(os.stat, path):
            yield f"saw {path if path != canary else 'a file outside'}"
    for path in (f"{canary}.new", "/new", "/inside/new", f"{Path(os.__file__).parent}/new"):
        if _could(_write, path):
            yield f"wrote to {Path(path).parent if not path.startswith(canary) else 'a folder outside'}"
    if _could(_write, "/tmp/one", 2 * given["file_bytes"]):  # noqa: S108 - the sandbox's own
        yield "wrote a file larger than the limit"
    if _could(_fill, "/tmp", given["file_bytes"]):  # noqa: S108
        yield "wrote more files than the limit"
    size = 2 * given["memory_bytes"]
    if _could(bytearray, size) or _could(_map, size):
        yield "took more memory than the limit"
    if _could(_lift):
        yield "lifted its own limits"
    if _could(socket.create_connection, ("127.0.0.1", given["port"]), 2):
        yield "reached the network"
    if _could(os.kill, given["process"], 0):
        yield "saw another process"
    if _could(_fork) or _could(_start_thread):
        yield "started a process or thread"


def main() -> None:
    """Say what could be done; or, told to spin, never end."""
    own = int(sys.argv[1])
    given = told()
    while given.get("spin"):
        pass
    os.write(own, json.dumps(list(holes(given, own))).encode())
