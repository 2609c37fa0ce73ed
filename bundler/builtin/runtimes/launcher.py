"""Compiles the launcher: the one program of a bundle that needs nothing of the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bundler.errors import StepFailed

SOURCE = Path(__file__).with_name("launcher.c")
_FLAGS = (
    "-static", "-Os", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-s", "-Wl,--build-id=none",
)  # fmt: skip


def compile_launcher(target: Path, *, loader: str, program: str) -> None:
    """Compile the launcher to `target`, for a loader and a program of the given file names.

    Raises:
        StepFailed: there is no C compiler, or it cannot link statically.
    """
    definitions = (f'-DLOADER="{loader}"', f'-DPROGRAM="{program}"')
    try:
        # From standard input: the source's path must not get into the program.
        done = subprocess.run(
            ["cc", *_FLAGS, *definitions, "-x", "c", "-", "-o", str(target)],
            input=SOURCE.read_bytes(), capture_output=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise StepFailed(
            "the start program of a bundle needs a C compiler", where="cc",
            hint="install one; on Debian: apt-get install gcc libc6-dev",
        ) from error  # fmt: skip
    if done.returncode:
        raise StepFailed(
            "the start program of a bundle could not be compiled: "
            + done.stderr.decode(errors="replace").strip()[-600:],
            where="cc",
            hint="a static C library is needed; on Debian: apt-get install libc6-dev",
        )


def version_of(program: str) -> str:
    """Return a program's own first line about itself, or an empty text when it is not there."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.partition("\n")[0]
