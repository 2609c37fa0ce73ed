"""Repairs a bundle: finds what is not right, and brings it back set by set, or leaves it alone.

First names (a renamed file, a twin with the same content, a lost mode), which cost nothing; then
content, from parity, one set after the other; then parity itself, which is made anew once its
pieces are right; then what no manifest lists. Nothing is written before its digest is right, and
nothing outside the bundle but scratch. It repairs accidents: who made the bundle, and whether the
manifest is theirs, is for `bundler verify` to say.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bundler.descriptors import open_locked_folder, set_mode
from bundler.errors import BundlerError, BusyError, DamagedError, Problem
from bundler.events import Progress, Report, silent
from bundler.grouping import Group, Piece, group_of, pieces_of
from bundler.manifest import BESIDE, BundleFile, Manifest, ParitySet
from bundler.media import view
from bundler.media.beside_repair import believed_manifest, repair_beside
from bundler.media.copies import Candidate, check_is_bundle
from bundler.media.mending import cut_to_size, is_right, mend_from, replace_file, safe_parent
from bundler.media.parity import make_set
from bundler.media.set_repair import Damage, repair_set, said
from bundler.printable import printable_name
from bundler.segments import copy_range
from bundler.store import hash_file, sync_folder
from bundler.verify import (
    Finding,
    Verification,
    refuse_unsafe,
    unsafe_findings,
    verify_against,
)


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair found and did."""

    before: Verification
    repaired: tuple[str, ...]
    """Paths that are right now, as verifying says (with `dry_run`: that could be made so)."""
    unrepaired: tuple[Problem, ...]
    extra: tuple[str, ...]
    """Files that nobody promised: they are left alone."""
    budgets: tuple[str, ...]
    """Of each set that was needed: how much of it."""


def repair_bundle(
    root: Path, *, dry_run: bool = False, workers: int = 2, scratch: Path | None = None,
    report: Report = silent,
) -> Repair:  # fmt: skip
    """Bring the bundle at `root` back to what its manifest says, as far as its parity goes.

    Args:
        root: the bundle's directory.
        dry_run: only tell what would be repaired; writes nothing into the bundle.
        workers: threads that hash.
        scratch: folder for what is needed for a while; this machine's own by default.
        report: whom to tell.

    Raises:
        RecipeError: this is no bundle.
        DamagedError: there is no manifest to repair by, or nothing can be written there.
        UnsafeInput: a link or something else that is no file lies in the bundle.
        BusyError: another repair of it is running.
    """
    check_is_bundle(root)
    root = root.resolve()
    with _alone(root):
        view.sweep(Path(tempfile.gettempdir()) if scratch is None else scratch)
        if not dry_run:
            view.check_writable(root)
            view.sweep(root)
        refuse_unsafe(root, unsafe_findings(root))
        believed = believed_manifest(root, scratch)
        before = verify_against(
            root, believed, workers=workers,
            progress=lambda done, total: report(Progress("verify", done, total)),
        )  # fmt: skip
        refuse_unsafe(root, before.findings)
        return _Work(root, before, scratch, dry_run, report).done(believed)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the bundle's folder: the lock goes with the process, whatever becomes of it."""
    try:
        descriptor = open_locked_folder(root, through_links=True)
    except BlockingIOError as error:
        raise BusyError("another repair of this bundle is running", where=str(root)) from error
    except OSError as error:
        hint = "give the directory that `bundler build` made"
        raise DamagedError("is not a bundle", where=str(root), hint=hint) from error
    try:
        yield
    finally:
        os.close(descriptor)


@dataclass
class _Work:
    """One repair, under way."""

    root: Path
    before: Verification
    scratch: Path | None
    dry_run: bool
    report: Report
    repaired: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    budgets: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        return self.before.manifest

    def done(self, believed: Candidate) -> Repair:
        """Do it all, in order."""
        files = {file.path: file for file in self.manifest.files}
        self._sweep_unfinished()
        # A file can have lost its mode and its content: two findings, and the mode comes last.
        modes = [f for f in self.before.findings if f.kind == "mode"]
        findings = {f.path: f for f in self.before.findings if f.path in files and f not in modes}
        for finding in findings.values():
            if finding.kind == "renamed":
                self._try(finding.path, self._named_right, finding, files[finding.path])
        wrong = {
            p: f for p, f in findings.items() if p not in self.repaired and p not in self.failed
        }
        self._from_twins(wrong, files, set(findings))
        self._overlong(wrong, files)
        self._from_parity({p: f for p, f in wrong.items() if p not in self.repaired}, files)
        self._parity_anew({p: f for p, f in wrong.items() if p not in self.repaired}, files)
        for finding in modes:
            self._try(finding.path, self._marked, finding.path)
        self._beside(believed)
        if not self.dry_run:
            self._read_again(believed)
        self.repaired -= set(self.failed)
        return Repair(
            self.before, tuple(sorted(self.repaired)), self._problems(), self._extra(),
            tuple(self.budgets),
        )  # fmt: skip

    def _read_again(self, believed: Candidate) -> None:
        """Take for repaired what verifying finds nothing wrong with now; read what was wrong."""
        files = {file.path: file for file in self.manifest.files}
        wrong = [f for f in self.before.findings if f.path in self.repaired and f.path in files]
        touched = {
            piece for f in wrong if f.kind in ("changed", "missing")
            for piece in self._damaged_pieces(files[f.path], f)
        }  # fmt: skip
        after = verify_against(
            self.root, believed, only=touched,
            progress=lambda done, total: self.report(Progress("verify again", done, total)),
        )  # fmt: skip
        for finding in after.findings:
            if finding.kind != "extra":
                self.repaired.discard(finding.path)
                self.failed.setdefault(finding.path, f"is still not right: {finding}")

    def _sweep_unfinished(self) -> None:
        """Remove files that a killed repair was writing beside their places."""
        for finding in self.before.findings:
            path = self.root / finding.path
            if finding.kind == "extra" and path.name.startswith(view.PREFIX) and not self.dry_run:
                with suppress(PermissionError):  # Windows: it runs still; it stays among the extra
                    path.unlink(missing_ok=True)

    def _problems(self) -> tuple[Problem, ...]:
        hint = "copy these files anew from the bundle's origin, or from another copy of it"
        return tuple(
            Problem(f"{printable_name(path)}: {why}", str(self.root), hint)
            for path, why in self.failed.items()
        )

    def _extra(self) -> tuple[str, ...]:
        found = (f.path for f in self.before.findings if f.kind == "extra")
        return tuple(path for path in found if (self.root / path).exists())

    def _try(self, path: str, act: Callable[..., bool], *given: object) -> None:
        """Do something to one file; remember that it is right now, or why not."""
        try:
            if self.dry_run or act(*given):
                self.repaired.add(path)
        except BundlerError as error:
            self.failed[path] = "; ".join(problem.message for problem in error.problems)
        except OSError as error:
            self.failed[path] = said(error, self.root)

    # -- names ---------------------------------------------------------------------------------------

    def _named_right(self, finding: Finding, file: BundleFile) -> bool:
        """Give a file its name back. False when somebody took it away meanwhile."""
        path = self.root / file.path
        now = self.root / finding.detail.removeprefix("is now ")
        if not now.exists():
            return False  # Two files of the same content: it went to the other one.
        safe_parent(self.root, file.path)
        now.rename(path)
        sync_folder(path.parent)
        sync_folder(now.parent)
        if file.executable:
            self._marked(file.path)
        return True

    def _marked(self, path: str) -> bool:
        """Mark a file as a program, and not the object of a store that it shares its bytes with."""
        place = self.root / path
        if place.lstat().st_nlink > 1:
            replace_file(self.root, path, place, 0o755)
        else:
            set_mode(place, 0o755)
        return True

    def _from_twins(
        self, wrong: dict[str, Finding], files: dict[str, BundleFile], not_right: set[str]
    ) -> None:
        """Bring files back that are empty, or of which the bundle holds the same bytes elsewhere."""
        twins = {f.sha256: f.path for f in files.values() if f.path not in not_right}
        twins |= {files[path].sha256: path for path in self.repaired}
        for path in wrong:
            file, twin = files[path], twins.get(files[path].sha256)
            if not file.size_bytes or twin is not None:
                self._try(path, self._copied, file, twin)

    def _copied(self, file: BundleFile, twin: str | None) -> bool:
        if twin is None:
            replace_file(self.root, file.path, b"", 0o755 if file.executable else 0o644)
        else:
            mend_from(self.root, file, self.root / twin)
        pieces = pieces_of(file, self.manifest.segment_bytes)
        return all(is_right(self.root, piece) for piece in pieces)

    # -- content -------------------------------------------------------------------------------------

    def _sets(self, files: dict[str, BundleFile]) -> Iterator[tuple[ParitySet, Group]]:
        for one in self.manifest.parity.sets if self.manifest.parity is not None else ():
            yield one, group_of(one, files.__getitem__, self.manifest.segment_bytes)

    def _from_parity(self, wrong: dict[str, Finding], files: dict[str, BundleFile]) -> None:
        """Repair damaged pieces, one set after the other."""
        damaged = {
            piece for path, finding in wrong.items()
            for piece in self._damaged_pieces(files[path], finding)
        }  # fmt: skip
        covered: set[Piece] = set()
        for one, group in self._sets(files):
            pieces = tuple(piece for piece in group.pieces if piece in damaged)
            covered |= set(pieces)
            if pieces:
                self._repair(Damage(self.root, group, one, pieces), files)
                done, total = len(covered), len(damaged)
                self.report(Progress("repair", done, total, "files"))
        self._take_back(wrong)
        parity_files = {one.file for one, _ in self._sets(files)}
        for piece in damaged - covered:
            if piece.path not in parity_files:
                self.failed[piece.path] = "the bundle has no parity for it"

    def _take_back(self, wrong: dict[str, Finding]) -> None:
        """Remove lost files that came back in part only: half a file is worse than none."""
        for path, finding in wrong.items():
            if finding.kind == "missing" and path in self.failed and not self.dry_run:
                self._try_to_remove(self.root / path)

    def _try_to_remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self.failed[str(path.relative_to(self.root))] += f"; {said(error, self.root)}"

    def _damaged_pieces(self, file: BundleFile, finding: Finding) -> list[Piece]:
        pieces = [p for p in pieces_of(file, self.manifest.segment_bytes) if p.size_bytes]
        if finding.kind != "changed":
            return pieces
        return [p for p in pieces if any(a <= p.offset < b for a, b in finding.ranges)]

    def _repair(self, damage: Damage, files: dict[str, BundleFile]) -> None:
        outcome = repair_set(damage, files, self.scratch, dry_run=self.dry_run)
        if outcome.budget:
            self.budgets.append(outcome.budget)
        for path in {piece.path for piece in damage.pieces}:
            why_not = outcome.why_not or outcome.failed.get(path, "")
            if why_not:
                self.failed[path] = why_not
                self.repaired.discard(path)
            elif path not in self.failed:
                self.repaired.add(path)

    def _overlong(self, wrong: dict[str, Finding], files: dict[str, BundleFile]) -> None:
        """Cut away what was appended to files that are right otherwise."""
        for path, finding in wrong.items():
            if finding.kind == "changed" and not finding.ranges and path not in self.repaired:
                self._try(path, self._cut, files[path])

    def _cut(self, file: BundleFile) -> bool:
        cut_to_size(self.root, file)
        return True

    # -- parity and what nobody lists --------------------------------------------------------------------

    def _parity_anew(self, wrong: dict[str, Finding], files: dict[str, BundleFile]) -> None:
        """Make damaged parity again from pieces that are right."""
        for one, group in self._sets(files):
            if one.file not in wrong:
                continue
            if any(piece.path in self.failed for piece in group.pieces):
                self.failed[one.file] = "it can be made again only when what it protects is right"
            else:
                self._try(one.file, self._made_anew, group, files[one.file])

    def _made_anew(self, group: Group, file: BundleFile) -> bool:
        need = view.need_to_make(group, file.size_bytes)
        with view.scratch(self.root, need, self.scratch) as folder:

            def place(piece: Piece, target: Path) -> None:
                copy_range(self.root / piece.path, piece.offset, piece.size_bytes, target)

            made, _ = make_set(group, place, folder)
            if hash_file(made) != file.sha256:
                self.failed[file.path] = "this par2 makes other bytes of it than the one before did"
                return False
            mend_from(self.root, file, made)
        return True

    def _beside(self, believed: Candidate) -> None:
        wrong = {f.path for f in self.before.findings if f.path in BESIDE}
        if not wrong:
            return
        try:
            changed, failed = repair_beside(
                self.root, believed, self.manifest, self.scratch, dry_run=self.dry_run
            )
        except BundlerError as error:
            changed, failed = [], dict.fromkeys(wrong, str(error))
        except OSError as error:
            changed, failed = [], dict.fromkeys(wrong, said(error, self.root))
        self.repaired |= set(changed)
        self.failed |= failed
