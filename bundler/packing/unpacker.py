"""Reads a packed bundle: every byte of the tar is known from the manifest before it arrives.

Nothing is extracted by the archive's word. The manifest is read and judged first; from then on each
header must be the very bytes that the manifest leads to, and each piece of content has its digest.
Files are made below an open folder, never through a link, and the folder gets its name at the end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler.descriptors import set_mode
from bundler.errors import BundlerError, DamagedError, DoesNotFit, Problem, UnsafeInput
from bundler.grouping import pieces_of
from bundler.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    SUMS_NAME,
    BundleFile,
    Manifest,
    sums_text,
)
from bundler.media.copies import judged
from bundler.media.head import head_faults
from bundler.media.shape import MAX_MANIFEST_BYTES
from bundler.packing.frames import Frames
from bundler.packing.members import (
    BLOCK,
    END,
    FIRST,
    MAX_BESIDE_BYTES,
    Member,
    describe,
    header,
    last_beside,
    padding,
    read_first,
    size_in,
)
from bundler.packing.packer import Told
from bundler.packing.resuming import folder_to_be, kept_files
from bundler.store import full_disk_is_an_error, sync_folder
from bundler.value import format_size

Judge = Callable[[Path, Manifest, bytes], None]
"""Given a folder with manifest and signature; raises TrustError to stop before all else is read."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True, slots=True)
class Opened:
    """The first member of a pack, read."""

    manifest: Manifest
    data: bytes


def open_pack(frames: Frames) -> Opened:
    """Read the manifest, which comes first.

    Raises:
        UnsafeInput: it is no packed bundle.
        DamagedError: it is cut off or damaged.
    """
    top, size, created = read_first(frames.exactly(BLOCK))
    if size > MAX_MANIFEST_BYTES:
        raise UnsafeInput(f"its manifest says to have {size} bytes: no bundle's has")
    data = frames.exactly(size)
    _expect(frames, padding(size), "the zeros behind the manifest")
    found = judged(MANIFEST_NAME, data, {}, {})
    if found.manifest is None:
        raise DamagedError(f"its manifest cannot be read: {found.why_not}", hint="get it anew")
    if (top, created) != (found.manifest.name, found.manifest.created):
        raise UnsafeInput("its first header is not the one of its manifest", hint="get it anew")
    return Opened(found.manifest, data)


def unpack_bundle(
    frames: Frames, opened: Opened, output: Path, judge: Judge, *, told: Told
) -> None:
    """Write the bundle to the new directory `output`; goes on where it was cut off.

    Args:
        frames: where `opened` was read from.
        opened: the manifest.
        output: what must not be there yet.
        judge: asked before anything but manifest and signature is written.
        told: hears how far it is, in bytes of the bundle.

    Raises:
        TrustError: of `judge`.
        UnsafeInput: something is in the pack that its manifest does not lead to.
        DamagedError: the pack is cut off, or content is not what was promised.
        DoesNotFit: the disk is too small.
        BusyError: another process unpacks to the same place.
    """
    check_output(output)
    with folder_to_be(output) as folder:
        kept = kept_files(folder, opened.manifest)
        _check_room(opened.manifest, output, kept)
        _Unpacking(frames, opened, folder, kept).run(judge, told)
        for place in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            sync_folder(place)
        set_mode(folder, 0o755)
        sync_folder(folder)


def check_output(output: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        UnsafeInput: it is taken.
    """
    if output.is_symlink() or (output.exists() and not _is_empty(output)):
        raise UnsafeInput(
            "is there already and is not overwritten", where=str(output),
            hint="give another DIR, or remove it yourself",
        )  # fmt: skip


def _is_empty(output: Path) -> bool:
    return output.is_dir() and not any(output.iterdir())


def _check_room(manifest: Manifest, output: Path, kept: Set[str]) -> None:
    need = sum(file.size_bytes for file in manifest.files if file.path not in kept)
    free = shutil.disk_usage(output.parent).free
    if need > free:
        raise DoesNotFit(
            f"the bundle has {format_size(need)}, {format_size(free)} are free",
            where=str(output.parent), hint="free some space, or give a DIR on another disk",
        )  # fmt: skip


class _Unpacking:
    def __init__(self, frames: Frames, opened: Opened, folder: Path, kept: Set[str]) -> None:
        self._frames, self._folder, self._kept = frames, folder, kept
        self._manifest, self._data = opened.manifest, opened.data
        self._done = 0

    def run(self, judge: Judge, told: Told) -> None:
        self._write(MANIFEST_NAME, [self._data])
        ahead = self._ahead()
        for name in FIRST:
            if self._is_next(ahead, name):
                ahead = self._beside(name, ahead)
        judge(self._folder, self._manifest, self._data)
        for name in last_beside(self._manifest):
            ahead = self._beside(name, ahead)
        if self._manifest.parity is not None:
            self._check_head()
        for file in self._manifest.files:
            ahead = self._file(file, ahead, told)
        if ahead != END[:BLOCK]:
            raise _foreign("the end of the archive", ahead)
        _expect(self._frames, END[BLOCK:], "the end of the archive")
        self._frames.finish()

    def _ahead(self) -> bytes:
        return self._frames.exactly(BLOCK)

    def _header(self, member: Member) -> bytes:
        return header(self._manifest.name, member, self._manifest.created)

    def _is_next(self, ahead: bytes, name: str) -> bool:
        """Tell whether the header that was read is of the optional file `name`."""
        return any(ahead) and ahead == self._header(Member(name, size_in(ahead)))

    def _beside(self, name: str, ahead: bytes) -> bytes:
        size = size_in(ahead)
        if not 0 < size <= MAX_BESIDE_BYTES[name] or ahead != self._header(Member(name, size)):
            raise _foreign(name, ahead)
        data = self._frames.exactly(size)
        self._check_beside(name, data)
        self._write(name, [data])
        _expect(self._frames, padding(size), name)
        return self._ahead()

    def _check_beside(self, name: str, data: bytes) -> None:
        sums = sums_text(self._manifest.files, hashlib.sha256(self._data).hexdigest()).encode()
        expected = {SUMS_NAME: sums, COPY_NAME: self._data}.get(name, data)
        if data != expected:
            raise DamagedError(f"{name} does not say what the manifest says", hint="get it anew")

    def _check_head(self) -> None:
        problems = [
            Problem(f"{name}: {why}") for name, why in head_faults(self._folder, self._data)
        ]
        if problems:
            raise DamagedError(problems)

    def _file(self, file: BundleFile, ahead: bytes, told: Told) -> bytes:
        expected = self._header(Member(file.path, file.size_bytes, file.executable))
        if ahead != expected[:BLOCK]:
            raise _foreign(file.path, ahead)
        _expect(self._frames, expected[BLOCK:], file.path)
        content = self._content(file, told)
        if file.path in self._kept:
            deque(content, maxlen=0)  # what comes is held to its digest all the same
        else:
            self._write(file.path, content, executable=file.executable)
        _expect(self._frames, padding(file.size_bytes), file.path)
        return self._ahead()

    def _content(self, file: BundleFile, told: Told) -> Iterator[bytes | memoryview]:
        total = sum(one.size_bytes for one in self._manifest.files)
        for piece in pieces_of(file, self._manifest.segment_bytes):
            running, left = hashlib.sha256(), piece.size_bytes
            while left:
                part = self._frames.take(left)
                running.update(part)
                left -= len(part)
                yield part
            if running.hexdigest() != piece.sha256:
                end = piece.offset + piece.size_bytes - 1
                raise DamagedError(
                    f"{file.path}: other content within bytes {piece.offset}-{end} than its "
                    f"manifest promises (before byte {self._frames.offset} of the packed file)",
                    hint="get the file anew",
                )
            self._done += piece.size_bytes
            told(self._done, total)

    def _write(
        self, path: str, parts: Iterator[bytes | memoryview] | list[bytes], *,
        executable: bool = False,
    ) -> None:  # fmt: skip
        """Make one new file below the folder, one name at a time, following no link."""
        with full_disk_is_an_error(self._folder, path), _folder_of(self._folder, path) as above:
            name = path.rpartition("/")[2]
            descriptor = os.open(name, _NEW, 0o755 if executable else 0o644, dir_fd=above)
            with os.fdopen(descriptor, "wb", buffering=0) as stream:
                for part in parts:
                    view = memoryview(part)
                    while view:
                        view = view[stream.write(view) or 0 :]
                set_mode(descriptor, 0o755 if executable else 0o644)
                os.fsync(descriptor)


@contextmanager
def _folder_of(root: Path, path: str) -> Iterator[int]:
    """Open the folder that holds `path`, made where it is missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in path.split("/")[:-1]:
            try:
                os.mkdir(part, 0o755, dir_fd=descriptor)
            except FileExistsError:
                pass  # an earlier member made it; opening it says if it is anything else
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _expect(frames: Frames, expected: bytes, where: str) -> None:
    found = frames.exactly(len(expected))
    if found != expected:
        raise _foreign(where, found)


def _foreign(expected: str, found: bytes) -> BundlerError:
    return UnsafeInput(
        f"where {expected!r} must come there is {describe(found)}: nothing of it was used",
        hint="it was not made by `bundler pack`, or was changed since; get it anew",
    )
