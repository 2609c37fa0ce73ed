"""What a bundle gets against rot, before it is written: digests of segments, parity sets, the head.

What protects what::

    parity/0001.par2 …      the listed files, each piece in one set; listed in the manifest themselves
    manifest.json           lists all of these, and is there twice: parity/manifest.json
    parity/head.par2        manifest, SHA256SUMS, signature, statements: what no manifest can list

So the circle ends at the head: nothing lists it, and each of its packets carries its own checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from bundler.errors import UnsafeInput
from bundler.events import Progress, StepFinished, StepStarted
from bundler.grouping import Group, grouped, pieces_of, recorded
from bundler.manifest import BundleFile, Parity
from bundler.media.objects import Objects
from bundler.media.parity import head_group
from bundler.world import World


def segments_of(
    files: Iterable[BundleFile], data: Mapping[str, bytes], objects: Objects, segment_bytes: int
) -> dict[str, tuple[str, ...]]:
    """Return path → digests of segments of every large file that does not name them yet."""
    wanted = [file for file in files if file.segments is None]
    made = objects.with_segments((f for f in wanted if f.path not in data), segment_bytes)
    for path in (f.path for f in wanted if f.path in data and f.size_bytes > segment_bytes):
        made[path] = tuple(
            hashlib.sha256(data[path][at : at + segment_bytes]).hexdigest()
            for at in range(0, len(data[path]), segment_bytes)
        )
    return made


def parity_sets(
    files: tuple[BundleFile, ...], data: Mapping[str, bytes], objects: Objects, world: World,
    percent: float, segment_bytes: int,
) -> tuple[Parity | None, dict[str, tuple[str, int]]]:  # fmt: skip
    """Return what the manifest says of parity, and path → object of every set.

    Raises:
        DamagedError: an object of the store is damaged.
        UnsafeInput: a file has the name that a segment of another needs.
    """
    if not percent:
        return None, {}
    world.report(StepStarted("parity"))
    by_path = {file.path: file for file in files}
    groups = grouped(
        (piece for file in files for piece in pieces_of(file, segment_bytes)),
        percent,
        segment_bytes,
    )
    sets, made = [], {}
    total = sum(piece.size_bytes for group in groups for piece in group.pieces)
    done = 0
    for number, group in enumerate(groups, 1):
        _refuse_double_names(group)
        path = f"parity/{number:04d}.par2"
        sha256, size, set_id = objects.parity(group, data, by_path)
        made[path] = (sha256, size)
        sets.append(recorded(group, path, set_id))
        done += sum(piece.size_bytes for piece in group.pieces)
        world.report(Progress("parity", done, total))
    size_bytes = sum(size for _, size in made.values())
    detail = f"{len(sets)} sets, {size_bytes / max(1, total):.1%} of the bundle"
    world.report(StepFinished("parity", "done", detail))
    return Parity(percent=percent, sets=tuple(sets)), made


def _refuse_double_names(group: Group) -> None:
    seen: dict[str, str] = {}
    for piece in group.pieces:
        other = seen.setdefault(piece.name, piece.path)
        if other != piece.path:
            raise UnsafeInput(
                f"{piece.name!r} is a file, and the name of a segment of another",
                hint="rename the file",
            )


def head(files: Mapping[str, bytes], objects: Objects) -> bytes:
    """Return the parity of the files that no manifest can list."""
    sha256, _, _ = objects.parity(head_group(files), files, {})
    return objects.path(sha256).read_bytes()
