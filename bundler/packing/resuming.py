"""The folder in which a pack is unpacked: kept when that is cut off, and looked at before it is used.

Nothing in it is believed. What is not as the manifest lists it is removed; a file stays only after
every byte of it was read and is right.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from bundler.descriptors import set_mode
from bundler.errors import BundlerError, BusyError, DoesNotFit, UnsafeInput
from bundler.grouping import pieces_of
from bundler.manifest import BundleFile, Manifest
from bundler.packing.frames import CutOff
from bundler.store import sync_folder

_READ_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def place_of(output: Path) -> Path:
    """Return the folder in which a bundle is unpacked until it is whole."""
    return output.parent / f".{output.name}.unpacking"


@contextmanager
def folder_to_be(output: Path) -> Iterator[Path]:
    """Give the folder that becomes `output` at the end; it stays where unpacking was cut off.

    Raises:
        BusyError: another process unpacks to the same place.
        UnsafeInput: something lies in its place that is not such a folder of this user.
    """
    folder = place_of(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _held(folder)
    try:
        yield folder
        folder.rename(output)
        sync_folder(output.parent)
    except BaseException as error:
        if not _may_go_on(error) or not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _may_go_on(error: BaseException) -> bool:
    """Tell whether the same pack, or the rest of it, may still be unpacked to the end."""
    return isinstance(error, (CutOff, DoesNotFit)) or not isinstance(error, BundlerError)


def _held(folder: Path) -> int:
    """Open the folder, made where it is missing, and hold it against other processes."""
    made = False
    with contextlib.suppress(FileExistsError):  # left by an earlier run, or by somebody else
        folder.mkdir(mode=0o700)
        made = True
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _strange(folder, "is no folder") from error
        raise
    try:
        if not made and os.fstat(descriptor).st_uid != os.geteuid():
            raise _strange(folder, "belongs to somebody else")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(
            "another process is unpacking to the same place", where=str(folder),
            hint="wait for it, or give another DIR",
        ) from error  # fmt: skip
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _strange(folder: Path, what: str) -> UnsafeInput:
    return UnsafeInput(
        f"{what}: nothing is unpacked there", where=str(folder),
        hint="look at it and remove it yourself, or give another DIR",
    )  # fmt: skip


def kept_files(folder: Path, manifest: Manifest) -> frozenset[str]:
    """Return the files that are right already; everything else in the folder is removed."""
    listed = {file.path: file for file in manifest.files}
    kept = set()
    for above, folders, files in os.walk(folder, topdown=False, followlinks=False):
        for name in files:
            path = Path(above, name)
            file = listed.get(path.relative_to(folder).as_posix())
            if file is not None and _is_right(path, file, manifest.segment_bytes):
                kept.add(file.path)
            else:
                path.unlink()
        for name in folders:
            path = Path(above, name)
            if path.is_symlink():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()
    return frozenset(kept)


def _is_right(path: Path, file: BundleFile, segment_bytes: int) -> bool:
    """Tell whether a file is this one, to the byte, and nobody else's by another name."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size != file.size_bytes:
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        for piece in pieces_of(file, segment_bytes):
            running, left = sha256(), piece.size_bytes
            while left and (part := stream.read(min(left, _READ_BYTES))):
                running.update(part)
                left -= len(part)
            if left or running.hexdigest() != piece.sha256:
                return False
        mode = 0o755 if file.executable else 0o644
        set_mode(stream.fileno(), mode)
    return True
