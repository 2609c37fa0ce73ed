"""Makes parity sets: from pieces to one PAR2 file, the same bytes whenever the pieces are the same.

par2's output was found to depend on nothing but names, bytes and block size (not on threads or
memory; a test holds it to that), and `packets` puts it in an order of its own. Which par2 made a
set is part of what is cached, and stands in the set's own `creator` packet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from bundler.errors import StepFailed
from bundler.grouping import Group, Piece, grouped
from bundler.media import par2
from bundler.media.packets import CREATOR, Packet, Scan, scan, set_ids, usable, write_set
from bundler.value import digest

HEAD_PERCENT = 25.0
"""Of the files beside the listed ones: they are small, and without them all else is lost."""
HEAD_SEGMENT_BYTES = 1 << 30
_FORMAT = 1

Place = Callable[[Piece, Path], None]
"""Puts a piece's bytes at a new path: as a link to a file that holds nothing else, or as a copy."""


def set_key(group: Group) -> str:
    """Return the digest of all that a set's bytes depend on."""
    return digest({
        "parity": _FORMAT, "program": par2.program_version(),
        "block_bytes": group.block_bytes, "recovery_blocks": group.recovery_blocks,
        "pieces": [[p.name, p.size_bytes, p.sha256] for p in group.pieces],
    })  # fmt: skip


def make_set(group: Group, place: Place, folder: Path) -> tuple[Path, str]:
    """Make the PAR2 file of a group in the empty `folder`; return it and the set's id.

    Needs as much room as the pieces that `place` copies, and twice the parity.

    Raises:
        StepFailed: par2 failed, or did not make what it was asked for.
    """
    view = folder / "view"
    for piece in group.pieces:
        target = view / piece.name
        target.parent.mkdir(parents=True, exist_ok=True)
        place(piece, target)
    par2.create(view, group, folder / "made")
    volumes = sorted(folder.glob("made.vol*.par2"))
    if len(volumes) != 1:
        raise StepFailed(f"par2 made {len(volumes)} volumes where one was asked for")
    found = scan(volumes[0], group.block_bytes)
    output = folder / "set.par2"
    return output, _compact(found, group, volumes[0], output)


def _compact(found: Scan, group: Group, volume: Path, output: Path) -> str:
    """Write the set in one file, in our order."""
    (set_id,) = set_ids(found)
    kept = usable(found, set_id, group.block_bytes, expected(group))
    if kept is None or len(kept.recovery) != group.recovery_blocks or found.damaged_bytes:
        raise StepFailed("par2 made another set than it was asked for",
                         hint="is the disk full, or its memory bad?")  # fmt: skip
    creator: tuple[Packet, ...] = tuple(found.of(CREATOR, set_id))[:1]
    write_set(volume, kept, output, creator)
    return set_id.hex()


def expected(group: Group) -> dict[str, int]:
    """Return the names and sizes of a group's pieces as PAR2 must have them."""
    return {piece.name: piece.size_bytes for piece in group.pieces}


def head_group(files: Mapping[str, bytes]) -> Group:
    """Return the one group of the small files that stand beside the listed ones."""
    pieces = [
        Piece(name, None, 0, len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    (group,) = _as_one(grouped(pieces, HEAD_PERCENT, HEAD_SEGMENT_BYTES))
    return group


def _as_one(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Put classes of size together: a manifest and its signature share a set."""
    pieces = tuple(sorted(piece for group in groups for piece in group.pieces))
    block = max(group.block_bytes for group in groups)
    blocks = sum(-(-piece.size_bytes // block) for piece in pieces)
    return (Group(pieces, block, blocks, max(4, -(-blocks // 4))),)


def make_head(files: Mapping[str, bytes], folder: Path) -> bytes:
    """Return the PAR2 file over the files beside the listed ones; `folder` is empty scratch."""
    group = head_group(files)

    def place(piece: Piece, target: Path) -> None:
        target.write_bytes(files[piece.path])

    output, _ = make_set(group, place, folder)
    return output.read_bytes()
