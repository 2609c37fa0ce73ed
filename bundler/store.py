"""Where bytes rest: objects named by their SHA-256, and the results of finished steps.

::

    STORE/objects/ab/abcdef…      one file per content, mode 0444; its name is its SHA-256
    STORE/results/<key>.json      what a step with this key produced: names → digests, and facts
    STORE/parts/<sha256>          a transfer that is not whole yet
    STORE/work                    scratch folders of steps; leftovers of dead processes are swept
    STORE/locks/<name>.lock       one writer per part or step

A file gets its final name only when it is whole, hashed and on the disk (write beside, fsync,
rename, fsync of the folder). An object is hashed again before it is used as an input, so a bit
that flipped in the store is noticed where it is used and never spreads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.descriptors import set_mode
from bundler.errors import BusyError, DamagedError, DoesNotFit, UnsafeInput
from bundler.value import canonical_json, check_sha256, format_size

_FICLONE = 0x40049409  # linux/fs.h: share the extents of one file with another
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What a finished step left: `files` maps names to (sha256, size); `facts` is its own word."""

    files: Mapping[str, tuple[str, int]]
    facts: Mapping[str, Any]


@contextlib.contextmanager
def full_disk_is_an_error(folder: Path, what: str) -> Iterator[None]:
    """Turn ENOSPC, EDQUOT and EFBIG inside the block into `DoesNotFit` that names the figures."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free
            raise DoesNotFit(
                f"the disk is full while writing {what}: {format_size(free)} left",
                where=str(folder),
                hint="free some space and run the same command again: finished work is kept",
            ) from error
        if error.errno == errno.EFBIG:
            raise DoesNotFit(
                f"the filesystem (or a limit) does not allow a file as large as {what}",
                where=str(folder),
                hint="FAT32 ends at 4 GiB: use exFAT, NTFS or ext4",
            ) from error
        raise


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut (POSIX; a no-op elsewhere)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` under `path` so that a reader sees the old file or the whole new one.

    The file is never readable by more people than `mode` says, not even while it is written.
    """
    with full_disk_is_an_error(path.parent, path.name):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            set_mode(Path(name), mode)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def share_or_copy(source: Path, target: Path, *, link: bool) -> str:
    """Put the content of `source` at the new path `target`, holding the bytes once where it can be.

    Tries a reflink (copy on write), then a hard link when `link` allows it, then a copy which is
    fsynced. Returns which one it was: `"reflink"`, `"link"` or `"copy"`. Raises FileExistsError
    when `target` exists.
    """
    import fcntl  # not on Windows, where bundles are used and repaired, never built

    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with open(source, "rb") as reader:
            try:
                fcntl.ioctl(descriptor, _FICLONE, reader.fileno())
                return "reflink"
            except OSError as error:
                # Not this filesystem, or another one: the next way is as good.
                if error.errno not in (
                    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS,
                    errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.EISDIR,
                ):  # fmt: skip
                    raise
            if link:
                os.unlink(target)
                try:
                    os.link(source, target)
                    return "link"
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                        raise
                os.close(descriptor)
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with full_disk_is_an_error(target.parent, target.name):
                with open(descriptor, "wb", closefd=False) as writer:
                    shutil.copyfileobj(reader, writer, _BLOCK)
                os.fsync(descriptor)
            return "copy"
    finally:
        os.close(descriptor)


class Store:
    """Content-addressed objects and the results of steps, safe for several builds at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("objects", "results", "parts", "work", "locks"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # -- objects ---------------------------------------------------------------------------------

    def object_path(self, sha256: str) -> Path:
        """Return where an object rests or would rest; says nothing about its being there."""
        check_sha256(sha256)
        return self.root / "objects" / sha256[:2] / sha256

    def has(self, sha256: str, size_bytes: int | None = None) -> bool:
        """Tell whether an object of this name (and size) is there, without hashing it."""
        try:
            found = self.object_path(sha256).stat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and size_bytes in (None, found.st_size)

    def verified(self, sha256: str) -> Path:
        """Return the path of an object after hashing it; a damaged one is removed.

        Raises:
            DamagedError: it is not there, or its bytes no longer match its name.
        """
        path = self.object_path(sha256)
        if not path.is_file():
            raise DamagedError(f"object {sha256[:12]} is missing from the store", where=str(path))
        if hash_file(path) != sha256:
            path.unlink()
            raise DamagedError(
                f"object {sha256[:12]} in the store was damaged and has been removed",
                where=str(path),
                hint="run the same command again: it is fetched or made anew",
            )
        return path

    def adopt(
        self, path: Path, *, move: bool = False, expect: str | None = None
    ) -> tuple[str, int]:
        """Take a file into the store and return its (sha256, size in bytes).

        `move` consumes `path` (a file we made); otherwise its bytes are shared by reflink or
        copied: a user's file is never hard-linked, since they may write to it later.

        Raises:
            DamagedError: `expect` is given and is not the file's digest.
            UnsafeInput: `path` is not a regular file.
        """
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UnsafeInput("only regular files are taken into the store", where=str(path))
        with self.scratch() as folder:
            beside = folder / "object"
            if move:
                try:
                    os.replace(path, beside)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    share_or_copy(path, beside, link=False)
                    path.unlink()
            else:
                share_or_copy(path, beside, link=False)
            sha256 = hash_file(beside)
            if expect is not None and sha256 != expect:
                raise DamagedError(
                    f"has SHA-256 {sha256[:12]}…, expected {expect[:12]}…", where=str(path)
                )
            size_bytes = beside.stat().st_size
            self._name(beside, sha256)
            return sha256, size_bytes

    def put(self, data: bytes) -> tuple[str, int]:
        """Store `data` as an object and return its (sha256, size in bytes)."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256, len(data)):
            with self.scratch() as folder:
                beside = folder / "object"
                with full_disk_is_an_error(self.root, "an object of the store"):
                    beside.write_bytes(data)
                self._name(beside, sha256)
        return sha256, len(data)

    def finish_part(self, sha256: str) -> None:
        """Give a whole and hashed transfer its final name."""
        self._name(self.part_path(sha256), sha256)

    def part_path(self, sha256: str) -> Path:
        """Return where the transfer of an object is collected until it is whole."""
        check_sha256(sha256)
        return self.root / "parts" / sha256

    def _name(self, beside: Path, sha256: str) -> None:
        final = self.object_path(sha256)
        final.parent.mkdir(exist_ok=True)
        os.chmod(beside, 0o444)
        with full_disk_is_an_error(self.root, "an object of the store"):
            descriptor = os.open(beside, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(beside, final)
            sync_folder(final.parent)

    # -- results of steps --------------------------------------------------------------------------

    def result(self, key: str) -> StoredResult | None:
        """Return what the step with this key left, if all its objects are still here, else None.

        Raises:
            DamagedError: the record itself cannot be read; it is removed first.
        """
        path = self.root / "results" / f"{check_sha256(key)}.json"
        try:
            record = json.loads(path.read_bytes())
            files = {name: (str(sha), int(size)) for name, (sha, size) in record["files"].items()}
            facts = dict(record["facts"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            path.unlink()
            raise DamagedError(
                "the record of a finished step was damaged and has been removed",
                where=str(path),
                hint="run the same command again: the step is done anew",
            ) from error
        if all(self.has(sha256, size) for sha256, size in files.values()):
            return StoredResult(files, facts)
        return None

    def keep_result(self, key: str, result: StoredResult) -> None:
        """Record that the step with this key is finished and what it left."""
        write_durably(
            self.root / "results" / f"{check_sha256(key)}.json",
            canonical_json({"files": dict(result.files), "facts": dict(result.facts)}),
        )

    def adopt_folder(self, folder: Path) -> dict[str, tuple[str, int]]:
        """Move every regular file below `folder` into the store; return path → (sha256, size)."""
        files = {}
        for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
            files[path.relative_to(folder).as_posix()] = self.adopt(path, move=True)
        return files

    # -- scratch and locks -------------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty folder on the store's filesystem, removed at the end."""
        self._sweep()
        with tempfile.TemporaryDirectory(
            dir=self.root / "work", prefix=f"pid{os.getpid()}-", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)

    def _sweep(self) -> None:
        """Remove scratch folders whose process is gone (killed, or the power went)."""
        for folder in (self.root / "work").glob("pid*-*"):
            pid = folder.name[3:].split("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, name: str, *, timeout_seconds: float = -1) -> Iterator[None]:
        """Hold the store's lock called `name`; waits for ever unless a timeout is given.

        The lock belongs to the open file, so a dead process never holds one.

        Raises:
            BusyError: it was not free within the timeout.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=timeout_seconds)
        except Timeout as error:
            raise BusyError(
                f"another bundler is working on {name}",
                hint="wait for it to finish, or stop it, then run the same command again",
            ) from error
        holder = self._holder_path(name)
        try:
            holder.write_text(str(os.getpid()))
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def holder(self, name: str) -> int | None:
        """Return the process that holds the lock called `name`, as far as it can be told."""
        try:
            process = int(self._holder_path(name).read_text()[:20])
        except (OSError, ValueError):
            return None
        return process if Path(f"/proc/{process}").exists() else None

    def _holder_path(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.pid"
