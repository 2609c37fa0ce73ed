"""A station as a process of its own, for tests: started on a free port, ended at the end."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 30.0


@dataclass
class RunningStation:
    """A station that serves; `url` ends with a slash."""

    process: subprocess.Popen[str]
    url: str
    output: list[str] = field(default_factory=list)
    """Lines of stdout and stderr so far."""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].rstrip("/"))

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def running_station(
    bundle: Path, *options: str, port: int = 0, own_programs: bool = False
) -> Iterator[RunningStation]:
    """Start a station over `bundle`; end it (politely first) when the block is left.

    With `own_programs` it is the bundle's own start script that starts it.
    """
    command = [
        *([str(bundle / "start")] if own_programs
          else [sys.executable, "-m", "bundler.station", "--bundle", str(bundle)]),
        "--port", str(port), "--no-browser", *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    station = RunningStation(process, "")
    reading = threading.Thread(target=_read, args=(station,), daemon=True)
    reading.start()
    try:
        station.url = _wait_for_address(station)
        yield station
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reading.join(5)
        assert process.stdout is not None
        process.stdout.close()


def _read(station: RunningStation) -> None:
    assert station.process.stdout is not None
    for line in station.process.stdout:
        station.output.append(line.rstrip("\n"))


def _wait_for_address(station: RunningStation) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for line in station.output:
            if found := re.search(r"http://[0-9.]+:\d+/", line):
                return found[0]
        if station.process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError("the station did not start: " + "\n".join(station.output))
