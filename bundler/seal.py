"""Puts results together into one directory: every file recorded, the manifest written last.

What the bundle will hold is known before a byte is written: objects of the store by digest, and
small generated files. So the manifest is computed first, and a bundle that is already there and
right is left alone. A new one is put together beside its final name and renamed when whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import escape
from hashlib import sha256 as sha256_of
from pathlib import Path

from bundler.descriptors import set_mode
from bundler.errors import BundlerError, DamagedError, DoesNotFit, Problem, UnsafeInput
from bundler.events import Note, Progress, StepFinished, StepStarted
from bundler.first_start import start_once
from bundler.layout import Layout
from bundler.manifest import (
    BESIDE,
    COPY_NAME,
    HEAD_NAME,
    MANIFEST_NAME,
    SUMS_NAME,
    BundleFile,
    Manifest,
    sums_text,
)
from bundler.media.objects import Objects
from bundler.media.safeguards import head, parity_sets, segments_of
from bundler.media.shape import misshapen
from bundler.store import full_disk_is_an_error, share_or_copy, sync_folder, write_durably
from bundler.turns import turn
from bundler.value import format_size, pretty_json
from bundler.verify import read_manifest, verify_bundle
from bundler.world import World


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle that is there."""

    manifest_sha256: str
    written: bool
    """False when the very same bundle was there already and every byte of it was read and right."""


Beside = Callable[[bytes], Mapping[str, bytes]]
"""From the bytes of a manifest to the files that lie beside it: its signature."""


def unsigned(data: bytes) -> Mapping[str, bytes]:
    """Return nothing to put beside a manifest."""
    return {}


def seal(
    layout: Layout, manifest: Manifest, output: Path, world: World, beside: Beside = unsigned,
    *, parity_percent: float = 0,
) -> Sealed:  # fmt: skip
    """Write the bundle at `output`, unless it is there already, byte for byte.

    Args:
        layout: every file that the manifest lists, but for parity sets.
        manifest: what the bundle is.
        output: its directory.
        world: the store, and whom to tell.
        beside: gives the files that lie beside the manifest and cannot be listed in it.
        parity_percent: how much of the bundle can be damaged and brought back; 0 for no parity.

    Raises:
        DoesNotFit: the disk is too small.
        UnsafeInput: `output` is there and is not a bundle.
        DamagedError: an object of the store is not what its name says.
    """
    output = output.resolve()
    name = f"output-{sha256_of(str(output).encode()).hexdigest()[:32]}"
    with turn(world, name, f"the bundle {output}"):
        objects = Objects(world.store)
        layout, manifest = complete(layout, manifest, objects, world, parity_percent)
        return _seal(layout, manifest, output, world, objects, beside)


def complete(
    layout: Layout, manifest: Manifest, objects: Objects, world: World, parity_percent: float
) -> tuple[Layout, Manifest]:
    """Return the bundle with the digests of its segments and with its parity, both from the store."""
    layout = layout.with_segments(
        segments_of(layout.files(), layout.data(), objects, manifest.segment_bytes)
    )
    parity, made = parity_sets(
        layout.files(), layout.data(), objects, world, parity_percent, manifest.segment_bytes
    )
    for path, (sha256, size_bytes) in made.items():
        layout.add_object(path, sha256, size_bytes)
    segments = segments_of(layout.files(), layout.data(), objects, manifest.segment_bytes)
    layout = layout.with_segments(segments)
    said = manifest.model_dump() | {"files": layout.files(), "parity": parity}
    return layout, Manifest.model_validate(said)


def _seal(
    layout: Layout, manifest: Manifest, output: Path, world: World, objects: Objects, beside: Beside
) -> Sealed:
    world.report(StepStarted("seal"))
    sweep_leftovers(output, world)
    data = pretty_json(manifest).encode()
    _check_readable(data, output)
    digest = sha256_of(data).hexdigest()
    around = _around(manifest, data, objects, beside)
    if _is_there_and_right(output, data):
        _renew_beside(output, around)
        world.report(StepFinished("seal", "cached", f"{output}: every byte is as it should be"))
        return Sealed(digest, written=False)
    _refuse_to_replace(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_room(layout, output, world)
    partial = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.partial-"))
    try:
        _write(layout, partial, world, objects)
        with full_disk_is_an_error(partial, "the manifest"):
            (partial / COPY_NAME).parent.mkdir(exist_ok=True)
            for name, content in around.items():
                _write_file(partial / name, content)
        set_mode(partial, 0o755)
        _sync_folders(partial)
        _prove(partial, world)
        start_once(partial, world)
        _swap(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    world.report(StepFinished("seal", "done", str(output)))
    return Sealed(digest, written=True)


def _check_readable(manifest_data: bytes, output: Path) -> None:
    """Refuse to write a manifest that nobody will read: readers bound what they take in.

    Raises:
        DoesNotFit: it lists too much.
    """
    why = misshapen(manifest_data)
    if why:
        raise DoesNotFit(
            f"the bundle's manifest would not be read by anybody: {why}",
            where=str(output),
            hint="one bundle lists about 120,000 small files or 7 TiB of large ones: make two of it",
        )


def _around(manifest: Manifest, data: bytes, objects: Objects, beside: Beside) -> dict[str, bytes]:
    """Return all files that the manifest cannot list: itself twice, sums, signature, their parity."""
    sums = sums_text(manifest.files, sha256_of(data).hexdigest()).encode()
    first = {MANIFEST_NAME: data, SUMS_NAME: sums, **beside(data)}
    last = {HEAD_NAME: head(first, objects)} if manifest.parity is not None else {}
    return first | {COPY_NAME: data} | last


def check_output(output: Path) -> None:
    """Refuse a place where no bundle can be put, before hours of work go by.

    Raises:
        UnsafeInput: something is there that is not a bundle.
        DoesNotFit: nothing can be written there.
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
        raise DoesNotFit(
            f"nothing can be written here: {error.strerror}",
            where=str(folder),
            hint="give an --output in a folder of yours",
        ) from error


def _is_there_and_right(output: Path, manifest_data: bytes) -> bool:
    try:
        if (output / MANIFEST_NAME).read_bytes() != manifest_data:
            return False
        return all(finding.path in BESIDE for finding in verify_bundle(output).findings)
    except (OSError, BundlerError):
        return False


def _renew_beside(output: Path, around: Mapping[str, bytes]) -> None:
    """Bring the signature up to date: the key may be another one, or there was none."""
    (output / COPY_NAME).parent.mkdir(exist_ok=True)
    for name in BESIDE:
        path = output / name
        if name not in around:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != around[name]:
            write_durably(path, around[name])
    sync_folder(output)


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
            f"the bundle needs {format_size(need)} more on this disk, {format_size(free)} free",
            where=str(output.parent),
            hint="free some space, or give an --output on another disk",
        )


def _write(layout: Layout, root: Path, world: World, objects: Objects) -> None:
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
            set_mode(target, 0o755 if entry.file.executable else 0o644)
        else:
            _place(entry.file, target, objects)
        done += entry.file.size_bytes
        world.report(Progress("seal", done, total))


def _place(file: BundleFile, target: Path, objects: Objects) -> None:
    """Put an object of the store into the bundle, holding its bytes once where it can be.

    Objects are read-only and so are their links in the bundle. An executable needs another mode
    than the store's, so it gets bytes of its own (reflink or copy).
    """
    source = objects.path(file.sha256)
    how = share_or_copy(source, target, link=not file.executable)
    if how != "link":
        set_mode(target, 0o755 if file.executable else 0o644)


def _prove(partial: Path, world: World) -> None:
    """Read the new bundle back, before it takes its name and an older one is given up.

    Raises:
        DamagedError: what was written is not what should have been.
    """
    world.report(StepStarted("verify"))
    found = verify_bundle(
        partial,
        workers=min(4, os.cpu_count() or 1),
        progress=lambda done, total: world.report(Progress("verify", done, total)),
    )
    if found.findings:
        hint = "build again; if it happens twice, test the disk and the memory"
        raise DamagedError([Problem(str(f), str(partial), hint) for f in found.findings])
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


def _swap(partial: Path, output: Path) -> None:
    """Give the new bundle its name; the old one stays whole until that has happened."""
    old = partial.with_name(partial.name.replace(".partial-", ".old-"))
    if output.exists():
        output.rename(old)
    try:
        partial.rename(output)
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
