"""The folder of a bundle on a stick, and the order in which it changes so that it can be cut off.

::

    clinic/.bundler-deploy/             there as long as the copy is not whole: verify says incomplete
    clinic/.bundler-deploy/<sha>.json   manifests of what lay here before, and of what is being copied
    clinic/.bundler-deploy/<sha>.part   a file that is not whole yet, under the digest it will have

1. The working folder comes first, then manifests into it, then the old manifest and all that stands
   beside it goes: from here on nothing says that this is a bundle.
2. Each file is written as a part, flushed, and gets its name only when it is whole.
3. All that was written is read back. Then come the files beside the manifest, the manifest last.
4. The working folder goes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bundler.descriptors import set_mode
from bundler.errors import UnsafeInput
from bundler.manifest import BESIDE, COPY_NAME, MANIFEST_NAME, UNFINISHED_NAME, Manifest
from bundler.media.copies import bounded_bytes, judged

_PART = re.compile(r"([0-9a-f]{64})\.part")
_KEPT = re.compile(r"[0-9a-f]{64}\.json")
_MOST_MANIFESTS = 8
_MOST_BYTES = 32 << 20  # of an earlier manifest, which only saves work: 150,000 files


@dataclass(frozen=True, slots=True)
class There:
    """Something that lies on the stick."""

    path: str
    regular: bool
    folder: bool
    size_bytes: int
    links: int
    executable: bool


class Place:
    """One bundle's folder on one stick."""

    def __init__(self, target: Path, name: str) -> None:
        self.target = target
        self.root = target if _is_the_bundle(target, name) else target / name
        self.work = self.root / UNFINISHED_NAME
        self._device = target.stat().st_dev if target.is_dir() else None

    def check_is_there(self) -> None:
        """Make sure that the stick is still mounted: its mount point is an ordinary folder without it.

        Raises:
            OSError: it is not.
        """
        if self.target.stat().st_dev != self._device:
            raise OSError(errno.ENODEV, "no stick is mounted here any more", str(self.target))

    def part(self, sha256: str) -> Path:
        """Return where the file with this digest grows."""
        return self.work / f"{sha256}.part"

    # -- looking -----------------------------------------------------------------------------------

    def listing(self) -> dict[str, There]:
        """Return everything in the folder but what belongs to an unfinished copy; follows no links.

        Raises:
            UnsafeInput: the folder itself, or the working folder, is a link or no folder.
        """
        for folder in (self.root, self.work):
            if os.path.lexists(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
                raise UnsafeInput(
                    "is in the way: it is a link or a file, not a folder", where=str(folder),
                    hint="look at what it is and move it elsewhere",
                )  # fmt: skip
        return {there.path: there for there in self._walk()} if self.root.is_dir() else {}

    def _walk(self) -> Iterator[There]:
        pending = [self.root]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    folder = stat.S_ISDIR(info.st_mode)
                    if entry.name == UNFINISHED_NAME and folder and entry.path == str(self.work):
                        continue
                    yield There(
                        Path(entry.path).relative_to(self.root).as_posix(),
                        stat.S_ISREG(info.st_mode), folder, info.st_size, info.st_nlink,
                        bool(info.st_mode & 0o100),
                    )  # fmt: skip
                    if folder:
                        pending.append(Path(entry.path))

    def parts(self) -> dict[str, int]:
        """Return digest → bytes of the files that were begun."""
        found = {}
        for path in sorted(self.work.iterdir()) if self.work.is_dir() else ():
            named = _PART.fullmatch(path.name)
            if named and stat.S_ISREG(path.lstat().st_mode):
                found[named[1]] = path.lstat().st_size
        return found

    def earlier(self) -> list[Manifest]:
        """Return the manifests of what lay here before, or was begun; unreadable ones are no help."""
        kept = sorted(self.work.iterdir()) if self.work.is_dir() else []
        places = [path for path in kept if _KEPT.fullmatch(path.name)][:_MOST_MANIFESTS]
        found = []
        for path in (self.root / MANIFEST_NAME, self.root / COPY_NAME, *places):
            data = bounded_bytes(path, _MOST_BYTES)
            manifest = judged(path.name, data, {}, {}).manifest if data is not None else None
            if manifest is not None:
                found.append(manifest)
        return found

    # -- changing ----------------------------------------------------------------------------------

    def begin(self, manifest_sha256: str, data: bytes) -> None:
        """Mark the folder as unfinished, and take away what says that it is a bundle."""
        self.make_folders([self.work])
        for name in (MANIFEST_NAME, COPY_NAME):
            old = bounded_bytes(self.root / name)
            found = judged(name, old, {}, {}) if old is not None else None
            if found is not None and found.manifest is not None:
                self.put(self.work / f"{found.sha256}.json", found.data)
        self.put(self.work / f"{manifest_sha256}.json", data)
        for name in BESIDE:
            with contextlib.suppress(FileNotFoundError):
                (self.root / name).unlink()
        self.flush_folders(
            {
                self.work,
                self.root,
                *(self.root / n for n in ("parity",) if (self.root / n).is_dir()),
            }
        )

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, and the folders that are empty without them."""
        changed: set[Path] = set()
        for path in paths:
            place = self.root / path
            place.unlink()
            for folder in [f for f in place.parents if f.is_relative_to(self.root)][:-1]:
                if any(folder.iterdir()):
                    break
                folder.rmdir()
            changed.add(place.parent)
        self.flush_folders(folder for folder in changed if folder.is_dir())

    def finish(self, beside: dict[str, bytes]) -> None:
        """Write what stands beside the listed files, the manifest last."""
        for name in sorted(
            beside, key=lambda name: (name == MANIFEST_NAME, name == COPY_NAME, name)
        ):
            self.make_folders([(self.root / name).parent])
            self.put(self.root / name, beside[name])

    def close(self) -> None:
        """Take the working folder away: the copy is whole."""
        for path in sorted(self.work.iterdir()):
            path.unlink()
        self.work.rmdir()
        self.flush_folders([self.root])

    def put(self, path: Path, data: bytes) -> None:
        """Write a small file beside its place, flush it, rename it, flush its folder."""
        self.check_is_there()
        new = self.work / "new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
        self.flush_folders([path.parent])

    def make_folders(self, folders: Iterable[Path]) -> None:
        """Make folders with those above them, and flush what names them."""
        self.check_is_there()
        changed = set()
        for folder in sorted(folders):
            missing = [f for f in (folder, *folder.parents) if not f.is_dir()]
            folder.mkdir(parents=True, exist_ok=True)
            changed |= {each.parent for each in missing}
        self.flush_folders(changed)

    def flush_folders(self, folders: Iterable[Path]) -> None:
        """Make names durable."""
        for folder in sorted(set(folders)):
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def mark(file: int | Path, *, executable: bool) -> None:
    """Give a file its mode where the filesystem has modes; FAT and exFAT have none."""
    set_mode(file, 0o755 if executable else 0o644)


def _is_the_bundle(target: Path, name: str) -> bool:
    """Tell whether a target is already the folder of this bundle, and not the stick above it."""
    if target.name != name:
        return False
    if (target / UNFINISHED_NAME).is_dir():
        return True
    data = bounded_bytes(target / MANIFEST_NAME)
    found = judged(MANIFEST_NAME, data, {}, {}).manifest if data is not None else None
    return found is not None and found.name == name
