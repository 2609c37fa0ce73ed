"""Holds a bundle against its manifest: names every file, and every range in it, that is not right.

Says nothing about who made it: digests without a signature detect accidents, not attackers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Literal

from bundler.errors import DamagedError, Problem, UnsafeInput
from bundler.grouping import Piece, pieces_of
from bundler.manifest import (
    BESIDE,
    COPY_NAME,
    HEAD_NAME,
    MANIFEST_NAME,
    SUMS_NAME,
    UPDATE_NAME,
    BundleFile,
    Manifest,
    sums_text,
)
from bundler.media.copies import Candidate, bounded_bytes, judged, right_manifest
from bundler.media.head import head_faults
from bundler.printable import printable_name
from bundler.segments import hash_range, kind_of

Kind = Literal["missing", "extra", "changed", "renamed", "unsafe", "mode"]
Span = tuple[int, int]
"""First byte of a range, and the first one behind it."""
_MOST_RANGES_SAID = 5


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is not as the manifest says."""

    path: str
    kind: Kind
    detail: str = ""
    ranges: tuple[Span, ...] = ()
    """Of a changed file: which of its bytes are not right, as far as the manifest can tell."""

    def __str__(self) -> str:
        detail = f" ({printable_name(self.detail)})" if self.detail else ""
        return f"{self.kind:8} {printable_name(self.path)}{detail}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and what was found."""

    manifest: Manifest
    manifest_sha256: str
    files: int
    size_bytes: int
    findings: tuple[Finding, ...]
    manifest_data: bytes = field(default=b"", repr=False)
    """The bytes that were read as the manifest: what a signature is held against, and no others."""


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of the bundle at `root`, from its copy if it is damaged itself.

    Raises:
        DamagedError: there is none, or it cannot be read.
    """
    manifest = right_manifest(root).manifest
    assert manifest is not None
    return manifest


def read_manifest_with_data(root: Path) -> tuple[Manifest, bytes]:
    """Return `manifest.json` itself with its bytes, as they are signed.

    Raises:
        DamagedError: there is none, or it cannot be read.
    """
    data = bounded_bytes(root / MANIFEST_NAME)
    found = None if data is None else judged(MANIFEST_NAME, data, {}, {})
    if found is None or found.manifest is None:
        raise DamagedError(
            "the manifest is damaged, or was written by another version of bundler",
            where=str(root / MANIFEST_NAME),
            hint=f"bundler repair {root}",
        )
    return found.manifest, found.data


def verify_bundle(
    root: Path, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read every byte of the bundle at `root` and return what is not as its manifest says.

    Args:
        root: the bundle's directory.
        workers: threads that hash at the same time (hashing releases the GIL); segments of one
            large file go to several of them.
        progress: called with (bytes done, bytes in all).

    Raises:
        DamagedError: neither the manifest nor its copy can be read.
        UnsafeInput: a link, a pipe, a socket or a device lies where one of bundler's own files
            should be.
    """
    refuse_unsafe(root, unsafe_findings(root), (*BESIDE, "parity"))
    return verify_against(root, right_manifest(root), workers=workers, progress=progress)


def unsafe_findings(root: Path) -> list[Finding]:
    """Return what lies in a bundle and is neither file nor folder. Opens nothing."""
    if not root.is_dir():
        return []
    return [Finding(path, "unsafe", why) for path, (_, why) in _walk(root) if why]


def refuse_unsafe(
    root: Path, found: Iterable[Finding], where: Collection[str] | None = None
) -> None:
    """Raise all that is unsafe, or that of it which lies at one of the places named.

    Raises:
        UnsafeInput: there is any.
    """
    hint = "remove it, then run the same command again"
    refused = [f for f in found if f.kind == "unsafe" and (where is None or f.path in where)]
    if refused:
        raise UnsafeInput([Problem(str(finding), str(root), hint) for finding in refused])


def verify_against(
    root: Path, believed: Candidate, *, workers: int = 2,
    progress: Callable[[int, int], None] | None = None, only: Collection[Piece] | None = None,
) -> Verification:  # fmt: skip
    """Do the same with the manifest that is given, wherever it was found.

    With `only`, just these pieces of files are read; names, sizes, modes and what no manifest lists
    are looked at all the same.
    """
    manifest = believed.manifest
    assert manifest is not None
    found = dict(_walk(root))
    promised = {file.path: file for file in manifest.files}
    findings = [Finding(path, "unsafe", why) for path, (_, why) in found.items() if why and path]
    present = [file for path, file in promised.items() if path in found and not found[path][1]]
    pieces = [piece for file in present for piece in pieces_of(file, manifest.segment_bytes)]
    read = pieces if only is None else [piece for piece in pieces if piece in only]
    findings += _changed(root, present, read, workers, progress)
    findings += _mode_findings(present, {path: mode for path, (mode, _) in found.items()})
    missing = [file for path, file in promised.items() if path not in found]
    extra = [
        path
        for path, (_, why) in found.items()
        if path not in promised and not why and path not in _allowed_beside(manifest)
    ]
    findings += _renamed_missing_extra(root, missing, [p for p in extra if not _of_update(p)])
    if any(map(_of_update, extra)):
        findings.append(Finding(UPDATE_NAME, "extra", "an update was begun and is not finished"))
    findings += beside_findings(root, believed, manifest)
    total = sum(file.size_bytes for file in manifest.files)
    return Verification(
        manifest, believed.sha256, len(promised), total, tuple(sorted(findings)), believed.data
    )


def _of_update(path: str) -> bool:
    return path.startswith(f"{UPDATE_NAME}/")


def _allowed_beside(manifest: Manifest) -> tuple[str, ...]:
    return BESIDE if manifest.parity is not None else tuple(n for n in BESIDE if n != HEAD_NAME)


def _walk(root: Path) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield relative path → (mode, why it is unsafe or ""), following no links."""
    pending = [root]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path).relative_to(root).as_posix()
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    pending.append(Path(entry.path))
                elif stat.S_ISREG(info.st_mode):
                    yield path, (info.st_mode, "")
                else:
                    yield path, (0, f"{kind_of(info.st_mode)}, not a regular file")


def _mode_findings(present: list[BundleFile], modes: dict[str, int]) -> Iterator[Finding]:
    """Yield programs that lost their executable bit.

    A filesystem without such bits (FAT, exFAT) shows all files alike: where none is marked, the
    bytes are right and `sh start` works, so that is no finding.
    """
    programs = [f for f in present if f.executable]
    if os.name == "posix" and any(modes[f.path] & 0o100 for f in programs):
        for file in programs:
            if not modes[file.path] & 0o100:
                yield Finding(file.path, "mode", "not marked executable")


# -- content -----------------------------------------------------------------------------------------


def _changed(
    root: Path, present: list[BundleFile], pieces: list[Piece], workers: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Finding]:  # fmt: skip
    """Yield the files whose bytes are not as promised, with the ranges of large ones."""
    total = sum(piece.size_bytes for piece in pieces)
    done, wrong = 0, dict[str, list[tuple[Piece, str]]]()
    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(lambda piece: _fault(root, piece), pieces)
        for piece, fault in zip(pieces, faults, strict=True):
            done += piece.size_bytes
            if progress is not None:
                progress(done, total)
            if fault:
                wrong.setdefault(piece.path, []).append((piece, fault))
    for file in present:
        finding = _finding(root, file, wrong.get(file.path, []))
        if finding is not None:
            yield finding


def _fault(root: Path, piece: Piece) -> str:
    """Return what is wrong with a piece, "" when nothing is."""
    try:
        found = hash_range(root / piece.path, piece.offset, piece.size_bytes)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if found == piece.sha256 else "other content"


def _finding(root: Path, file: BundleFile, wrong: list[tuple[Piece, str]]) -> Finding | None:
    try:
        size = (root / file.path).lstat().st_size
    except OSError as error:
        return Finding(file.path, "changed", f"cannot be read: {error.strerror}")
    said = [f"{size} bytes instead of {file.size_bytes}"] if size != file.size_bytes else []
    if not wrong and not said:
        return None
    faults = sorted({fault for _, fault in wrong} - {"other content"})
    ranges = _merged([(p.offset, p.offset + p.size_bytes) for p, _ in wrong])
    if wrong and not said and not faults and wrong[0][0].index is None:
        said = ["same size, other content"]
    elif wrong and wrong[0][0].index is not None:
        said.append(_ranges_text(ranges, file.size_bytes))
    return Finding(file.path, "changed", "; ".join([*said, *faults]), ranges)


def _merged(ranges: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return tuple(merged)


def _ranges_text(ranges: tuple[Span, ...], size_bytes: int) -> str:
    named = [f"{start}-{end - 1}" for start, end in ranges[:_MOST_RANGES_SAID]]
    more = len(ranges) - len(named)
    rest = f" and {more} more ranges" if more else ""
    return f"other content within bytes {', '.join(named)}{rest} of {size_bytes}"


# -- names -------------------------------------------------------------------------------------------


def _renamed_missing_extra(
    root: Path, missing: list[BundleFile], extra: list[str]
) -> Iterator[Finding]:
    """Yield findings, telling a renamed file from one that is gone and one that is new."""
    by_digest = _digests_of_extras(root, {file.size_bytes for file in missing}, extra)
    renamed = set()
    for file in missing:
        now = by_digest.get(file.sha256)
        if now is None:
            yield Finding(file.path, "missing")
        else:
            renamed.add(now)
            yield Finding(file.path, "renamed", f"is now {now}")
    for path in extra:
        if path not in renamed:
            yield Finding(path, "extra", "not in the manifest")


def _digests_of_extras(root: Path, sizes: set[int], extra: list[str]) -> Mapping[str, str]:
    """Return digest → path of files nobody promised, if they can be one that is missing."""
    found = {}
    for path in extra:
        try:
            size = (root / path).lstat().st_size
            if size in sizes:
                found[hash_range(root / path, 0, size)] = path
        except OSError:
            continue  # It cannot be read, so it is not the file that is missed.
    return found


# -- what the manifest cannot list ---------------------------------------------------------------------


def beside_findings(root: Path, believed: Candidate, manifest: Manifest) -> Iterator[Finding]:
    """Yield what is wrong with the manifest, its copy, the sums and the head of a bundle."""
    sums = sums_text(manifest.files, sha256_of(believed.data).hexdigest()).encode()
    other = f"read from {believed.name}"
    expected: Iterable[tuple[str, bytes, str]] = (
        (MANIFEST_NAME, believed.data, other if believed.name != MANIFEST_NAME else ""),
        (COPY_NAME, believed.data, "not the same as the manifest"),
        (SUMS_NAME, sums, "does not say what the manifest says"),
    )
    for name, data, why in expected:
        found = bounded_bytes(root / name)
        if found is None and not (root / name).exists():
            yield Finding(name, "missing", why if name == MANIFEST_NAME else "")
        elif found != data:
            yield Finding(name, "changed", why)
    if manifest.parity is not None:
        for name, why in head_faults(root, believed.data):
            gone = why == "missing"
            yield Finding(name, "missing" if gone else "changed", "" if gone else why)
