"""The head: parity over the files that no manifest can list. Checked by its own packets' checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bundler.errors import UnsafeInput
from bundler.grouping import LEAST_BLOCK_BYTES, Group, Piece
from bundler.manifest import (
    COPY_NAME,
    HEAD_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    STATEMENTS_NAME,
    SUMS_NAME,
)
from bundler.media.copies import bounded_bytes
from bundler.media.packets import MAIN, Description, Scan, descriptions, scan, set_ids
from bundler.media.shape import MAX_MANIFEST_BYTES

COVERED = (MANIFEST_NAME, SUMS_NAME, SIGNATURE_NAME, STATEMENTS_NAME)
_LARGEST_BLOCK_BYTES = 1 << 20  # 2000 of them hold more than the largest manifest
_SPARE_BYTES = 1 << 20
_MOST_PACKETS = 8192
"""At most 2000 blocks are protected by a quarter of that, and four files are described twice."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the head says, as far as it is intact."""

    found: Scan
    set_id: bytes
    block_bytes: int
    said: dict[str, Description]

    def group(self) -> Group:
        """Return the files it protects as a parity set, for par2."""
        pieces = tuple(Piece(n, None, 0, d.size_bytes) for n, d in sorted(self.said.items()))
        blocks = sum(-(-piece.size_bytes // self.block_bytes) for piece in pieces)
        return Group(pieces, self.block_bytes, blocks, 1)

    def is_of_another(self, manifest_data: bytes) -> bool:
        """Tell whether it says that it protects a manifest which is not this one."""
        described = self.said.get(MANIFEST_NAME)
        return described is not None and not _is(described, manifest_data)


def read_head(root: Path) -> Head | None:
    """Return what the head of a bundle says; None when nothing of it can be used.

    Raises:
        UnsafeInput: it is made to be read for ever, or is no file at all.
    """
    path = root / HEAD_NAME
    try:
        _check_size(root, path)
        found = scan(path, _LARGEST_BLOCK_BYTES, most_packets=_MOST_PACKETS)
    except OSError:
        return None
    mains = [p for p in found.of(MAIN) if len(p.body) >= 12]
    if len({packet.set_id for packet in mains}) != 1:
        return None
    block = int.from_bytes(mains[0].body[:8], "little")
    if not LEAST_BLOCK_BYTES <= block <= _LARGEST_BLOCK_BYTES or block % 4:
        return None
    said = {d.name: d for d in descriptions(found, mains[0].set_id).values()}
    known = {n: d for n, d in said.items() if n in COVERED and d.size_bytes <= MAX_MANIFEST_BYTES}
    return Head(found, mains[0].set_id, block, known)


def _check_size(root: Path, path: Path) -> None:
    """Refuse a head that is larger than what it protects: ours is a third of that.

    Raises:
        UnsafeInput: it is.
        OSError: it is not there.
    """
    size, protected = path.lstat().st_size, 0
    for name in (*COVERED, COPY_NAME):
        with suppress(OSError):
            protected += (root / name).lstat().st_size
    if size > protected + _SPARE_BYTES:
        raise UnsafeInput(
            f"has {size} bytes to protect {protected}: no parity file of ours does",
            where=str(path),
            hint="remove it, then: bundler repair",
        )


def head_faults(root: Path, manifest_data: bytes) -> Iterator[tuple[str, str]]:
    """Yield (file, what is wrong) of the head, and of signature and statements by its word."""
    head = read_head(root)
    if head is None:
        path = root / HEAD_NAME
        yield HEAD_NAME, "cannot be used" if path.is_file() else "missing"
        return
    if head.found.damaged_bytes:
        yield HEAD_NAME, f"{head.found.damaged_bytes} bytes of it are damaged"
    elif set_ids(head.found) != {head.set_id}:
        yield HEAD_NAME, "has packets of another set"
    elif MANIFEST_NAME not in head.said or SUMS_NAME not in head.said:
        yield HEAD_NAME, "does not protect the manifest"
    if head.is_of_another(manifest_data):
        yield HEAD_NAME, "belongs to another manifest"
        return
    for name in (SIGNATURE_NAME, STATEMENTS_NAME):
        data = bounded_bytes(root / name)
        if data is None and name in head.said:
            yield name, "missing"
        elif data is not None and name in head.said and not _is(head.said[name], data):
            yield name, "not the bytes that its parity protects"
        elif data is not None and name not in head.said and not head.found.damaged_bytes:
            yield HEAD_NAME, f"does not protect {name}"


def _is(described: Description, data: bytes) -> bool:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return described.size_bytes == len(data) and described.md5 == md5
