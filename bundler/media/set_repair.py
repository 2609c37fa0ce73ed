"""Repairs the pieces of one parity set: in a view first, in the bundle only when every digest is right."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bundler.errors import BundlerError
from bundler.grouping import Group, Piece
from bundler.manifest import BundleFile, ParitySet
from bundler.media import par2, view
from bundler.media.mending import is_right, mend
from bundler.media.packets import Usable
from bundler.value import format_bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the damaged pieces of one set."""

    why_not: str = ""
    """Why none of them could be repaired; "" when they were, or could be."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Files that could not be written, and why."""
    budget: str = ""
    """How much of the set's parity that takes."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One set of a bundle with pieces that are not right."""

    root: Path
    group: Group
    recorded: ParitySet
    pieces: tuple[Piece, ...]


def repair_set(
    damage: Damage, files: dict[str, BundleFile], scratch: Path | None, *, dry_run: bool
) -> Outcome:
    """Repair the damaged pieces of one set, all or none; with `dry_run` only tell whether it would."""
    parity_file = damage.root / damage.recorded.file
    try:
        parity_bytes = parity_file.stat().st_size
        need = view.need(damage.group, damage.pieces, parity_bytes)
        with view.scratch(damage.root, need, scratch) as folder:
            return _repaired_in(folder, damage, files, dry_run)
    except BundlerError as error:
        return Outcome("; ".join(str(problem) for problem in error.problems))
    except OSError as error:
        return Outcome(said(error, damage.root))


def _repaired_in(
    folder: Path, damage: Damage, files: dict[str, BundleFile], dry_run: bool
) -> Outcome:
    par2_file, place = folder / "set.par2", folder / "view"
    source = damage.root / damage.recorded.file
    set_id = bytes.fromhex(damage.recorded.set_id)
    kept = view.checked_parity(source, damage.group, set_id, par2_file)
    if kept is None:
        return Outcome(f"{damage.recorded.file} is damaged too: what describes the set is lost")
    place.mkdir()
    view.fill(place, damage.root, damage.group, {piece.name for piece in damage.pieces})
    act = par2.check if dry_run else par2.repair
    answer = act(place, par2_file, damage.group)
    budget = budget_text(damage, kept, answer)
    if answer.outcome == "not enough":
        return Outcome(f"more is damaged than its parity can bring back: {budget}", budget=budget)
    if answer.outcome == "failed":
        return Outcome(f"par2 failed: {answer.text[-300:]}", budget=budget)
    if dry_run:
        return Outcome(budget=budget)
    wrong = [piece.name for piece in damage.pieces if not _right_in(place, piece)]
    if wrong:
        return Outcome(f"what parity brought back is not what the manifest promises: {wrong[0]}")
    return _mended(damage, files, place, budget)


def _right_in(place: Path, piece: Piece) -> bool:
    path = place / piece.name
    if path.is_symlink() or not path.is_file() or path.stat().st_size != piece.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == piece.sha256


def _mended(damage: Damage, files: dict[str, BundleFile], place: Path, budget: str) -> Outcome:
    """Put the right pieces into the bundle, and read them back from the medium."""
    by_path: dict[str, dict[Piece, Path]] = {}
    for piece in damage.pieces:
        by_path.setdefault(piece.path, {})[piece] = place / piece.name
    failed = {}
    for path, right in by_path.items():
        try:
            mend(damage.root, files[path], right)
        except OSError as error:
            failed[path] = said(error, damage.root)
        except BundlerError as error:
            failed[path] = "; ".join(problem.message for problem in error.problems)
        if path not in failed and not all(is_right(damage.root, piece) for piece in right):
            failed[path] = "was written, and reads back otherwise: the medium is failing"
    return Outcome(failed=failed, budget=budget)


def budget_text(damage: Damage, kept: Usable, answer: par2.Answer) -> str:
    """Say how much of the parity is needed and how much there is."""
    there, short = len(kept.recovery), answer.blocks_short
    lost = damage.recorded.recovery_blocks - there
    said_lost = f" ({lost} of its own are damaged)" if lost else ""
    size = format_bytes(damage.group.block_bytes)
    if short:
        return f"it needs {there + short} blocks of {size}, {there} are there{said_lost}"
    wrong = answer.blocks_damaged
    are = "1 block is" if wrong == 1 else f"{wrong} blocks are"
    return (
        f"{are} damaged, {damage.recorded.file} can bring back {there}{said_lost}, of {size} each"
    )


def said(error: OSError, root: Path) -> str:
    """Say what the system said, with the figures when the disk is full."""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what += f", {format_bytes(shutil.disk_usage(root).free)} are free"
    return f"{what}: {error.filename}" if error.filename else what
