"""Repairs what no manifest lists: the manifest itself, its copy, the sums, the signature, the head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bundler.errors import DamagedError
from bundler.manifest import (
    COPY_NAME,
    HEAD_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUMS_NAME,
    Manifest,
    sums_text,
)
from bundler.media import par2, view
from bundler.media.copies import (
    Candidate,
    bounded_bytes,
    candidates,
    check_finished,
    judged,
    named_digests,
)
from bundler.media.head import COVERED, Head, head_faults, read_head
from bundler.media.mending import replace_file
from bundler.media.parity import make_head

_ROOM_BYTES = 64 << 20


def believed_manifest(root: Path, scratch: Path | None) -> Candidate:
    """Return the manifest to repair by: one that something else on the medium speaks for.

    Raises:
        DamagedError: there is none, and the head cannot bring it back.
    """
    check_finished(root)
    found = candidates(root)
    if found and found[0].manifest is not None and found[0].witnesses:
        return found[0]
    rebuilt = _rebuilt(root, scratch)
    if rebuilt is not None:
        return rebuilt
    where = "is damaged, and so is its copy" if found else "is not there, nor its copy"
    raise DamagedError(
        f"the manifest {where}; what is left of {HEAD_NAME} cannot bring it back",
        where=str(root),
        hint="nothing was changed; copy the bundle anew from its origin",
    )


def _rebuilt(root: Path, scratch: Path | None) -> Candidate | None:
    """Return the manifest as the head's parity and what is left of both copies yield it."""
    head = read_head(root)
    if head is None or MANIFEST_NAME not in head.said:
        return None
    present = {name: bounded_bytes(root / name) for name in COVERED}
    copy = bounded_bytes(root / COPY_NAME)
    data = from_head(root, head, present, scratch, copy).get(MANIFEST_NAME)
    if data is None:
        return None
    made = judged(MANIFEST_NAME, data, named_digests(root), {})
    return made if made.manifest is not None else None


def from_head(
    root: Path, head: Head, present: Mapping[str, bytes | None], scratch: Path | None,
    extra: bytes | None = None,
) -> dict[str, bytes]:  # fmt: skip
    """Return the files that the head protects, as far as it can bring them back.

    Args:
        root: the bundle.
        head: what its head says.
        present: the files as they are now, None for one that is gone.
        scratch: where to work.
        extra: bytes in which blocks may be found too: the other copy of the manifest.
    """
    group = head.group()
    room = view.Need(_ROOM_BYTES + 4 * group.data_blocks * group.block_bytes)
    with view.scratch(root, room, scratch) as at:
        place = at / "view"
        place.mkdir()
        set_file = at / "set.par2"
        if view.checked_parity(root / HEAD_NAME, group, head.set_id, set_file) is None:
            return {}
        for name, data in present.items():
            if data is not None and name in head.said:
                (place / name).write_bytes(data)
        other = place / "other-copy"
        other.write_bytes(extra or b"")
        if par2.repair(place, set_file, group, [other] if extra else ()).outcome != "whole":
            return {}
        made = {name: (place / name).read_bytes() for name in head.said}
    return {
        name: data for name, data in made.items()
        if hashlib.md5(data, usedforsecurity=False).digest() == head.said[name].md5
    }  # fmt: skip


def repair_beside(
    root: Path, believed: Candidate, manifest: Manifest, scratch: Path | None, *, dry_run: bool
) -> tuple[list[str], dict[str, str]]:
    """Make right what no manifest lists; return what was, and path → why of what could not be."""
    wanted = _known(believed, manifest)
    failed: dict[str, str] = {}
    if manifest.parity is not None:
        restored, failed = _signature(root, wanted, scratch)
        wanted |= restored
    changed = [name for name, data in wanted.items() if bounded_bytes(root / name) != data]
    if not dry_run:
        for name in changed:
            replace_file(root, name, wanted[name], 0o644)
    if manifest.parity is not None and not failed:
        changed += _head(root, believed.data, wanted, scratch, dry_run)
    return changed, failed


def _known(believed: Candidate, manifest: Manifest) -> dict[str, bytes]:
    sums = sums_text(manifest.files, believed.sha256).encode()
    return {MANIFEST_NAME: believed.data, COPY_NAME: believed.data, SUMS_NAME: sums}


def _signature(
    root: Path, known: Mapping[str, bytes], scratch: Path | None
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return signature and statements as the head has them, where they are not so now."""
    wrong = [name for name, _ in head_faults(root, known[MANIFEST_NAME]) if name != HEAD_NAME]
    head = read_head(root)
    if _signature_is_odd(root, known[MANIFEST_NAME]):
        if head is None or not head.said:
            return {}, {SIGNATURE_NAME: f"is damaged, and so is what protects it, {HEAD_NAME}"}
        if head.is_of_another(known[MANIFEST_NAME]):
            return {}, {SIGNATURE_NAME: f"is another bundle's, and so is {HEAD_NAME}"}
    if head is None or not wrong:
        return {}, {}
    present: dict[str, bytes | None] = {name: bounded_bytes(root / name) for name in COVERED}
    made = from_head(root, head, present | dict(known), scratch)
    lost = {name: "its parity cannot bring it back" for name in wrong if name not in made}
    return {name: made[name] for name in wrong if name in made}, lost


def _signature_is_odd(root: Path, manifest_data: bytes) -> bool:
    """Tell whether there is a signature which does not even speak of this manifest."""
    if not (root / SIGNATURE_NAME).exists():
        return False
    digest = hashlib.sha256(manifest_data).hexdigest()
    return digest not in named_digests(root)[SIGNATURE_NAME]


def _head(
    root: Path, manifest_data: bytes, wanted: Mapping[str, bytes], scratch: Path | None,
    dry_run: bool,
) -> list[str]:  # fmt: skip
    """Make the head anew when it is not right; return its name if it was not."""
    if not any(name == HEAD_NAME for name, _ in head_faults(root, manifest_data)):
        return []
    if not dry_run:
        files = {name: wanted.get(name) or bounded_bytes(root / name) for name in COVERED}
        there = {name: data for name, data in files.items() if data is not None}
        with view.scratch(root, view.Need(_ROOM_BYTES), scratch) as folder:
            replace_file(root, HEAD_NAME, make_head(there, folder), 0o644)
    return [HEAD_NAME]
