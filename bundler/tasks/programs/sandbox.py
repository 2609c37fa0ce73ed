"""A sandbox for one Python process: bubblewrap's namespaces, a filter of system calls, limits.

What is inside sees the interpreter's own files, read-only, and an empty folder for little files:
no network, no other process, no environment, no file of the person's. Where that cannot be had,
nothing is run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bundler.errors import StepFailed
from bundler.tasks.programs.seccomp import KNOWN_MACHINES, filter_program

MEMORY_BYTES = 512 << 20
"""Address space of each process; Python itself takes 30 MB of it."""
FILE_BYTES = 1 << 20
"""Of one file, and of all of them."""
INSTALL = "install bubblewrap (Debian, Ubuntu, Fedora, Arch: the package `bubblewrap`)"
_FILTER_AT = "/inside"
_START = "import sys; sys.path.append('/'); from inside.{module} import main; main()"
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")
_ASKING_SECONDS = 60
_WINDOWS = "_tkinter"
"""It alone needs thirty libraries, and there is no screen."""
_HIDDEN = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Sandbox:
    """How a process is started where it can do no harm."""

    bubblewrap: str
    """Path of `bwrap`."""
    python: str
    shown: tuple[str, ...]
    """Files and folders that are to be seen, read-only, each where it lies."""
    hidden: tuple[str, ...]
    """Folders in them that are not: other packages."""
    machine: str

    def arguments(self, module: str, filter_from: int, *told: str) -> list[str]:
        """Return the command line that runs `module` of `inside`, with what it is told."""
        seen = [part for path in self.shown for part in ("--ro-bind", os.path.realpath(path), path)]
        covered = [
            part for path in self.hidden
            for part in ("--size", "4096", "--tmpfs", path, "--remount-ro", path)
        ]  # fmt: skip
        inside = str(Path(__file__).with_name("inside"))
        return [
            self.bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop",
            "ALL", "--clearenv", "--hostname", "sandbox", *seen, *covered,
            "--ro-bind", inside, _FILTER_AT, "--size", str(FILE_BYTES), "--tmpfs", "/tmp",  # noqa: S108 - the sandbox's own
            "--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(filter_from), "--",  # noqa: S108
            self.python, "-I", "-S", "-B", "-c", _START.format(module=module), *told,
        ]  # fmt: skip

    @contextmanager
    def running(
        self, module: str, message: Mapping[str, object], cpu_seconds: int, *lines: int,
        memory_bytes: int = MEMORY_BYTES, log: int = subprocess.DEVNULL,
    ) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
        """Run a module of `inside` for as long as the block lasts.

        Args:
            module: its name.
            message: what it finds on its standard input, with its limits.
            cpu_seconds: of processor time, after which it is ended.
            lines: open files that it gets, as its arguments.
            memory_bytes: most address space.
            log: where its complaints go.
        """
        limits = {
            "cpu_seconds": cpu_seconds, "memory_bytes": memory_bytes, "file_bytes": FILE_BYTES,
        }  # fmt: skip
        with (
            _readable(json.dumps({**message, **limits}).encode()) as given,
            _readable(filter_program(self.machine)) as rules,
        ):
            process = subprocess.Popen(
                self.arguments(module, rules, *map(str, lines)),
                stdin=given, stdout=subprocess.DEVNULL, stderr=log, env={},
                pass_fds=(rules, *lines), cwd="/",
            )  # fmt: skip
        try:
            yield process
        finally:
            # With bubblewrap's own process all that it started ends.
            process.kill()
            process.wait()


@contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """Give a file that can be read only, of which no pipe has to hold the whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given")
        path.write_bytes(data)
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield number
    finally:
        os.close(number)


@cache
def found_sandbox(search_path: str | None = None) -> Sandbox:
    """Return the sandbox of this machine; whether it holds is not known yet (`probing`).

    Args:
        search_path: as PATH; the process's own when absent.

    Raises:
        StepFailed: there is none, with what would help.
    """
    if not sys.platform.startswith("linux"):
        raise _cannot(
            f"this is {platform.system() or sys.platform}, and the sandbox is Linux's",
            "prove this recipe on Linux, or leave its tasks of kind = 'code' out",
        )
    machine = platform.machine()
    if machine not in KNOWN_MACHINES:
        raise _cannot(
            f"the system calls of this processor ({machine}) are not known here",
            f"prove this recipe on one of: {', '.join(KNOWN_MACHINES)}",
        )
    bubblewrap = shutil.which("bwrap", path=search_path)
    if bubblewrap is None:
        raise _cannot("there is no bwrap on this machine", INSTALL)
    python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    folders = _folders()
    libraries = _libraries([python, *_extensions(folders)])
    return Sandbox(
        bubblewrap=bubblewrap,
        python=python,
        shown=tuple(dict.fromkeys([*folders, python, *libraries, *_loader_cache()])),
        hidden=tuple(
            path for folder in folders for name in _HIDDEN
            if Path(path := str(Path(folder, name))).is_dir()
        ),
        machine=machine,
    )  # fmt: skip


def _cannot(why: str, hint: str) -> StepFailed:
    return StepFailed(f"programs that a model wrote cannot be run here: {why}", hint=hint)


def _folders() -> list[str]:
    """Return the folders of the standard library, outside of any virtual environment."""
    of_python = {"platbase": sys.base_exec_prefix, "base": sys.base_prefix}
    paths = (sysconfig.get_path(name, vars=of_python) for name in ("stdlib", "platstdlib"))
    return [path for path in dict.fromkeys(paths) if Path(path).is_dir()]


def _extensions(folders: Sequence[str]) -> list[str]:
    found = (path for one in folders for path in sorted(Path(one, "lib-dynload").glob("*.so")))
    return [str(path) for path in found if not path.name.startswith(_WINDOWS)]


def _libraries(files: Sequence[str]) -> list[str]:
    """Return the shared libraries that the interpreter and its extensions load, as the loader says."""
    try:
        said = subprocess.run(
            ["ldd", *files], capture_output=True, text=True, timeout=_ASKING_SECONDS, check=False,
            env={"PATH": os.defpath, "LC_ALL": "C"},
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _cannot(
            f"ldd does not tell which libraries Python needs: {error}",
            "install ldd (Debian: the package `libc-bin`)",
        ) from error
    return sorted({path for path in _LIBRARY.findall(said) if Path(path).is_file()})


def _loader_cache() -> list[str]:
    """Return the list of libraries by which the loader finds those in unusual places."""
    path = "/etc/ld.so.cache"
    return [path] if Path(path).is_file() else []
