"""Sticks that are none: filesystems of a set size, mounted from a file or in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

KINDS = ("ext4", "exfat", "fat")


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        say = pytest.fail if os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1" else pytest.skip
        say(f"needs {name}")
    return found


def _run(*words: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout + done.stderr)
    return done.stdout.strip()


def _mounted(*words: object, must: bool = False) -> None:
    """Mount, or skip the test with what the kernel said."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    assert done.returncode == 0 or not must, done.stderr
    if done.returncode != 0:
        pytest.skip(f"this kernel does not mount it: {done.stderr.strip()[-200:]}")


def image(path: Path, kind: str, mib: int, *, fresh: bool = True) -> Path:
    """Make the image of a stick, in a new file or in the one that is there."""
    with path.open("wb" if fresh else "r+b") as stream:
        stream.truncate(mib << 20)
    if kind == "ext4":
        _run(_tool("mkfs.ext4"), "-q", "-E", "nodiscard", path)
    elif kind == "exfat":
        _run(_tool("mkfs.exfat"), path)
    else:
        _run(_tool("mkfs.vfat"), "-F", "32", path)
    return path


@contextlib.contextmanager
def mounted(path: Path, kind: str, point: Path, *, must: bool = False):
    """Mount the image of a stick at `point`; where it `must` be possible, that it is not is a failure."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    point.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if kind == "ext4":
            _mounted("mount", "-o", "loop", path, point, must=must)
        elif kind == "exfat":
            device = _run("losetup", "-f", "--show", path)
            stack.callback(subprocess.run, ["losetup", "-d", device], check=True)
            _mounted(_tool("mount.exfat-fuse"), device, point)
        else:
            _mounted(_tool("fusefat"), "-o", "rw+", path, point)
        stack.callback(_unmounted, point)
        yield point


def _unmounted(point: Path) -> None:
    for words in (["umount", point], ["umount", "-l", point]):
        if subprocess.run(words, capture_output=True).returncode == 0:
            return
    assert not point.is_mount()


@contextlib.contextmanager
def stick(folder: Path, kind: str, mib: int = 64):
    """A fresh stick of that kind."""
    with mounted(image(folder / f"{kind}.img", kind, mib), kind, folder / kind) as point:
        yield point


@contextlib.contextmanager
def memory(point: Path, size: str, *options: str):
    """A filesystem in memory of a set size."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    point.mkdir(exist_ok=True)
    _mounted("mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "none", point)
    try:
        yield point
    finally:
        _unmounted(point)
