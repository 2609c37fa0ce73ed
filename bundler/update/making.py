"""Makes a delta: from an old version, or from its manifest alone, to a new one that lies here.

With the old directory at hand, old bytes are found wherever they lie in the new files, and what is
like old bytes is packed against them. With its manifest alone, what travels is whole segments. The
delta is read back, and every file rebuilt from it once, before it gets its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path

import bundler
from bundler.descriptors import set_mode
from bundler.errors import DamagedError, Problem, RecipeError, UnsafeInput
from bundler.events import Progress, Report, silent
from bundler.manifest import MANIFEST_NAME, BundleFile, Manifest
from bundler.media.copies import bounded_bytes, right_manifest
from bundler.store import hash_file, sync_folder, write_durably
from bundler.update.clusters import OldClusters
from bundler.update.delta import (
    BESIDE_FOLDER,
    DELTA_NAME,
    DELTA_SIGNATURE_NAME,
    TRAVELLING,
    CarriedFile,
    Delta,
    Rebuilt,
    Repacked,
    check_delta,
    side_of,
)
from bundler.update.encoding import Change, Encoder, change_between, sought_files
from bundler.update.matching import BlockIndex
from bundler.update.packing import Packs
from bundler.update.reading import Pieces, check_pieces, read_signed, signed_manifest
from bundler.update.unpacking import span_bytes, zstd_version
from bundler.update.vouching import SignedManifest, SignText, delta_comment
from bundler.value import pretty_json


@dataclass(frozen=True, slots=True)
class Made:
    """A delta that was written."""

    root: Path
    delta: Delta
    signed: bool
    new_version_bytes: int
    """Of what would travel otherwise: every file of the new version."""

    @property
    def size_bytes(self) -> int:
        """Return how much travels in all: content, lists, signatures."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def read_version(path: Path) -> tuple[SignedManifest, Path | None]:
    """Return the manifest of a version, and its directory where it is all there.

    Args:
        path: a bundle's directory, or its `manifest.json` (alone, or with its signature beside it).

    Raises:
        RecipeError: there is nothing of that name.
        DamagedError: it is neither, or cannot be read.
    """
    if path.is_dir():
        believed = right_manifest(path)
        return signed_manifest(believed.data, path, str(path / MANIFEST_NAME)), path
    if not path.exists():
        hint = "give the directory that `bundler build` made, or the manifest of one"
        raise RecipeError("is not there: not a bundle", where=str(path), hint=hint)
    return read_signed(path), None


def make_delta(
    old: Path, new: Path, output: Path, *, sign: SignText | None = None,
    makers: tuple[str, ...] = (), doors: Mapping[str, bytes] | None = None, smallest: bool = False,
    report: Report = silent,
) -> Made:  # fmt: skip
    """Write the delta from `old` to `new` at `output`.

    Args:
        old: the version that is out there: its directory, or its manifest alone.
        new: the directory of the new version.
        output: the directory to make.
        sign: signs the delta's list; None leaves it unsigned.
        makers: public keys that signed either version.
        doors: further files of the delta: path → bytes.
        smallest: let clusters of ZIM files be packed again at the far end, which takes long there.
        report: whom to tell.

    Raises:
        RecipeError: the two are not versions of one bundle, or are the same.
        DamagedError: either is not as its manifest says where it is read.
        UnsafeInput: `output` is there.
    """
    before, old_root = read_version(old)
    after, new_root = read_version(new)
    if new_root is None:
        hint = "give the directory of the new version: its manifest alone holds no bytes"
        raise RecipeError("is not a bundle's directory", where=str(new), hint=hint)
    _check_versions(before.manifest, after.manifest)
    if os.path.lexists(output):
        raise UnsafeInput("is there already, not overwritten", where=str(output), hint="remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.partial-"))
    try:
        carried = _carry(partial, new_root, after, doors or {})
        delta = _encoded(
            before, after, old_root, new_root, partial, carried, report, smallest=smallest
        )
        delta = delta.model_copy(update={"makers": makers})
        _prove(delta, before.manifest, after.manifest, old_root, partial, report)
        data = pretty_json(delta).encode()
        write_durably(partial / DELTA_NAME, data)
        if sign is not None:
            write_durably(partial / DELTA_SIGNATURE_NAME, sign(data, delta_comment(delta, data)))
        set_mode(partial, 0o755)
        for folder in (partial / BESIDE_FOLDER, partial / "pieces", partial):
            sync_folder(folder)
        partial.rename(output)
        sync_folder(output.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    whole = sum(file.size_bytes for file in after.manifest.files)
    return Made(output, delta, sign is not None, whole)


def _check_versions(old: Manifest, new: Manifest) -> None:
    if old.name != new.name:
        raise RecipeError(
            f"these are two bundles, {old.name} and {new.name}, and not two versions of one",
            hint="give an older version of the same bundle",
        )
    if old == new:
        raise RecipeError(f"both are {new.name} {new.version}: nothing is to be updated")


def _carry(
    partial: Path, new_root: Path, after: SignedManifest, doors: Mapping[str, bytes]
) -> tuple[CarriedFile, ...]:
    """Write what lies beside the new manifest, and the doors; return how the delta lists them."""
    files = {f"{BESIDE_FOLDER}/{MANIFEST_NAME}": after.data, **doors}
    for name in TRAVELLING:
        data = bounded_bytes(new_root / name)
        if data is not None:
            files.setdefault(f"{BESIDE_FOLDER}/{name}", data)
    carried = []
    for path, data in sorted(files.items()):
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        write_durably(partial / path, data, mode=0o755 if path.endswith(".sh") else 0o644)
        sha256 = sha256_of(data).hexdigest()
        carried.append(CarriedFile(path=path, size_bytes=len(data), sha256=sha256))
    (partial / "pieces").mkdir()
    return tuple(carried)


def _encoded(
    before: SignedManifest, after: SignedManifest, old_root: Path | None, new_root: Path,
    partial: Path, carried: tuple[CarriedFile, ...], report: Report, *, smallest: bool,
) -> Delta:  # fmt: skip
    change = change_between(before.manifest, after.manifest)
    index, readable = _index(before.manifest, change, old_root, report)
    packs = Packs(partial, old_root)
    zims = _old_zims(old_root, readable) if smallest and old_root else {}
    encoder = Encoder(before.manifest, after.manifest, new_root, packs, index, readable, zims)
    total, done, rebuilt = sum(file.size_bytes for file in change.rebuilt), 0, []
    for file in change.rebuilt:
        _check_whole(new_root, file)
        rebuilt.append(Rebuilt(path=file.path, spans=encoder.spans(file)))
        done += file.size_bytes
        report(Progress("compare", done, total))
    return Delta(
        before=side_of(before.manifest, sha256_of(before.data).hexdigest()),
        after=side_of(after.manifest, sha256_of(after.data).hexdigest()),
        builder=f"bundler {bundler.__version__}", moved=change.moved, rebuilt=tuple(rebuilt),
        packs=packs.done(), files=carried, zstd=_zstd_needed(rebuilt),
    )  # fmt: skip


def _old_zims(root: Path, readable: frozenset[str]) -> dict[str, OldClusters]:
    return {path: OldClusters(root, path) for path in sorted(readable) if path.endswith(".zim")}


def _zstd_needed(rebuilt: list[Rebuilt]) -> str:
    again = any(isinstance(span, Repacked) for one in rebuilt for span in one.spans)
    return zstd_version() if again else ""


def _index(
    old: Manifest, change: Change, old_root: Path | None, report: Report
) -> tuple[BlockIndex | None, frozenset[str]]:
    """Return what finds old bytes, and which old files may be referred to: those read and right.

    Raises:
        DamagedError: an old file is not as its manifest says.
    """
    if old_root is None:
        return None, frozenset()
    files = sought_files(old, change.kept)
    total, done = sum(file.size_bytes for file in files), 0
    index = BlockIndex(old_root, total)
    problems = []
    for file in files:
        if index.add(file.path) != file.sha256:
            problems.append(_not_whole(old_root, file))
        done += file.size_bytes
        report(Progress("read", done, total))
    if problems:
        raise DamagedError(problems)
    index.close()
    return index, frozenset(file.path for file in files)


def _check_whole(root: Path, file: BundleFile) -> None:
    if hash_file(root / file.path) != file.sha256:
        raise DamagedError(_not_whole(root, file))


def _not_whole(root: Path, file: BundleFile) -> Problem:
    hint = f"bundler repair {root}, then the same command again"
    return Problem("is not as the bundle's manifest says", str(root / file.path), hint)


def _prove(
    delta: Delta, old: Manifest, new: Manifest, old_root: Path | None, partial: Path, report: Report
) -> None:
    """Read the delta back and rebuild every file from it, before it takes its name.

    Raises:
        DamagedError: what was written does not give what it should.
    """
    check_delta(delta, old, new)
    check_pieces(partial, delta)
    if old_root is None:
        return
    pieces, wanted = Pieces(partial, delta), {file.path: file for file in new.files}
    total, done = sum(wanted[one.path].size_bytes for one in delta.rebuilt), 0
    for one in delta.rebuilt:
        running = hashlib.sha256()
        for block in span_bytes(one.spans, 0, old_root, pieces):
            running.update(block)
            done += len(block)
            report(Progress("prove", done, total))
        if running.hexdigest() != wanted[one.path].sha256:
            hint = "run the same command again; if it happens twice, test disk and memory"
            raise DamagedError("does not come out as it should", where=one.path, hint=hint)
