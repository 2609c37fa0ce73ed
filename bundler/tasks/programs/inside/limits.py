"""Limits that a process takes on before it runs what it does not know; it cannot lift them again."""

from __future__ import annotations

import json
import os
import resource
import signal
from typing import Any

MOST_FILES = 64


def told() -> dict[str, Any]:
    """Return what stands on standard input, and take on the limits in it; the input is closed."""
    with os.fdopen(0, "rb") as stream:
        given: dict[str, Any] = json.load(stream)
    seconds = int(given["cpu_seconds"])
    for limit, soft, hard in (
        (resource.RLIMIT_AS, given["memory_bytes"], given["memory_bytes"]),
        # One second more before the end cannot be handled any more.
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, given["file_bytes"], given["file_bytes"]),
        (resource.RLIMIT_NOFILE, MOST_FILES, MOST_FILES),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(limit, (soft, hard))
    # A file that grows too large is an error, not the end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return given
