"""Applies a delta to a bundle: everything is looked at first, built beside, read back, then switched.

Nothing is written before the delta's list, its signature, its pieces, the room and the bundle's names
were looked at. Until the new version is whole and was read back, the old one is untouched. A run
that was cut off, whenever that was, is finished by the same command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256 as sha256_of
from pathlib import Path

from bundler.descriptors import open_locked_folder
from bundler.errors import (
    BusyError,
    DamagedError,
    Problem,
    RecipeError,
    TrustError,
)
from bundler.events import Progress, Report, silent
from bundler.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    SUMS_NAME,
    Manifest,
    sums_text,
)
from bundler.media.copies import Candidate, bounded_bytes, right_manifest
from bundler.media.keyring import Keyring, KnownKey, hear
from bundler.media.signature import MAX_SIGNATURE_BYTES
from bundler.store import sync_folder
from bundler.update.delta import BESIDE_FOLDER, TRAVELLING, Side, check_delta, side_of
from bundler.update.in_the_way import check_in_the_way, check_no_stranger
from bundler.update.reading import (
    Pieces,
    ReadDelta,
    check_pieces,
    read_delta,
    signed_manifest,
)
from bundler.update.staging import (
    STAGING_NAME,
    Count,
    Staged,
    build,
    check_new_version,
    check_room,
    needed_bytes,
    open_staging,
    staged_files,
    sweep,
)
from bundler.update.switching import (
    OLD_MANIFEST,
    OLD_SIGNATURE,
    close_staging,
    prepare,
    renew_beside,
    switch,
    switching_to,
)
from bundler.update.unpacking import check_zstd
from bundler.update.vouching import SignedManifest, check_not_older, judge_delta
from bundler.value import format_bytes
from bundler.verify import refuse_unsafe, unsafe_findings, verify_bundle


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe."""

    ring: Keyring = field(default_factory=Keyring)
    unsigned: bool = False
    """Look for accidents alone."""
    same_maker: bool = False
    allow_older: bool = False
    learned: Callable[[Keyring], None] = lambda ring: None
    """Told what trusted keys say of keys, before anything is judged: a refused update teaches too."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of it."""

    delta: ReadDelta
    key: KnownKey | None
    ring: Keyring
    """What this machine knows now."""
    changed: int
    """Files that were built or moved."""
    needed_bytes: int
    already: bool = False
    """The bundle was of the new version before."""


def apply_delta(
    root: Path, bundle: Path, trust: Trust, report: Report = silent, *, dry_run: bool = False
) -> Applied:
    """Bring the bundle at `bundle` to the version that the delta at `root` leads to.

    Args:
        root: the delta's directory.
        bundle: the bundle's directory; it is changed.
        trust: whom to believe.
        report: whom to tell.
        dry_run: look at everything, and change nothing.

    Raises:
        RecipeError: the bundle is of another version than the delta begins with.
        TrustError: the delta or what it leads to is not to be believed.
        DamagedError: the delta is damaged, or the bundle is where the update needs it.
        UnsafeInput: the delta would do what no delta does, or something lies in the way.
        DoesNotFit: there is not enough room.
        BusyError: something else works on the bundle.
    """
    bundle = bundle.resolve()
    read = read_delta(root)
    told = hear(trust.ring, read.new.statements)
    if told != trust.ring and not dry_run:
        trust.learned(told)
    with _alone(bundle):
        # Before anything is read, moved or removed: a link could lead each of those elsewhere.
        refuse_unsafe(bundle, unsafe_findings(bundle))
        mark = sha256_of(read.data).hexdigest()
        interrupted = switching_to(bundle)
        if interrupted not in ("", mark):
            raise RecipeError(
                "another update of this bundle was cut off in its last step",
                where=str(bundle),
                hint="apply that one again first: its list has the SHA-256 " + interrupted[:64],
            )
        old, already = _old_version(bundle, read, bool(interrupted))
        key, ring = _judged(read, old, trust)
        if already:
            if not dry_run and os.path.lexists(bundle / STAGING_NAME):
                close_staging(bundle)
            return Applied(read, key, ring, 0, 0, already=True)
        check_delta(read.delta, old.manifest, read.new.manifest)
        check_zstd(read.delta.zstd)
        staged = staged_files(read.delta, read.new.manifest)
        need = 0 if interrupted else _look(bundle, read, old, staged, report, dry_run=dry_run)
        if dry_run:
            return Applied(read, key, ring, len(staged), need)
        if interrupted:
            # What lies there is not known: the lists are written anew from what was judged.
            check_no_stranger(bundle, old.manifest, staged)
            renew_beside(bundle, _beside(read))
        else:
            _build_all(bundle, read, old, staged, report)
        switch(bundle, staged, old.manifest, read.new.manifest, _beside(read), mark)
        if interrupted:
            _check_all(bundle, read, report)
        return Applied(read, key, ring, len(staged), need)


@contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    """Hold the bundle's folder, as a repair does: the lock goes with the process."""
    try:
        descriptor = open_locked_folder(bundle, through_links=True)
    except BlockingIOError as error:
        message = "another update or repair of this bundle is running"
        raise BusyError(message, where=str(bundle)) from error
    except OSError as error:
        hint = "give the directory of the bundle that is to be updated"
        raise DamagedError("is not a bundle", where=str(bundle), hint=hint) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _old_version(bundle: Path, read: ReadDelta, interrupted: bool) -> tuple[SignedManifest, bool]:
    """Return the version the delta begins with, and whether the bundle is of the new one already.

    In a switch that was cut off, `manifest.json` is the old one until everything else is in place.

    Raises:
        RecipeError: it is of neither.
    """
    first = bounded_bytes(bundle / MANIFEST_NAME) or b""
    if sha256_of(first).hexdigest() == read.delta.after.manifest_sha256:
        return read.new, True
    wanted = read.delta.before.manifest_sha256
    if interrupted:
        staging = bundle / STAGING_NAME
        for data in (bounded_bytes(staging / OLD_MANIFEST) or b"", first):
            if sha256_of(data).hexdigest() == wanted:
                kept = signed_manifest(data, staging, str(bundle))
                signed = bounded_bytes(staging / OLD_SIGNATURE, MAX_SIGNATURE_BYTES)
                return SignedManifest(kept.manifest, data, signed), False
    believed = right_manifest(bundle)
    if believed.sha256 == read.delta.after.manifest_sha256 and not interrupted:
        return read.new, True
    if believed.sha256 == wanted:
        return signed_manifest(believed.data, bundle, MANIFEST_NAME), False
    raise _other_version(bundle, read, side_of(_manifest(believed), believed.sha256))


def _manifest(believed: Candidate) -> Manifest:
    assert believed.manifest is not None
    return believed.manifest


def _other_version(bundle: Path, read: ReadDelta, there: Side) -> RecipeError:
    before, after = read.delta.before, read.delta.after
    return RecipeError(
        f"the update begins with {before}; what lies there is {there}",
        where=str(bundle),
        hint=f"get the update from {there.version} to {after.version}, or apply the one from "
        f"{there.version} to {before.version} first",
    )


def _judged(read: ReadDelta, old: SignedManifest, trust: Trust) -> tuple[KnownKey | None, Keyring]:
    if trust.unsigned:
        check_not_older(read.delta, allow_older=trust.allow_older)
        return None, trust.ring
    try:
        return judge_delta(
            trust.ring, read.delta, read.data, read.signed, old, read.new,
            same_maker=trust.same_maker, allow_older=trust.allow_older,
        )  # fmt: skip
    except TrustError as error:
        where = str(read.root)
        raise TrustError(
            [Problem(p.message, p.where or where, p.hint) for p in error.problems]
        ) from error


# -- building ----------------------------------------------------------------------------------------


def _look(
    bundle: Path, read: ReadDelta, old: SignedManifest, staged: tuple[Staged, ...], report: Report,
    *, dry_run: bool,
) -> int:  # fmt: skip
    """Look at pieces, names and room, before anything is touched; return how much room it takes."""
    check_pieces(read.root, read.delta, lambda done, total: report(Progress("check", done, total)))
    check_in_the_way(bundle, old.manifest, read.new.manifest)
    if not dry_run and os.path.lexists(bundle / STAGING_NAME):
        sweep(open_staging(bundle), staged)
    need = needed_bytes(bundle, staged)
    check_room(bundle, need)
    return need


def _build_all(
    bundle: Path, read: ReadDelta, old: SignedManifest, staged: tuple[Staged, ...], report: Report
) -> None:
    """Build everything new beside the old version, and read it back."""
    new = read.new.manifest
    open_staging(bundle)
    pieces, built = Pieces(read.root, read.delta), _counted("build", _total(staged), report)
    for one in staged:
        build(bundle, one, pieces, new.segment_bytes, built)
    sync_folder(bundle / STAGING_NAME)
    read_back = _counted("verify", sum(file.size_bytes for file in new.files), report)
    check_new_version(bundle, staged, old.manifest, new, read_back)
    prepare(bundle, old.data, old.signed, _beside(read))


def _total(staged: tuple[Staged, ...]) -> int:
    return sum(one.file.size_bytes for one in staged)


def _counted(step: str, total: int, report: Report) -> Count:
    """Return what is told of bytes and tells how far a step is."""
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        report(Progress(step, done, total))

    return count


def _beside(read: ReadDelta) -> dict[str, bytes]:
    """Return what will lie beside the listed files of the new version: name → bytes."""
    found = {name: bounded_bytes(read.root / BESIDE_FOLDER / name) for name in TRAVELLING}
    sums = sums_text(read.new.manifest.files, read.delta.after.manifest_sha256).encode()
    there = {name: data for name, data in found.items() if data is not None}
    return there | {SUMS_NAME: sums, COPY_NAME: read.new.data, MANIFEST_NAME: read.new.data}


def _check_all(bundle: Path, read: ReadDelta, report: Report) -> None:
    """Hold the bundle against the new version after a switch that another run had begun.

    What that run had built is not known, and the manifest is the one that was judged.

    Raises:
        DamagedError: every file that is not right.
    """
    done = verify_bundle(
        bundle, progress=lambda done, total: report(Progress("verify", done, total))
    )
    if done.manifest_data != read.new.data:
        raise DamagedError("is not the manifest of this update", where=str(bundle / MANIFEST_NAME))
    found = done.findings
    if found:
        hint = f"bundler repair {bundle}"
        raise DamagedError([Problem(str(one), str(bundle), hint) for one in found])


# -- in words ----------------------------------------------------------------------------------------


def applied_as_json(done: Applied, *, dry_run: bool) -> dict[str, object]:
    """Return what came of it for programs."""
    delta = done.delta.delta
    return {
        "from": delta.before.model_dump(mode="json"), "to": delta.after.model_dump(mode="json"),
        "already": done.already, "dry_run": dry_run, "changed_files": done.changed,
        "needed_bytes": done.needed_bytes, "signed_by": done.key.key_id if done.key else "",
    }  # fmt: skip


def applied_in_words(done: Applied, *, dry_run: bool) -> Iterator[str]:
    """Yield what came of it for people."""
    delta = done.delta.delta
    if done.already:
        yield f"the bundle is {delta.after} already"
    elif dry_run:
        yield f"can be updated from {delta.before} to {delta.after}"
        yield f"{done.changed} files change; {format_bytes(done.needed_bytes)} of room are needed"
    else:
        yield f"updated from {delta.before} to {delta.after}: {done.changed} files changed"
    if done.key is not None:
        whose = f" ({done.key.label})" if done.key.label else ""
        yield f"signed with key {done.key.key_id}{whose}"
    else:
        yield "nobody was asked who made it: this finds accidents alone"
