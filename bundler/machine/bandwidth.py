"""How fast main memory can be read here: a second or two, in a child process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from bundler.machine.processor import cores, last_level_cache_bytes
from bundler.machine.values import Figure
from bundler.value import format_bytes

_SCRIPT = Path(__file__).with_name("bandwidth_child.py")
_LEAST_BYTES = 256 * 2**20
_CACHES = 4
"""The buffer is this many times the last-level caches, or they would be measured."""
_MOST_THREADS = 32
"""A dozen cores fill every memory controller known; more only cost time to start."""
PASSES = 7
SECONDS = 60.0


def memory_bandwidth(
    free_bytes: int | None, *, passes: int = PASSES, seconds: float = SECONDS
) -> tuple[Figure | None, str]:
    """Return the bytes per second that all cores together read, or None and why not.

    The median of `passes` passes over a buffer well beyond the caches, with the spread.
    """
    cache = last_level_cache_bytes()
    wanted = max(_LEAST_BYTES, _CACHES * cache)
    if free_bytes is not None and wanted > free_bytes // 2:
        return None, (
            f"memory bandwidth was not measured: it takes a buffer of {format_bytes(wanted)} and "
            f"{format_bytes(free_bytes)} are free"
        )
    threads = min(_MOST_THREADS, cores())
    command = [sys.executable, "-I", str(_SCRIPT), str(wanted), str(threads), str(passes)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
        found = [int(figure) for figure in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        return None, f"memory bandwidth was not measured: it took longer than {seconds:.0f} s"
    except (OSError, ValueError, TypeError):
        return None, "memory bandwidth was not measured: its child process gave no answer"
    if not found or min(found) <= 0:
        return None, "memory bandwidth was not measured: the clock did not move"
    beyond = f"{format_bytes(cache)} of caches" if cache else "caches of unknown size"
    how = (
        f"median of {len(found)} passes, {threads} threads read {format_bytes(wanted)} "
        f"(beyond {beyond})"
    )
    median = round(statistics.median(found))
    return Figure(value=median, how=how, low=min(found), high=max(found)), ""
