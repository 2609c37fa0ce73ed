"""The stick is pulled out while the station serves from it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bundler.testing.station_process import RunningStation, running_station
from tests.sticks import stick


def ask(station: RunningStation, method: str, path: str, body: object = None) -> int:
    """Return the status of an answer; 0 when the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", station.port, timeout=60)
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (http.client.HTTPException, ConnectionError):
        return 0
    finally:
        connection.close()


def pull_out(point: Path) -> None:
    """End the program behind the filesystem: from then on nothing there can be read."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"exfat" in words[0] and os.fsencode(point) in words:
                os.kill(int(entry.parent.name), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.listdir(point)
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the stick is still there")


@pytest.mark.root
@pytest.mark.fault("C11")
@pytest.mark.skipif(not shutil.which("strace"), reason="a Linux machine with FUSE")
def test_a_stick_pulled_out_while_it_serves_is_told_and_takes_nothing_with_it(demo, tmp_path):
    with stick(tmp_path, "exfat", 320) as point:
        subprocess.run(["cp", "-r", demo, point / "bundle"], check=True)
        question = {
            "model": "chat", "max_tokens": 16,
            "messages": [{"role": "user", "content": "What is tinder?"}],
        }  # fmt: skip
        with running_station(point / "bundle") as station:
            assert ask(station, "GET", "/") == 200
            assert ask(station, "POST", "/v1/chat/completions", question) == 200
            pull_out(point)
            begun = time.monotonic()
            # What the system holds in memory may still answer; nothing may hang or come down.
            said = [
                ask(station, "POST", "/v1/chat/completions", question),
                *(ask(station, "GET", path) for path in ("/search?q=water", "/library", "/")),
                *(ask(station, "GET", f"/read/handbook/{n}") for n in ("index", "nowhere")),
                ask(station, "GET", "/api/status"),
            ]
            assert time.monotonic() - begun < 120, said
            assert said[-1] == 200, said
            assert station.process.poll() is None
        assert "Traceback" not in "\n".join(station.output)
