"""Watches what a plugin does to the machine while it works: writes outside its folders, connections.

Uses Python's audit events (PEP 578), so everything that Python code of this process opens for
writing, renames, removes or connects to is seen, wherever it lies. What native code or a child
process does is not; the folders that such code writes to by habit (the current one, the home
folder, the one for temporary files) are therefore fresh, and looked at afterwards.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event → which of its arguments are paths that it changes.
_CHANGES = {
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.symlink": (1,),
    "os.link": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.utime": (0,),
}  # fmt: skip
# These name a path below an open folder when their last arguments are not -1.
_FOLDER_ARGUMENTS = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.chmod": 1,
                     "os.symlink": 1, "os.link": 2, "os.utime": 1}  # fmt: skip
_CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.sendto")


@dataclass
class Watch:
    """What was seen so far."""

    allowed: tuple[Path, ...]
    """Folders in which anything may be changed."""
    changed: list[str] = field(default_factory=list)
    """Paths outside of them that were written, renamed or removed."""
    connected: list[str] = field(default_factory=list)
    """Addresses that were connected to or looked up."""


_active: list[Watch] = []
_installed: list[bool] = []


@contextlib.contextmanager
def watched(*allowed: Path) -> Iterator[Watch]:
    """Note every change outside of `allowed`, and every connection, made inside the block."""
    if not _installed:
        sys.addaudithook(_see)  # It cannot be taken out again: it sleeps while nothing is watched.
        _installed.append(True)
    watch = Watch(tuple(path.resolve() for path in allowed))
    _active.append(watch)
    try:
        yield watch
    finally:
        _active.remove(watch)


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active:
        return
    if event in _CONNECTS:
        for watch in _active:
            watch.connected.append(f"{event} {arguments[-1]!r}")
    elif event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITING:
            _note(path)
    elif event in _CHANGES:
        folders = _FOLDER_ARGUMENTS.get(event, 0)
        if folders and any(value != -1 for value in arguments[-folders:]) and event != "os.utime":
            return
        for index in _CHANGES[event]:
            _note(arguments[index])


def _note(path: Any) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # an open file
    whole = Path.cwd() / os.fsdecode(path)
    if whole.parts[1:2] in (("dev",), ("proc",)) or "__pycache__" in whole.parts:
        return
    real = whole.parent.resolve() / whole.name
    for watch in _active:
        if not any(real.is_relative_to(folder) for folder in watch.allowed):
            watch.changed.append(str(whole))


@contextlib.contextmanager
def moved_to(folder: Path) -> Iterator[None]:
    """Make fresh folders below `folder` the current one, the home and the one for temporary files."""
    for name in ("here", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    # What a plugin reads of the environment itself; restored below.
    names = {"HOME": "home", "XDG_CACHE_HOME": "home", "TMPDIR": "tmp"}
    before = {name: os.environ.get(name) for name in names}
    temporary = tempfile.tempdir
    os.environ.update({name: str(folder / place) for name, place in names.items()})
    tempfile.tempdir = str(folder / "tmp")
    try:
        with contextlib.chdir(folder / "here"):
            yield
    finally:
        tempfile.tempdir = temporary
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def left_in(folder: Path) -> list[str]:
    """Return what lies in the fresh folders that `moved_to` made."""
    return sorted(
        path.relative_to(folder).as_posix()
        for name in ("here", "home", "tmp")
        for path in (folder / name).rglob("*")
    )
