"""Which of a bundle's two manifests is the right one, by what else on the medium speaks for it.

Witnesses: `SHA256SUMS` and the signature's signed comment both name the manifest's digest, and the
other copy may be the same. They tell an accident; whether a person vouches is the signature's word.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path

from bundler.errors import DamagedError
from bundler.manifest import COPY_NAME, MANIFEST_NAME, SIGNATURE_NAME, SUMS_NAME, Manifest
from bundler.segments import open_plain

# The manifest of a bundle with 100,000 files has about 20 MB.
MAX_MANIFEST_BYTES = 256 << 20
_NAMED = {
    SUMS_NAME: re.compile(rb"^([0-9a-f]{64})  manifest\.json$", re.MULTILINE),
    SIGNATURE_NAME: re.compile(
        rb"^trusted comment: bundler .* sha256:([0-9a-f]{64})$", re.MULTILINE
    ),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A manifest that was found, and how many witnesses it has."""

    name: str
    data: bytes
    manifest: Manifest | None
    """None when it cannot be read as one."""
    why_not: str
    witnesses: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Return its digest."""
        return sha256_of(self.data).hexdigest()


def bounded_bytes(path: Path, most: int = MAX_MANIFEST_BYTES) -> bytes | None:
    """Return the bytes of a regular file, None when there is none, it is too long or unreadable."""
    try:
        with open_plain(path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None


def candidates(root: Path) -> list[Candidate]:
    """Return the manifests of the bundle at `root`, the one to believe first."""
    found = {name: bounded_bytes(root / name) for name in (MANIFEST_NAME, COPY_NAME)}
    named = named_digests(root)
    made = [
        judged(name, data, named, {n: d for n, d in found.items() if n != name})
        for name, data in found.items()
        if data is not None
    ]
    return sorted(
        made, key=lambda c: (c.manifest is None, -len(c.witnesses), c.name != MANIFEST_NAME)
    )


def named_digests(root: Path) -> dict[str, set[str]]:
    """Return witness → the digests of a manifest that it names."""
    return {name: _digests_named(root / name, pattern) for name, pattern in _NAMED.items()}


def _digests_named(path: Path, pattern: re.Pattern[bytes]) -> set[str]:
    return {match.decode() for match in pattern.findall(bounded_bytes(path) or b"")}


def judged(
    name: str, data: bytes, named: dict[str, set[str]], others: dict[str, bytes | None]
) -> Candidate:
    """Return one manifest with the witnesses that speak for it."""
    digest = sha256_of(data).hexdigest()
    witnesses = [witness for witness, digests in named.items() if digest in digests]
    witnesses += [other for other, bytes_there in others.items() if bytes_there == data]
    try:
        return Candidate(name, data, Manifest.model_validate_json(data), "", tuple(witnesses))
    except ValueError as error:
        lines = str(error).splitlines()
        why = next((line.strip() for line in lines[1:] if line.startswith("  ")), lines[0])
        return Candidate(name, data, None, why[:200], tuple(witnesses))


def right_manifest(root: Path) -> Candidate:
    """Return the manifest to believe.

    Raises:
        DamagedError: there is none, or none can be read.
    """
    found = candidates(root)
    if not found:
        raise DamagedError(
            f"is not a bundle: {MANIFEST_NAME} cannot be read",
            where=str(root),
            hint="give the directory that `bundler build` made",
        )
    if found[0].manifest is None:
        raise DamagedError(
            "the manifest is damaged, or was written by another version of bundler "
            f"({found[0].why_not})",
            where=str(root / found[0].name),
            hint=f"try `bundler repair {root}`, or copy the bundle anew from its origin",
        )
    return found[0]
