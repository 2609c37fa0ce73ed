"""The switch: old files go, new ones get their names. Every step can be cut off and done again.

::

    1. everything new is in the staging folder, read back and forced to the disk
    2. `old-manifest.json` is written there, then `switch`      from here on there is no way back
    3. old files that change their name go into the staging folder; those that the new version has
       no more are removed
    4. `cleared` is written there: from here on nothing is removed
    5. new files get their names, in the place of old ones; the programs of the far end come after
       the rest, then what lies beside the manifest, and the manifest last
    6. the staging folder is removed

Before 2 the old version is whole. After it a run of the same update does what is missing: 3 removes
only what is of the old version, and no new file has its name before 4; 5 moves what is still in the
staging folder. The two marks are forced to the disk before what they announce.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from bundler.descriptors import NEVER_THROUGH_LINKS, set_mode
from bundler.errors import DamagedError, Problem, UnsafeInput
from bundler.manifest import BESIDE, MANIFEST_NAME, SWITCH_NAME, BundleFile, Manifest
from bundler.media.copies import bounded_bytes
from bundler.media.mending import safe_parent
from bundler.store import full_disk_is_an_error, sync_folder
from bundler.update.delta import kept_paths
from bundler.update.staging import PART, STAGING_NAME, Staged

OLD_MANIFEST = "old-manifest.json"
OLD_SIGNATURE = "old-manifest.json.minisig"
PROGRAMS = ("app/", "runtime/")
"""What applies an update at the far end: it changes last, and files of the same name at once."""
_SWITCH, _CLEARED = PurePosixPath(SWITCH_NAME).name, "cleared"


def switching_to(root: Path) -> str:
    """Return the mark of the update that was cut off after the old version was given up, else ""."""
    data = bounded_bytes(root / STAGING_NAME / _SWITCH, 1 << 10)
    return "" if data is None else data.decode(errors="replace") or "?"


def prepare(
    root: Path, old_manifest: bytes, old_signature: bytes | None, beside: Mapping[str, bytes]
) -> None:
    """Put what the switch needs beside the built files, and force all of it to the disk."""
    folder = root / STAGING_NAME
    with full_disk_is_an_error(root, "the lists of the update"):
        _write(folder / OLD_MANIFEST, old_manifest)
        if old_signature is not None:
            _write(folder / OLD_SIGNATURE, old_signature)
        for name in beside:
            _write(_staged_beside(root, name), beside[name])
    sync_folder(folder)


def renew_beside(root: Path, beside: Mapping[str, bytes]) -> None:
    """Write what will lie beside the listed files once more, for a switch that was cut off."""
    for name in beside:
        _write(_staged_beside(root, name), beside[name])
    sync_folder(root / STAGING_NAME)


def _staged_beside(root: Path, name: str) -> Path:
    return root / STAGING_NAME / f"beside-{BESIDE.index(name)}"


def switch(
    root: Path, staged: tuple[Staged, ...], old: Manifest, new: Manifest, beside: Iterable[str],
    mark: str,
) -> None:  # fmt: skip
    """Turn the old version into the new one, or go on with that.

    Args:
        root: the bundle.
        staged: files that are not kept.
        old: the version that was there.
        new: the version to be.
        beside: names of what lies beside the new manifest.
        mark: which update this is.
    """
    folder = root / STAGING_NAME
    _mark(folder / _SWITCH, mark)
    if not (folder / _CLEARED).is_file():
        touched = _clear(root, staged, old, new)
        for path in sorted(touched):
            sync_folder(path)
        sync_folder(folder)
        _mark(folder / _CLEARED, mark)
    missing = _place_all(root, staged, old, new, set(beside))
    close_staging(root)
    if missing:  # only where another run had begun, and its staging folder lost something since
        hint = f"bundler repair {root}: the new version brings its own parity"
        raise DamagedError(
            [Problem("was lost in the staging folder", str(root / path), hint) for path in missing]
        )


def _mark(path: Path, mark: str) -> None:
    if not path.is_file():
        partial = path.with_name(path.name + PART)
        _write(partial, mark.encode())
        os.replace(partial, path)
        sync_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NEVER_THROUGH_LINKS
    descriptor = os.open(path, flags, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _clear(root: Path, staged: tuple[Staged, ...], old: Manifest, new: Manifest) -> set[Path]:
    """Take away what is of the old version alone; return the folders that were touched."""
    touched = set()
    for one in staged:
        source = root / one.source
        if one.source and os.path.lexists(source):
            source.rename(root / STAGING_NAME / one.name)
            touched.add(source.parent)
    wanted = {file.path for file in new.files}
    for file in old.files:
        path = root / file.path
        if file.path not in wanted and os.path.lexists(path):
            path.unlink()
            touched.add(path.parent)
    removed = _remove_empty(root, old)
    return (touched | {folder.parent for folder in removed}) - removed


def _remove_empty(root: Path, old: Manifest) -> set[Path]:
    """Remove folders in which nothing is left."""
    folders = {root / parent for f in old.files for parent in Path(f.path).parents} - {root}
    removed = set()
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # what is not empty stays
            folder.rmdir()
            removed.add(folder)
    return removed


def _place_all(
    root: Path, staged: tuple[Staged, ...], old: Manifest, new: Manifest, beside: set[str]
) -> list[str]:
    """Give every new file its name; return the paths that there is no file for."""
    touched = set()
    missing: list[str] = []
    for one in sorted(staged, key=lambda one: one.file.path.startswith(PROGRAMS)):
        touched |= _place(root, root / STAGING_NAME / one.name, one.file.path, missing)
        _set_mode(root / one.file.path, one.file)
    for file in changed_modes(old, new):
        _set_mode(root / file.path, file)
    for name in BESIDE:
        if name in beside and name != MANIFEST_NAME:
            touched |= _place(root, _staged_beside(root, name), name, missing)
        elif name not in beside and os.path.lexists(root / name):
            (root / name).unlink()
            touched.add((root / name).parent)
    for path in sorted(touched | {root}):
        sync_folder(path)
    _place(root, _staged_beside(root, MANIFEST_NAME), MANIFEST_NAME, missing)
    sync_folder(root)
    return missing


def _place(root: Path, source: Path, path: str, missing: list[str]) -> set[Path]:
    """Give a file its name; return every folder above it, since some may be new.

    A file that is neither in the staging folder nor in its place is added to `missing`.
    """
    parent = safe_parent(root, path)
    if os.path.lexists(source):
        os.replace(source, root / path)
    elif not os.path.lexists(root / path):
        missing.append(path)
    return {parent}


def _set_mode(path: Path, file: BundleFile) -> None:
    """Mark a program executable, or take that from what is none, where it is not so already."""
    if not os.path.lexists(path):  # told as missing
        return
    mode = stat.S_IMODE(path.lstat().st_mode)
    wanted = mode | 0o111 if file.executable else mode & ~0o111
    if mode != wanted:
        if path.lstat().st_nlink > 1:  # another bundle, or a store, has the same file
            _own_copy(path)
        set_mode(path, wanted)


def _own_copy(path: Path) -> None:
    """Put a copy in the place of a file that has other names too."""
    beside = path.with_name(path.name + PART)
    shutil.copyfile(path, beside)
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    beside.replace(path)


def changed_modes(old: Manifest, new: Manifest) -> list[BundleFile]:
    """Return the kept files that become programs, or are none any more."""
    before = {file.path: file for file in old.files}
    kept = kept_paths(old, new)
    return [f for f in new.files if f.path in kept and before[f.path].executable != f.executable]


def close_staging(root: Path) -> None:
    """Remove the staging folder, the marks last but one: what is left of it says what was done.

    Raises:
        UnsafeInput: something lies in it that no update put there.
    """
    folder = root / STAGING_NAME
    found = sorted(folder.iterdir(), key=lambda path: path.name in (_SWITCH, _CLEARED))
    for path in (folder, *found):
        kind = path.lstat().st_mode
        if not (stat.S_ISDIR(kind) if path is folder else stat.S_ISREG(kind)):
            hint = "look at it and remove it; the bundle itself is up to date"
            raise UnsafeInput("was not put there by an update", where=str(path), hint=hint)
    for path in found:
        path.unlink()
    folder.rmdir()
    sync_folder(root)
