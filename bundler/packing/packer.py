"""Writes a bundle as one file, reading each of its bytes once and holding it against the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bundler.errors import DamagedError, Problem
from bundler.grouping import pieces_of
from bundler.manifest import MANIFEST_NAME, Manifest
from bundler.packing.frames import framed
from bundler.packing.members import (
    BLOCK,
    END,
    FIRST,
    MAX_BESIDE_BYTES,
    Member,
    header,
    last_beside,
    listed,
    padding,
)
from bundler.segments import open_plain
from bundler.store import full_disk_is_an_error

_READ_BYTES = 1 << 20
Told = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def pack_bundle(
    root: Path, manifest: Manifest, data: bytes, target: BinaryIO, *, workers: int, told: Told
) -> int:
    """Write the bundle at `root` to `target`; return how many bytes that took.

    Args:
        root: the bundle's directory.
        manifest: what it is.
        data: the bytes of `manifest.json`.
        target: a file or a pipe; it is only written forwards.
        workers: threads that compress; they do not change a byte.
        told: hears how far it is, in bytes of the bundle.

    Raises:
        DamagedError: a file is not as the manifest says.
        DoesNotFit: the disk is full.
    """
    written = 0
    for frame in framed(_tar(root, manifest, data, told), workers):
        with full_disk_is_an_error(Path.cwd(), "the packed bundle"):
            view = memoryview(frame)
            while view:
                view = view[target.write(view) or 0 :]
        written += len(frame)
    return written


def _tar(root: Path, manifest: Manifest, data: bytes, told: Told) -> Iterator[bytes]:
    yield from _whole(manifest, MANIFEST_NAME, data)
    for name in (*FIRST, *last_beside(manifest)):
        found = _beside(root, name)
        if found is not None:
            yield from _whole(manifest, name, found)
    total = sum(file.size_bytes for file in manifest.files)
    done = 0
    for member, file in zip(listed(manifest), manifest.files, strict=True):
        yield header(manifest.name, member, manifest.created)
        for piece in pieces_of(file, manifest.segment_bytes):
            yield from _piece(root, piece.path, piece.offset, piece.size_bytes, piece.sha256)
            done += piece.size_bytes
            told(done, total)
        yield padding(file.size_bytes)
    yield END


def _whole(manifest: Manifest, name: str, data: bytes) -> Iterator[bytes]:
    yield header(manifest.name, Member(name, len(data)), manifest.created)
    yield data + padding(len(data))


def _beside(root: Path, name: str) -> bytes | None:
    """Return what lies beside the manifest; None when there is none of what may be missing.

    Raises:
        DamagedError: it is larger than any of its kind, or missing though it may not be.
    """
    try:
        with (
            open_plain(root / name) as descriptor,
            os.fdopen(descriptor, "rb", 0, closefd=False) as f,
        ):
            data = f.readall() if os.fstat(descriptor).st_size <= MAX_BESIDE_BYTES[name] else b""
    except FileNotFoundError:
        data = b""
        if name in FIRST:
            return None
    if not data:
        raise _repairable(root, name, "missing, empty or too large")
    return data


def _piece(root: Path, path: str, offset: int, size: int, sha256: str) -> Iterator[bytes]:
    """Yield a piece's bytes; it is judged before the last of them is given on."""
    running, held = hashlib.sha256(), b""
    try:
        with open_plain(root / path) as descriptor:
            for start in range(offset, offset + size, _READ_BYTES):
                yield held
                held = _read(descriptor, start, min(_READ_BYTES, offset + size - start))
                running.update(held)
    except OSError as error:
        raise _repairable(root, path, f"cannot be read: {error.strerror}") from error
    if running.hexdigest() != sha256:
        raise _repairable(root, path, f"other content within bytes {offset}-{offset + size - 1}")
    yield held


def _read(descriptor: int, start: int, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        got = os.pread(descriptor, count - len(parts), start + len(parts))
        if not got:
            break
        parts += got
    return parts


def _repairable(root: Path, path: str, what: str) -> DamagedError:
    return DamagedError(Problem(f"{path}: {what}", str(root), f"bundler repair {root}"))


def plain_bytes(manifest: Manifest) -> int:
    """Return about how long the tar is: for a look at the room there is."""
    return sum(file.size_bytes + 2 * BLOCK for file in manifest.files)
