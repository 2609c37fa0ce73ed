"""Reads a delta and a bundle's manifest, with bounds, and holds every byte of a delta against its list.

Nothing that a delta says is used before its list was held against its signature and its schema;
nothing is opened through a link, and no more is read than was said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any

from bundler.descriptors import read_at
from bundler.errors import DamagedError, Problem, UnsafeInput
from bundler.manifest import MANIFEST_NAME, SIGNATURE_NAME, STATEMENTS_NAME
from bundler.media.copies import bounded_bytes, judged
from bundler.media.signature import MAX_SIGNATURE_BYTES
from bundler.segments import hash_range, open_plain
from bundler.update.delta import (
    BESIDE_FOLDER,
    DELTA_NAME,
    DELTA_SIGNATURE_NAME,
    TRAVELLING,
    Delta,
    Pack,
    pack_name,
)
from bundler.update.shape import MAX_DELTA_BYTES, misshapen
from bundler.update.vouching import SignedManifest

_MAX_STATEMENTS_BYTES = 1 << 20
_ANEW = "get the update anew from its maker"


@dataclass(frozen=True, slots=True)
class ReadDelta:
    """A delta whose list was read; its pieces were not looked at yet."""

    root: Path
    delta: Delta
    data: bytes
    signed: bytes | None
    new: SignedManifest


def read_delta(root: Path) -> ReadDelta:
    """Return the list of the delta at `root`, and the manifest it leads to.

    Raises:
        DamagedError: there is none, or the manifest in it is not the one its list names.
        UnsafeInput: the list is not as one is made.
    """
    data = bounded_bytes(root / DELTA_NAME, MAX_DELTA_BYTES)
    if data is None:
        hint = "give the directory that `bundler update make` made"
        raise DamagedError(f"is not an update: no {DELTA_NAME}", where=str(root), hint=hint)
    delta = _list(data, str(root / DELTA_NAME))
    _check_carried(root, delta)
    new = read_signed(root / BESIDE_FOLDER / MANIFEST_NAME)
    if sha256_of(new.data).hexdigest() != delta.after.manifest_sha256:
        where = str(root / BESIDE_FOLDER / MANIFEST_NAME)
        raise DamagedError("is not the manifest the update leads to", where=where, hint=_ANEW)
    signed = bounded_bytes(root / DELTA_SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
    return ReadDelta(root, delta, data, signed, new)


def _list(data: bytes, where: str) -> Delta:
    why = misshapen(data)
    try:
        if why:
            raise ValueError(why)
        return Delta.model_validate_json(data)
    except ValueError as error:
        raise UnsafeInput(
            f"the list of the update is not one: {why or _first_line(error)}",
            where=where,
            hint=_ANEW + ", or use the version of bundler that made it",
        ) from error


def _first_line(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[1:3])[:200] if len(lines) > 1 else lines[0][:200]


def _check_carried(root: Path, delta: Delta) -> None:
    """Hold the small files of a delta against its list: they are used next.

    Raises:
        DamagedError: one is not as it should be.
    """
    problems = []
    for file in delta.files:
        data = bounded_bytes(root / file.path, file.size_bytes)
        if data is None or sha256_of(data).hexdigest() != file.sha256:
            problems.append(Problem("is damaged or missing", str(root / file.path), _ANEW))
    carried = {file.path for file in delta.files}
    for name in TRAVELLING:
        path = f"{BESIDE_FOLDER}/{name}"
        if path not in carried and os.path.lexists(root / path):
            problems.append(Problem("is not of this update", str(root / path), _ANEW))
    if problems:
        raise DamagedError(problems)


def read_signed(path: Path) -> SignedManifest:
    """Return the manifest in a file, with the signature and statements that lie beside it.

    Raises:
        DamagedError: it cannot be read as one.
    """
    data = bounded_bytes(path)
    if data is None:
        raise DamagedError("cannot be read", where=str(path), hint=_ANEW)
    return signed_manifest(data, path.parent, str(path))


def signed_manifest(data: bytes, beside: Path, where: str) -> SignedManifest:
    """Return the manifest in `data`, with the signature and statements in the folder `beside`.

    Raises:
        DamagedError: it is not a manifest.
    """
    found = judged(MANIFEST_NAME, data, {}, {})
    if found.manifest is None:
        raise DamagedError(
            f"the manifest is damaged, or was written by another version of bundler "
            f"({found.why_not})",
            where=where,
            hint="get it anew from its maker",
        )
    signed = bounded_bytes(beside / SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
    return SignedManifest(found.manifest, data, signed, _statements(beside / STATEMENTS_NAME))


def _statements(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return what is said of keys; a damaged file says nothing."""
    try:
        found = json.loads(bounded_bytes(path, _MAX_STATEMENTS_BYTES) or b"[]")
    except (ValueError, RecursionError):
        return ()
    return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


# -- pieces ------------------------------------------------------------------------------------------


def check_pieces(
    root: Path, delta: Delta, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Read every piece of a delta, before anything is touched.

    Raises:
        DamagedError: every pack that is not as the list says.
    """
    problems, done, total = [], 0, delta.stored_bytes
    for index, pack in enumerate(delta.packs):
        path = root / pack_name(index)
        wrong = list(_wrong_pieces(path, pack))
        if wrong:
            problems.append(Problem("; ".join(wrong[:3]), str(path), _ANEW))
        done += pack.size_bytes
        progress(done, total)
    if problems:
        raise DamagedError(problems)


def _wrong_pieces(path: Path, pack: Pack) -> Iterator[str]:
    try:
        size = path.lstat().st_size
        if size != pack.size_bytes:
            yield f"{size} bytes instead of {pack.size_bytes}"
            return
        offset = 0
        for piece in pack.pieces:
            if hash_range(path, offset, piece.size_bytes) != piece.sha256:
                yield f"other content within bytes {offset}-{offset + piece.size_bytes - 1}"
            offset += piece.size_bytes
    except OSError as error:
        yield f"cannot be read: {error.strerror}"


class Pieces:
    """The pieces of a delta, each held against its digest whenever it is read."""

    def __init__(self, root: Path, delta: Delta) -> None:
        self._root, self._packs = root, delta.packs
        self._starts = [_starts(pack) for pack in delta.packs]

    def read(self, pack: int, piece: int) -> bytes:
        """Return the stored bytes of a piece.

        Raises:
            DamagedError: they are not what the list says.
        """
        said, path = self._packs[pack].pieces[piece], self._root / pack_name(pack)
        with open_plain(path) as descriptor:
            data = read_at(descriptor, said.size_bytes, self._starts[pack][piece])
        if hashlib.sha256(data).hexdigest() != said.sha256:
            raise DamagedError("changed while it was read", where=str(path), hint=_ANEW)
        return data


def _starts(pack: Pack) -> list[int]:
    starts, offset = [], 0
    for piece in pack.pieces:
        starts.append(offset)
        offset += piece.size_bytes
    return starts
