"""A new bundle is started once, before it takes its name: by its own script, with nothing of ours.

A bundle of which every byte is right can still be one that does not start, when its own programs do
not understand its own configuration. Here that is found while somebody can do something about it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bundler.errors import StepFailed
from bundler.events import Note, StepFinished, StepStarted
from bundler.machine.processor import this_platform
from bundler.world import World

_SECONDS = 120.0
_LINES = 12


def start_once(root: Path, world: World) -> None:
    """Let the bundle at `root` read its configuration and look at this computer, and end.

    Where it has no programs for this system, or nothing may be run from there, that is said.

    Raises:
        StepFailed: it does not start; with the last lines of what it said.
    """
    script, python = root / "start", _python(root)
    if not script.is_file() or python is None:
        return
    if not os.access(python, os.X_OK):
        where = f"{root.parent}: programs may not be run from there (mounted with noexec?)"
        world.report(Note(f"{where}: whether the bundle starts was not tried", "warning"))
        return
    world.report(StepStarted("start"))
    done = _run(script)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LINES:])
        raise StepFailed(
            f"the new bundle does not start (its start script ended with {done.returncode}):\n{said}",
            where=str(root.parent),
            hint="this is a fault of bundler or of a runtime plugin: please report it",
        )
    world.report(StepFinished("start", "done", "its own programs read it"))


def _python(root: Path) -> Path | None:
    """Return the interpreter that the bundle brings for this computer, if it brings one."""
    platform = this_platform()
    found = root / "runtime" / (platform or "none") / "python/bin/python3"
    return found if sys.platform != "win32" and found.is_file() else None


def _run(script: Path) -> subprocess.CompletedProcess[str]:
    """Run it as on a machine where nothing is installed; it writes nothing."""
    try:
        return subprocess.run(
            ["/bin/sh", str(script), "--probe"], capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, stdin=subprocess.DEVNULL, cwd="/", check=False,
            env={"PATH": os.defpath, "HOME": "/nonexistent", "LANG": "C.UTF-8"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StepFailed(
            f"the new bundle did not start within {_SECONDS:.0f} s",
            where=str(script.parent.parent),
            hint="build again on a machine with less to do",
        ) from error
