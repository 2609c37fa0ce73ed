"""The delta: which bytes of a new version travel, and which the old one has already. Values only.

::

    delta.json            this: from which version to which, and how each new file comes about
    delta.json.minisig    who vouches for it
    new/                  what lies beside the new manifest, and the manifest
    pieces/0001.bin …     the bytes that travel, one after the other
    update.sh, README.txt the door for people

A file is rebuilt from spans in order. A span is a range of an old file, or a piece of the delta, as
it is or packed by zstd, which may refer to a range of an old file that is like it. All sizes are
said beforehand and bounded, so that nobody who applies a delta can be made to hold or write more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import FailFast, Field

from bundler.errors import Problem, UnsafeInput
from bundler.manifest import (
    HEAD_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    STATEMENTS_NAME,
    BundleFile,
    Manifest,
)
from bundler.value import Name, RelativePath, Sha256, Value

DELTA_NAME = "delta.json"
DELTA_SIGNATURE_NAME = "delta.json.minisig"
BESIDE_FOLDER = "new"
TRAVELLING = (MANIFEST_NAME, SIGNATURE_NAME, STATEMENTS_NAME, HEAD_NAME)
"""What lies beside listed files and travels; sums and the manifest's copy follow from these."""

SPAN_BYTES = 8 << 20
"""Most bytes that one piece stands for: what is held in memory while it is unpacked."""
NEAR_BYTES = 24 << 20
"""Most bytes of an old file that a piece refers to, likewise."""
PACK_BYTES = 1 << 30
"""Pieces lie in files of up to this size, which every filesystem can hold."""
_MOST_STORED = SPAN_BYTES + (1 << 16)


class Side(Value):
    """One of the two versions."""

    name: Name
    version: str
    created: int
    manifest_sha256: Sha256

    def __str__(self) -> str:
        return f"{self.name} {self.version} (manifest {self.manifest_sha256[:12]})"


class Old(Value):
    """A range of an old file that is in the new one as it is."""

    kind: Literal["old"] = "old"
    path: RelativePath
    offset: int = Field(ge=0)
    size_bytes: int = Field(ge=1)


class Near(Value):
    """A range of an old file that helps to unpack a piece."""

    path: RelativePath
    offset: int = Field(ge=0)
    size_bytes: int = Field(ge=1, le=NEAR_BYTES)


class New(Value):
    """Bytes that travel."""

    kind: Literal["new"] = "new"
    pack: int = Field(ge=0)
    piece: int = Field(ge=0)
    size_bytes: int = Field(ge=1, le=SPAN_BYTES)
    """Of what it stands for."""
    packed: bool = False
    near: Near | None = None


class Repacked(Value):
    """A cluster of a ZIM: what it holds travels or is old, and is packed again as libzim packs it.

    A changed word changes all bytes of its cluster, but little of what the cluster holds.
    """

    kind: Literal["repacked"] = "repacked"
    size_bytes: int = Field(ge=1, le=SPAN_BYTES)
    """Of the packed cluster."""
    plain: New
    """What it holds; it may refer to `near` in the place of a range of a file as it is."""
    near: tuple[Near, ...] = Field(default=(), max_length=4)
    """Clusters of old files, each one frame of zstd; unpacked, one after the other."""


Spanned = Old | New | Repacked
Span = Annotated[Spanned, Field(discriminator="kind")]


class Rebuilt(Value):
    """A file of the new version, in spans."""

    path: RelativePath
    spans: Annotated[tuple[Span, ...], FailFast()]


class Moved(Value):
    """A file that is there under another name, and goes to its new one."""

    path: RelativePath
    source: RelativePath


class Piece(Value):
    """Some bytes of a pack; they lie there one after the other, without a gap."""

    size_bytes: int = Field(ge=1, le=_MOST_STORED)
    sha256: Sha256


class Pack(Value):
    """One file of pieces."""

    pieces: Annotated[tuple[Piece, ...], FailFast()]

    @property
    def size_bytes(self) -> int:
        """Return how large its file is."""
        return sum(piece.size_bytes for piece in self.pieces)


class CarriedFile(Value):
    """A file of the delta that is no pack."""

    path: RelativePath
    size_bytes: int = Field(ge=0, le=256 << 20)
    sha256: Sha256


class Delta(Value):
    """What turns one version of a bundle into another."""

    schema_version: Literal[1] = 1
    before: Side
    after: Side
    builder: str
    zstd: str = ""
    """The version of zstd whose very bytes are needed to pack clusters again; "" when none is."""
    makers: tuple[str, ...] = Field(default=(), max_length=64)
    """Public keys that signed either version, for who trusts the bundle that lies there."""
    moved: Annotated[tuple[Moved, ...], FailFast()]
    rebuilt: Annotated[tuple[Rebuilt, ...], FailFast()]
    packs: Annotated[tuple[Pack, ...], FailFast()]
    files: Annotated[tuple[CarriedFile, ...], FailFast()]

    @property
    def stored_bytes(self) -> int:
        """Return how many bytes of content travel."""
        return sum(pack.size_bytes for pack in self.packs)


def pack_name(index: int) -> str:
    """Return the path of a pack in the delta."""
    return f"pieces/{index + 1:04d}.bin"


def kept_paths(old: Manifest, new: Manifest) -> frozenset[str]:
    """Return the paths whose content is the same in both versions."""
    before = {file.path: file.sha256 for file in old.files}
    return frozenset(file.path for file in new.files if before.get(file.path) == file.sha256)


def side_of(manifest: Manifest, sha256: str) -> Side:
    """Return how a delta names a version."""
    return Side(
        name=manifest.name, version=manifest.version, created=manifest.created,
        manifest_sha256=sha256,
    )  # fmt: skip


# -- holding a delta against the two manifests -------------------------------------------------------


def check_delta(delta: Delta, old: Manifest, new: Manifest) -> None:
    """Refuse a delta that does not give exactly the new version out of the old one.

    Raises:
        UnsafeInput: every place where it does not.
    """
    problems = [*_wrong_targets(delta, old, new), *_wrong_moves(delta, old, new)]
    before = {file.path: file for file in old.files}
    after = {file.path: file for file in new.files}
    for rebuilt in delta.rebuilt:
        if rebuilt.path in after:
            problems += _wrong_spans(rebuilt, after[rebuilt.path], before, delta.packs)
    if problems:
        hint = "get the update anew from its maker"
        raise UnsafeInput([Problem(problem, DELTA_NAME, hint) for problem in problems[:20]])


def _wrong_targets(delta: Delta, old: Manifest, new: Manifest) -> Iterator[str]:
    made = [*(r.path for r in delta.rebuilt), *(m.path for m in delta.moved)]
    wanted = {file.path for file in new.files} - kept_paths(old, new)
    for path, count in sorted(Counter(made).items()):
        if count > 1:
            yield f"{path!r} is made twice"
    for path in sorted(wanted - set(made)):
        yield f"nothing says how {path!r} comes about"
    for path in sorted(set(made) - wanted):
        yield f"{path!r} is not a changed file of the new version"


def _wrong_moves(delta: Delta, old: Manifest, new: Manifest) -> Iterator[str]:
    before = {file.path: file.sha256 for file in old.files}
    after = {file.path: file.sha256 for file in new.files}
    kept = kept_paths(old, new)
    if len({move.source for move in delta.moved}) != len(delta.moved):
        yield "one old file is moved to two places"
    for move in delta.moved:
        if move.source in kept:
            yield f"{move.source!r} stays where it is and cannot be moved"
        if before.get(move.source) is None or before.get(move.source) != after.get(move.path):
            yield f"{move.source!r} is not what {move.path!r} is to be"


def _wrong_spans(
    rebuilt: Rebuilt, file: BundleFile, before: Mapping[str, BundleFile], packs: tuple[Pack, ...]
) -> Iterator[str]:
    if sum(span.size_bytes for span in rebuilt.spans) != file.size_bytes:
        yield f"{rebuilt.path!r} would not have its {file.size_bytes} bytes"
    for span in rebuilt.spans:
        for source in sources_of((span,)):
            there = before.get(source.path)
            if there is None or source.offset + source.size_bytes > there.size_bytes:
                yield f"{rebuilt.path!r} needs bytes that {source.path!r} does not have"
        if isinstance(span, New):
            yield from _wrong_piece(rebuilt.path, span, packs)
        elif isinstance(span, Repacked):
            yield from _wrong_piece(rebuilt.path, span.plain, packs)
            if span.plain.near is not None:
                yield f"{rebuilt.path!r} has a cluster that refers to two kinds of old bytes"


def _wrong_piece(path: str, span: New, packs: tuple[Pack, ...]) -> Iterator[str]:
    if span.pack >= len(packs) or span.piece >= len(packs[span.pack].pieces):
        yield f"{path!r} needs a piece that is not there"
        return
    stored = packs[span.pack].pieces[span.piece].size_bytes
    if not span.packed and (stored != span.size_bytes or span.near is not None):
        yield f"{path!r} has a piece of {stored} bytes for {span.size_bytes}"


def sources_of(spans: Iterable[Spanned]) -> Iterator[Old | Near]:
    """Yield the ranges of old files that spans read."""
    for span in spans:
        if isinstance(span, Old):
            yield span
        elif isinstance(span, Repacked):
            yield from span.near
        elif span.near is not None:
            yield span.near
