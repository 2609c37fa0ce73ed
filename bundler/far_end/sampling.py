"""Which parts of a bundle a quick check reads, and how likely it is that damage shows. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from bundler.grouping import Piece, pieces_of
from bundler.manifest import Manifest

SHARE = 0.02
"""Of the segments between the first and the last of large files."""
LEAST_SEGMENTS = 32
MOST_SEGMENTS = 128
"""2 GiB: about a minute of a slow stick."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a quick check reads."""

    pieces: frozenset[Piece]
    size_bytes: int
    total_bytes: int
    """Of the whole bundle."""
    drawn: int
    """Segments that were drawn by lot."""
    pool: int
    """Segments that they were drawn from."""

    def chance(self, damaged: int) -> float:
        """Return how likely it is that one of `damaged` bad segments of the pool was drawn."""
        return chance_to_find(self.pool, self.drawn, damaged)


def chance_to_find(pool: int, drawn: int, damaged: int) -> float:
    """Return how likely a draw without putting back meets at least one of the damaged ones.

    >>> chance_to_find(100, 10, 1), chance_to_find(100, 100, 1), chance_to_find(0, 0, 3)
    (0.1, 1.0, 1.0)
    """
    damaged = min(damaged, pool)
    if drawn >= pool or not damaged:
        return 1.0
    return round(1 - math.comb(pool - damaged, drawn) / math.comb(pool, drawn), 6)


def draw(manifest: Manifest, random: Random) -> Sample:
    """Return the pieces for a quick check: whole small files, both ends of large ones, and a draw."""
    every = [piece for file in manifest.files for piece in pieces_of(file, manifest.segment_bytes)]
    last = {(file.path, len(file.segments or ()) - 1) for file in manifest.files}
    sure = [p for p in every if p.index in (None, 0) or (p.path, p.index) in last]
    pool = sorted(set(every) - set(sure))
    wanted = min(max(LEAST_SEGMENTS, math.ceil(SHARE * len(pool))), MOST_SEGMENTS, len(pool))
    drawn = random.sample(pool, wanted)
    chosen = frozenset((*sure, *drawn))
    return Sample(chosen, _size(chosen), _size(every), len(drawn), len(pool))


def _size(pieces: Iterable[Piece]) -> int:
    return sum(piece.size_bytes for piece in pieces)
