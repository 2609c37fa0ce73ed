"""The bundle to be copied, looked at as far as that goes without reading all of it.

Whatever `verify` refuses is refused: manifest, sums, head and sizes before anything is written, and
each byte of the files on its way.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path

from bundler.errors import DamagedError, Problem, UnsafeInput
from bundler.manifest import BESIDE, MANIFEST_NAME, UNFINISHED_NAME, Manifest
from bundler.media.copies import bounded_bytes, right_manifest
from bundler.verify import beside_findings, read_manifest_with_data


@dataclass(frozen=True, slots=True)
class Cargo:
    """A bundle that may be copied; what stands beside its files is in memory."""

    root: Path
    manifest: Manifest
    manifest_sha256: str
    beside: Mapping[str, bytes]
    """Manifest, its copy, sums, signature, statements, head: those that it has."""


def cargo_of(root: Path) -> Cargo:
    """Return the bundle at `root` as it will be copied.

    Raises:
        UnsafeInput: it has files under a name that unfinished copies use.
        DamagedError: manifest, what stands beside it, or the sizes of files are not right.
    """
    believed = right_manifest(root)
    manifest, data = read_manifest_with_data(root)
    _refuse_our_own_name(root, manifest)
    faults = [str(f) for f in beside_findings(root, believed, manifest)]
    faults += list(_wrong_sizes(root, manifest))
    if faults:
        hint = f"bundler repair {root}, then the same command again"
        raise DamagedError([Problem(fault, str(root), hint) for fault in faults])
    found = {name: bounded_bytes(root / name) for name in BESIDE}
    beside = {name: data for name, data in found.items() if data is not None}
    beside[MANIFEST_NAME] = data
    return Cargo(root, manifest, sha256_of(data).hexdigest(), beside)


def _refuse_our_own_name(root: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        if file.path.split("/")[0].casefold() == UNFINISHED_NAME:
            raise UnsafeInput(
                f"{file.path!r} would lie where unfinished copies do", where=str(root),
                hint="no bundle that bundler made has such a file: do not use this one",
            )  # fmt: skip


def _wrong_sizes(root: Path, manifest: Manifest) -> Iterator[str]:
    for file in manifest.files:
        try:
            info = (root / file.path).lstat()
        except OSError as error:
            yield f"{file.path}: {error.strerror}"
            continue
        if not stat.S_ISREG(info.st_mode):
            yield f"{file.path}: not a regular file"
        elif info.st_size != file.size_bytes:
            yield f"{file.path}: {info.st_size} bytes instead of {file.size_bytes}"
