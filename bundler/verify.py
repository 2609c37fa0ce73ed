"""Holds a bundle against its manifest and names every file that is not as promised.

Says nothing about who made it: digests without a signature detect accidents, not attackers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Literal

from bundler.errors import DamagedError
from bundler.manifest import MANIFEST_NAME, SUMS_NAME, BundleFile, Manifest, sums_text
from bundler.store import hash_file

# The manifest of a bundle with 100,000 files has about 20 MB.
MAX_MANIFEST_BYTES = 256 << 20

Kind = Literal["missing", "extra", "changed", "renamed", "unsafe", "mode"]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is not as the manifest says."""

    path: str
    kind: Kind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind:8} {self.path}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and what was found."""

    manifest: Manifest
    manifest_sha256: str
    files: int
    size_bytes: int
    findings: tuple[Finding, ...]


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of the bundle at `root`.

    Raises:
        DamagedError: there is none, or it cannot be read.
    """
    return _parse_manifest(_manifest_data(root), root)


def _manifest_data(root: Path) -> bytes:
    path = root / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise DamagedError(
            f"is not a bundle: {MANIFEST_NAME} cannot be read ({error.strerror})",
            where=str(root),
            hint="give the directory that `bundler build` made",
        ) from error


def _parse_manifest(data: bytes, root: Path) -> Manifest:
    try:
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError("overlong")
        return Manifest.model_validate_json(data)
    except ValueError as error:
        raise DamagedError(
            "the manifest is damaged, or was written by another version of bundler",
            where=str(root / MANIFEST_NAME),
            hint="compare with `sha256sum -c SHA256SUMS`; copy the bundle anew from its origin",
        ) from error


def verify_bundle(
    root: Path, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read every byte of the bundle at `root` and return what is not as its manifest says.

    Args:
        root: the bundle's directory.
        workers: threads that hash at the same time (hashing releases the GIL).
        progress: called with (bytes done, bytes in all).

    Raises:
        DamagedError: the manifest itself cannot be read.
    """
    data = _manifest_data(root)
    manifest = _parse_manifest(data, root)
    manifest_sha256 = sha256_of(data).hexdigest()
    found = dict(_walk(root))
    promised = {file.path: file for file in manifest.files}
    total = sum(file.size_bytes for file in manifest.files)
    findings = [Finding(path, "unsafe", why) for path, (_, why) in found.items() if why and path]
    present = [file for path, file in promised.items() if path in found and not found[path][1]]
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for file, finding in zip(
            present, pool.map(lambda f: _compare(root, f), present), strict=True
        ):
            done += file.size_bytes
            if progress is not None:
                progress(done, total)
            if finding is not None:
                findings.append(finding)
    findings += _mode_findings(present, {path: mode for path, (mode, _) in found.items()})
    missing = [file for path, file in promised.items() if path not in found]
    extra = [
        path
        for path, (_, why) in found.items()
        if path not in promised and not why and path not in (MANIFEST_NAME, SUMS_NAME)
    ]
    findings += _renamed_missing_extra(root, missing, extra)
    findings += _sums_findings(root, manifest, manifest_sha256)
    return Verification(manifest, manifest_sha256, len(promised), total, tuple(sorted(findings)))


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
                    yield path, (0, "not a regular file")


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


def _compare(root: Path, file: BundleFile) -> Finding | None:
    path = root / file.path
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return Finding(file.path, "changed", f"{size} bytes instead of {file.size_bytes}")
        if hash_file(path) != file.sha256:
            return Finding(file.path, "changed", "same size, other content")
    except OSError as error:
        return Finding(file.path, "changed", f"cannot be read: {error.strerror}")
    return None


def _renamed_missing_extra(
    root: Path, missing: list[BundleFile], extra: list[str]
) -> Iterator[Finding]:
    """Yield findings, telling a renamed file from one that is gone and one that is new."""
    sizes = {file.size_bytes for file in missing}
    digests = {
        path: hash_file(root / path) for path in extra if (root / path).stat().st_size in sizes
    }
    by_digest = {digest: path for path, digest in digests.items()}
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


def _sums_findings(root: Path, manifest: Manifest, manifest_sha256: str) -> Iterator[Finding]:
    try:
        text = (root / SUMS_NAME).read_bytes()
    except FileNotFoundError:
        yield Finding(SUMS_NAME, "missing")
        return
    except OSError as error:
        yield Finding(SUMS_NAME, "changed", f"cannot be read: {error.strerror}")
        return
    if text != sums_text(manifest.files, manifest_sha256).encode():
        yield Finding(SUMS_NAME, "changed", "does not say what the manifest says")
