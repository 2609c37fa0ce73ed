"""Tries what a filesystem can do, with files in a folder that is removed afterwards."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bundler.deploy.checks import fat_refuses
from bundler.deploy.ground import Ground
from bundler.errors import BundlerError, DoesNotFit
from bundler.manifest import Manifest
from bundler.planning.filesystems import FAT32_MAX_FILE_BYTES
from bundler.value import format_size

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_MOST_NAMES = 200
# Where a file may have a hole, trying a size costs nothing; elsewhere it would write 4 GiB of zeros.
_WITH_HOLES = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "overlay"})


def tried(ground: Ground, manifest: Manifest) -> Iterator[BundlerError]:
    """Yield what the filesystem turned out not to hold.

    Raises:
        OSError: nothing can be written there at all.
    """
    names = unusual_names(manifest)
    largest = max(manifest.files, key=lambda f: (f.size_bytes, f.path), default=None)
    with tempfile.TemporaryDirectory(dir=ground.target, prefix=".bundler-probe-") as made:
        for name in refused_names(Path(made), names):
            yield DoesNotFit(
                f"the filesystem cannot hold the name {name!r}", where=str(ground.target),
                hint="use a stick with exFAT; or give the file a shorter, plainer name and build again",
            )  # fmt: skip
        if largest is not None and ground.kind in _WITH_HOLES:
            fault = refused_size(Path(made), largest.size_bytes)
            if fault and largest.size_bytes > FAT32_MAX_FILE_BYTES:
                yield fat_refuses(ground, largest.path, largest.size_bytes)
            elif fault:
                yield DoesNotFit(
                    f"{largest.path} has {format_size(largest.size_bytes)}; the filesystem (or a "
                    f"limit of this shell) holds no such file: {fault}", where=str(ground.target),
                    hint="look at `ulimit -f`, or use another filesystem",
                )  # fmt: skip


def unusual_names(manifest: Manifest) -> list[str]:
    """Return the names in a bundle that some filesystem may not hold, longest first."""
    parts = {part for file in manifest.files for part in file.path.split("/")}
    found = [part for part in parts if not _PLAIN_NAME.fullmatch(part)]
    return sorted(found, key=lambda part: (-len(part.encode()), part))[:_MOST_NAMES]


def refused_names(folder: Path, names: list[str]) -> list[str]:
    """Return the names that do not come back as they were given."""
    refused = []
    for name in names:
        try:
            (folder / name).touch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            refused.append(name)
    there = set(os.listdir(folder))
    return [name for name in names if name in refused or name not in there]


def folds_case(folder: Path) -> bool:
    """Tell whether a filesystem takes upper and lower case for one."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bundler-probe-") as made:
        (Path(made) / "case").touch()
        return (Path(made) / "CASE").exists()


def refused_size(folder: Path, size_bytes: int) -> str:
    """Return why a file cannot become this large, "" when it can; needs a filesystem with holes."""
    with (folder / "large").open("wb") as stream:
        try:
            os.ftruncate(stream.fileno(), size_bytes)
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.EINVAL, errno.EOVERFLOW):
                raise
            return error.strerror or str(error)
    return ""
