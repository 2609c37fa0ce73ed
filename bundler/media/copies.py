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

from bundler.errors import DamagedError, RecipeError
from bundler.manifest import (
    BESIDE,
    COPY_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUMS_NAME,
    SWITCH_NAME,
    UNFINISHED_NAME,
    Manifest,
)
from bundler.media.shape import MAX_MANIFEST_BYTES, misshapen
from bundler.segments import open_plain

_NAMED = {
    SUMS_NAME: re.compile(rb"^([0-9a-f]{64})  manifest\.json$", re.MULTILINE),
    SIGNATURE_NAME: re.compile(
        rb"^trusted comment: bundler .* sha256:([0-9a-f]{64})$", re.MULTILINE
    ),
}


_GIVE = "give the directory that `bundler build` made"
_MOST_NAMED = 3


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
    """Return the bytes of a regular file, None when there is none, it is too long or unreadable.

    Raises:
        UnsafeInput: a link, a pipe, a socket or a device lies there.
    """
    try:
        with open_plain(path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None


def check_is_bundle(root: Path) -> None:
    """Refuse a place where no bundle is: a slip of who typed its name, not damage.

    A bundle that lost its manifest still has one of the files that lie beside it, and is damaged.

    Raises:
        RecipeError: it is no directory, or has none of the files that every bundle has.
    """
    if not root.is_dir():
        said = "is no directory" if root.exists() else "is not there"
        raise RecipeError(f"{said}: not a bundle", where=str(root), hint=_GIVE)
    if any(os.path.lexists(root / name) for name in BESIDE):
        return
    inside = sorted(root.glob(f"*/{MANIFEST_NAME}"))[:_MOST_NAMED]
    named = " or ".join(str(path.parent) for path in inside)
    raise RecipeError(
        "is not a bundle: nothing in it is a bundle's own",
        where=str(root),
        hint=f"did you mean {named}?" if named else _GIVE,
    )


def candidates(root: Path) -> list[Candidate]:
    """Return the manifests of the bundle at `root`, the one to believe first.

    The one with more witnesses is read first, and the other only when that one cannot be: what a
    stranger wrote is in memory once.

    Raises:
        UnsafeInput: a link, a pipe, a socket or a device lies where a manifest should be.
    """
    found = {name: bounded_bytes(root / name) for name in (MANIFEST_NAME, COPY_NAME)}
    named = named_digests(root)
    there = {name: data for name, data in found.items() if data is not None}
    said = {
        name: _witnesses(data, named, {n: d for n, d in there.items() if n != name})
        for name, data in there.items()
    }
    unreadable: list[Candidate] = []
    for name in sorted(there, key=lambda n: (-len(said[n]), n != MANIFEST_NAME)):
        if unreadable and there[name] == unreadable[0].data:
            continue
        made = _read(name, there[name], said[name])
        if made.manifest is not None:
            return [made, *unreadable]
        unreadable.append(made)
    return unreadable


def named_digests(root: Path) -> dict[str, set[str]]:
    """Return witness → the digests of a manifest that it names."""
    return {name: _digests_named(root / name, pattern) for name, pattern in _NAMED.items()}


def _digests_named(path: Path, pattern: re.Pattern[bytes]) -> set[str]:
    return {match.decode() for match in pattern.findall(bounded_bytes(path) or b"")}


def judged(
    name: str, data: bytes, named: dict[str, set[str]], others: dict[str, bytes | None]
) -> Candidate:
    """Return one manifest with the witnesses that speak for it."""
    there = {other: bytes_there for other, bytes_there in others.items() if bytes_there is not None}
    return _read(name, data, _witnesses(data, named, there))


def _witnesses(
    data: bytes, named: dict[str, set[str]], others: dict[str, bytes]
) -> tuple[str, ...]:
    digest = sha256_of(data).hexdigest()
    witnesses = [witness for witness, digests in named.items() if digest in digests]
    return (*witnesses, *(other for other, bytes_there in others.items() if bytes_there == data))


def _read(name: str, data: bytes, witnesses: tuple[str, ...]) -> Candidate:
    why = misshapen(data)
    if why:
        return Candidate(name, data, None, why[:200], witnesses)
    try:
        return Candidate(name, data, Manifest.model_validate_json(data), "", witnesses)
    except ValueError as error:
        lines = str(error).splitlines()
        why = next((line.strip() for line in lines[1:] if line.startswith("  ")), lines[0])
        return Candidate(name, data, None, why[:200], witnesses)


def check_one_version(root: Path) -> None:
    """Refuse a bundle in which an update was cut off in its last step: it is of no version now.

    Raises:
        DamagedError: it is so; the update itself goes on from there.
    """
    if (root / SWITCH_NAME).is_file():
        raise DamagedError(
            "is between two versions: an update was cut off in its last step",
            where=str(root),
            hint="run the same update again: it goes on from there",
        )


def check_finished(root: Path) -> None:
    """Refuse a bundle that was not copied, or not updated, to its end.

    Raises:
        DamagedError: `bundler deploy`, or an update, was cut off here.
    """
    check_one_version(root)
    if (root / UNFINISHED_NAME).is_dir():
        raise DamagedError(
            "is incomplete: copying it to here was cut off",
            where=str(root),
            hint="run the same `bundler deploy` again: it goes on from there",
        )


def right_manifest(root: Path) -> Candidate:
    """Return the manifest to believe.

    Raises:
        RecipeError: this is no bundle.
        DamagedError: it is one, and its manifest is lost or cannot be read; or it was not copied
            to the end.
    """
    check_finished(root)
    found = candidates(root)
    if not found:
        check_is_bundle(root)
        raise DamagedError(
            f"{MANIFEST_NAME} and its copy cannot be read",
            where=str(root),
            hint=f"try `bundler repair {root}`, or copy the bundle anew from its origin",
        )
    if found[0].manifest is None:
        raise DamagedError(
            "the manifest is damaged, or was written by another version of bundler "
            f"({found[0].why_not})",
            where=str(root / found[0].name),
            hint=f"try `bundler repair {root}`, or copy the bundle anew from its origin",
        )
    return found[0]
