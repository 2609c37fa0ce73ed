"""Reads a stranger's Parquet file in a child process: a small file can unpack to any size.

The child has a limit of memory and of time, sees no other file by its library (DuckDB, which brings
its own reader and no further package), and its answer is bounded. What is left to chance is that
library's own code, which reads C structures of a stranger in a process with our rights.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bundler.errors import RecipeError, UnsafeInput

_SECONDS = 120
_SHOWN_CHARACTERS = 300
_UNREADABLE = 3
"""What `parquet_child` ends with where the file is none."""
_NO_MEMORY = 4
_ABORTED = "bad_alloc"
"""What a library says that gives up for want of memory instead of raising."""


def read_table(
    data: bytes, path: str, wanted: Sequence[str], most_bytes: int
) -> tuple[list[str], str]:
    """Return the names of a table's columns, and those of `wanted` that it has as JSON lines.

    Args:
        data: the file.
        path: its name, for messages.
        wanted: columns; others are not read.
        most_bytes: of the JSON lines.

    Raises:
        RecipeError: there is no reader, or the file is none that it can read.
        UnsafeInput: it unpacks to more than `most_bytes`, or takes too much memory or time, or its
            reader breaks on it.
    """
    if importlib.util.find_spec("duckdb") is None:
        raise RecipeError(
            "is Parquet, and its reader is not installed",
            where=path,
            hint="pip install 'bundler[parquet]', or convert the file to JSON lines",
        )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        file = Path(folder, "table.parquet")
        file.write_bytes(data)
        child = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("parquet_child.py")), str(file),
             *wanted],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        said = _bounded(child, path, most_bytes)
        log.seek(0)
        complaint = log.read().decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
    words = "".join(c if c.isprintable() else " " for c in complaint)
    if child.returncode == _UNREADABLE:
        raise RecipeError(
            f"is no Parquet that can be read: {words}", where=path, hint="look where it comes from"
        )
    if child.returncode == _NO_MEMORY or (child.returncode and _ABORTED in complaint):
        raise UnsafeInput(
            "takes more memory to unpack than a file of questions should", where=path,
            hint="convert it to JSON lines where you trust it",
        )  # fmt: skip
    if child.returncode:
        raise UnsafeInput(
            f"its reader ended with code {child.returncode}: {words or 'it says nothing'}", where=path,
            hint="convert it to JSON lines where you trust it",
        )  # fmt: skip
    first, _, rows = said.decode().partition("\n")
    return list(json.loads(first)), rows


def _bounded(child: subprocess.Popen[bytes], path: str, most_bytes: int) -> bytes:
    """Return what the child says, up to a limit of size and time, and see to its end."""
    import threading

    assert child.stdout
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    clock = threading.Timer(_SECONDS, stop)
    clock.start()
    try:
        said = child.stdout.read(most_bytes + 1)
        if len(said) > most_bytes:
            raise UnsafeInput(f"unpacks to more than {most_bytes >> 20} MiB", where=path)
        child.wait()
    finally:
        clock.cancel()
        child.kill()
        child.wait()
        child.stdout.close()
    if late.is_set():
        raise UnsafeInput(f"takes more than {_SECONDS} s to unpack", where=path)
    return said
