"""Puts results together into one directory: every file recorded, the manifest written last.

What the bundle will hold is known before a byte is written: objects of the store by digest, and
small generated files. So the manifest is computed first, and a bundle that is already there and
right is left alone. A new one is put together beside its final name and renamed when whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from glob import escape
from hashlib import sha256 as sha256_of
from pathlib import Path

from bundler.errors import BundlerError, DamagedError, DoesNotFit, Problem, UnsafeInput
from bundler.events import Note, Progress, StepFinished, StepStarted
from bundler.manifest import MANIFEST_NAME, SUMS_NAME, BundleFile, Manifest, sums_text
from bundler.store import full_disk_is_an_error, share_or_copy, sync_folder
from bundler.value import check_relative_path, format_bytes, pretty_json
from bundler.verify import read_manifest, verify_bundle
from bundler.world import World


@dataclass(frozen=True, slots=True)
class Entry:
    """One file to be: bytes made here, or an object of the store."""

    file: BundleFile
    data: bytes | None = None
    """None: the object of the store with this digest."""


@dataclass
class Layout:
    """Collects the files of a bundle; refuses a path twice, also when only the case differs."""

    entries: dict[str, Entry] = field(default_factory=dict)
    _folded: dict[str, str] = field(default_factory=dict)

    def add_data(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Add a small generated file."""
        digest = sha256_of(data).hexdigest()
        self._add(Entry(_file(path, len(data), digest, executable), data))

    def add_object(
        self, path: str, sha256: str, size_bytes: int, *, executable: bool = False
    ) -> None:
        """Add an object of the store."""
        self._add(Entry(_file(path, size_bytes, sha256, executable)))

    def _add(self, entry: Entry) -> None:
        path = entry.file.path
        same = self.entries.get(path)
        if same is not None and same.file.sha256 == entry.file.sha256:
            return
        other = self._folded.get(path.casefold())
        if other is not None:
            raise UnsafeInput(
                f"two parts of the bundle want the path {path!r} (the other: {other!r})",
                hint="many filesystems do not tell upper from lower case: rename one of them",
            )
        self._folded[path.casefold()] = path
        self.entries[path] = entry

    def files(self) -> tuple[BundleFile, ...]:
        """Return all files, sorted by path."""
        return tuple(self.entries[path].file for path in sorted(self.entries))


def _file(path: str, size_bytes: int, sha256: str, executable: bool) -> BundleFile:
    try:
        check_relative_path(path)
    except ValueError as error:
        raise UnsafeInput(f"the bundle cannot hold {path!r}: {error}") from error
    return BundleFile(path=path, size_bytes=size_bytes, sha256=sha256, executable=executable)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle that is there."""

    manifest_sha256: str
    written: bool
    """False when the very same bundle was there already and every byte of it was read and right."""


def seal(layout: Layout, manifest: Manifest, output: Path, world: World) -> Sealed:
    """Write the bundle at `output`, unless it is there already, byte for byte.

    Raises:
        DoesNotFit: the disk is too small.
        UnsafeInput: `output` is there and is not a bundle.
        DamagedError: an object of the store is not what its name says.
    """
    output = output.resolve()
    with world.store.locked(f"output-{sha256_of(str(output).encode()).hexdigest()[:32]}"):
        return _seal(layout, manifest, output, world)


def _seal(layout: Layout, manifest: Manifest, output: Path, world: World) -> Sealed:
    world.report(StepStarted("seal"))
    sweep_leftovers(output, world)
    data = pretty_json(manifest).encode()
    digest = sha256_of(data).hexdigest()
    if _is_there_and_right(output, data):
        world.report(StepFinished("seal", "cached", f"{output}: every byte is as it should be"))
        return Sealed(digest, written=False)
    _refuse_to_replace(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_room(layout, output, world)
    beside = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.partial-"))
    try:
        _write(layout, beside, world)
        with full_disk_is_an_error(beside, "the manifest"):
            _write_file(beside / MANIFEST_NAME, data)
            _write_file(beside / SUMS_NAME, sums_text(manifest.files, digest).encode())
        beside.chmod(0o755)
        _sync_folders(beside)
        _prove(beside, world)
        _swap(beside, output)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    world.report(StepFinished("seal", "done", str(output)))
    return Sealed(digest, written=True)


def check_output(output: Path) -> None:
    """Refuse a place where no bundle can be put, before hours of work go by.

    Raises:
        UnsafeInput: something is there that is not a bundle, or nothing can be written there.
    """
    output = output.resolve()
    _refuse_to_replace(output)
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".bundler-"):
            pass
    except OSError as error:
        raise UnsafeInput(
            f"nothing can be written here: {error.strerror}",
            where=str(folder),
            hint="give an --output in a folder of yours",
        ) from error


def _is_there_and_right(output: Path, manifest_data: bytes) -> bool:
    try:
        if (output / MANIFEST_NAME).read_bytes() != manifest_data:
            return False
        return not verify_bundle(output).findings
    except (OSError, BundlerError):
        return False


def _refuse_to_replace(output: Path) -> None:
    if not output.exists() and not output.is_symlink():
        return
    try:
        read_manifest(output)
    except BundlerError as error:
        if output.is_dir() and not any(output.iterdir()):
            return
        raise UnsafeInput(
            "is there already and is not a bundle, so it is not replaced",
            where=str(output),
            hint="give another --output, or remove it yourself",
        ) from error


def _check_room(layout: Layout, output: Path, world: World) -> None:
    """Refuse before writing when even generated files and copies between disks cannot fit."""
    same_disk = world.store.root.stat().st_dev == output.parent.stat().st_dev
    need = sum(
        entry.file.size_bytes
        for entry in layout.entries.values()
        if entry.data is not None or not same_disk
    )
    free = shutil.disk_usage(output.parent).free
    if need > free:
        raise DoesNotFit(
            f"the bundle needs {format_bytes(need)} more on this disk, {format_bytes(free)} free",
            where=str(output.parent),
            hint="free some space, or give an --output on another disk",
        )


def _write(layout: Layout, root: Path, world: World) -> None:
    total = sum(entry.file.size_bytes for entry in layout.entries.values())
    done = 0
    folders: set[Path] = {root}
    for path in sorted(layout.entries):
        entry = layout.entries[path]
        target = root / path
        if target.parent not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        if entry.data is not None:
            with full_disk_is_an_error(root, path):
                _write_file(target, entry.data)
            target.chmod(0o755 if entry.file.executable else 0o644)
        else:
            _place(entry.file, target, world)
        done += entry.file.size_bytes
        world.report(Progress("seal", done, total))


def _place(file: BundleFile, target: Path, world: World) -> None:
    """Put an object of the store into the bundle, holding its bytes once where it can be.

    Objects are read-only and so are their links in the bundle. An executable needs another mode
    than the store's, so it gets bytes of its own (reflink or copy).
    """
    source = world.store.verified(file.sha256)
    how = share_or_copy(source, target, link=not file.executable)
    if how != "link":
        target.chmod(0o755 if file.executable else 0o644)


def _prove(beside: Path, world: World) -> None:
    """Read the new bundle back, before it takes its name and an older one is given up.

    Raises:
        DamagedError: what was written is not what should have been.
    """
    world.report(StepStarted("verify"))
    found = verify_bundle(
        beside,
        workers=min(4, os.cpu_count() or 1),
        progress=lambda done, total: world.report(Progress("verify", done, total)),
    )
    if found.findings:
        hint = "build again; if it happens twice, test the disk and the memory"
        raise DamagedError([Problem(str(f), str(beside), hint) for f in found.findings])
    world.report(StepFinished("verify", "done", f"{found.files} files read back"))


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folders(root: Path) -> None:
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        sync_folder(folder)
    sync_folder(root)


def _swap(beside: Path, output: Path) -> None:
    """Give the new bundle its name; the old one stays whole until that has happened."""
    old = beside.with_name(beside.name.replace(".partial-", ".old-"))
    if output.exists():
        output.rename(old)
    try:
        beside.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise
    sync_folder(output.parent)
    if old.exists():
        shutil.rmtree(old)


def sweep_leftovers(output: Path, world: World) -> None:
    """Remove what a killed build left beside `output`; bring back an old bundle it had moved."""
    for old in sorted(output.parent.glob(f".{escape(output.name)}.old-*")):
        if not output.exists():
            old.rename(output)
            world.report(Note(f"brought back {output}, which an interrupted build had set aside"))
        else:
            shutil.rmtree(old)
    for partial in output.parent.glob(f".{escape(output.name)}.partial-*"):
        shutil.rmtree(partial)
