"""One bundle onto one stick: look, check, copy, read back, close. Says what held and what did not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256 as sha256_of
from pathlib import Path

from bundler.deploy import checks, probes
from bundler.deploy.capacity import probe_capacity
from bundler.deploy.cargo import Cargo
from bundler.deploy.evidence import PastCache
from bundler.deploy.ground import Ground, look_at
from bundler.deploy.kernel import flush_filesystem, forget_pages
from bundler.deploy.outcome import Outcome, Wishes, together
from bundler.deploy.place import Place, mark
from bundler.deploy.source import Reader, new_buffers
from bundler.deploy.steps import Step
from bundler.deploy.stopping import Stopped, told
from bundler.deploy.survey import Survey, Surveyor, Task
from bundler.deploy.writing import Writer
from bundler.errors import BundlerError, BusyError, DamagedError, RecipeError
from bundler.events import Note, Report, StepFinished, StepStarted, silent
from bundler.grouping import Piece, pieces_of
from bundler.manifest import BundleFile
from bundler.value import format_size


def deploy_to(
    cargo: Cargo, target: Path, wishes: Wishes, stop: threading.Event, report: Report = silent
) -> Outcome:
    """Copy a bundle to one stick and return what became of it; raises nothing that a stick can do."""
    outcome = Outcome(target)
    started = time.monotonic()
    try:
        with _held(target):
            _Delivery(cargo, target, wishes, stop, report, outcome).run()
    except Stopped:
        outcome.state = "stopped"
    except BundlerError as error:
        outcome.errors.append(error)
    except OSError as error:
        outcome.errors.append(told(error, target))
    outcome.seconds = time.monotonic() - started
    return outcome


@contextlib.contextmanager
def _held(target: Path, busy: str = "another bundler is copying to it") -> Iterator[None]:
    """Hold a folder for this process alone.

    Raises:
        RecipeError: it is no folder.
        BusyError: another process holds it.
    """
    import fcntl

    if not target.is_dir():
        raise RecipeError(
            "is no folder" if target.exists() else "does not exist: is the stick mounted there?",
            where=str(target), hint="`lsblk` or `df` tell where sticks are mounted",
        )  # fmt: skip
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy, where=str(target), hint="wait until it is done") from error
        yield
    finally:
        os.close(descriptor)


class _Delivery:
    """The steps of one stick."""

    def __init__(
        self, cargo: Cargo, target: Path, wishes: Wishes, stop: threading.Event, report: Report,
        outcome: Outcome,
    ) -> None:  # fmt: skip
        self.cargo, self.target, self.wishes = cargo, target, wishes
        self.stop, self.report, self.outcome = stop, report, outcome
        self.buffers = new_buffers()
        self.place = Place(target, cargo.manifest.name)
        self.ground = look_at(target)
        outcome.place, outcome.ground = self.place.root, self.ground

    def run(self) -> None:
        """Do it all, or as much as can be done."""
        root = self.place.root
        with contextlib.ExitStack() as held:
            if root.is_dir() and not root.is_symlink() and not root.samefile(self.target):
                held.enter_context(
                    _held(root, "an update or repair of the bundle there is running")
                )
            self._run()

    def _run(self) -> None:
        survey = self._look()
        self._refuse(checks.objections(
            self.ground, self.cargo.manifest, survey, self.cargo.beside,
            file_limit_bytes=_file_limit(), delete=self.wishes.delete,
        ))  # fmt: skip
        if self.wishes.dry_run:
            self.outcome.state = "planned"
        elif survey.changes_nothing and not survey.leftovers:
            self._mark_executable(survey)
            self.outcome.state = "unchanged"
        else:
            self._try(survey)
            self._change(survey)
            self.outcome.state = "copied"

    # -- before anything is written ----------------------------------------------------------------

    def _look(self) -> Survey:
        with self._step("compare") as said, self._reading() as reading:
            survey = Surveyor(
                self.place, self.cargo.manifest, self.cargo.beside, reading, said.progress,
                deleting=self.wishes.delete,
            ).survey()  # fmt: skip
            there, rest = map(format_size, (survey.kept_bytes, survey.write_bytes))
            said.detail = f"{there} there, {rest} to write; {self.ground}"
        self.outcome.compared = reading.evidence()
        self.outcome.survey = survey
        for note in checks.remarks(self.ground, survey):
            self.report(note)
        return survey

    def _refuse(self, found: Iterable[BundlerError]) -> None:
        errors = list(found)
        if errors:
            raise together(errors)

    def _try(self, survey: Survey) -> None:
        self._refuse(probes.tried(self.ground, self.cargo.manifest))
        if self.wishes.probe and survey.write_bytes:
            self.outcome.probe = probe_capacity(self.ground, self.stop)
            self.report(Note(f"{self.target}: {self.outcome.probe}"))

    # -- writing -----------------------------------------------------------------------------------

    def _change(self, survey: Survey) -> None:
        cargo, place = self.cargo, self.place
        place.begin(cargo.manifest_sha256, cargo.beside["manifest.json"])
        for sha256 in survey.stale:
            place.part(sha256).unlink()
        if self.wishes.delete:
            place.delete(left.path for left in survey.leftovers)
            self.outcome.deleted = tuple(left.path for left in survey.leftovers)
        self._write(survey.tasks, "copy")
        self._mark_executable(survey)
        self._read_back(survey.tasks)
        place.finish(dict(cargo.beside))
        self._compare_head()
        place.close()

    def _write(self, tasks: tuple[Task, ...], word: str) -> None:
        total = sum(task.write_bytes for task in tasks)
        with self._step(word) as said, Reader(self.cargo.root, self.buffers) as reader:

            def more(count: int) -> None:
                self.outcome.written_bytes += count
                said.more(count, total)

            writer = Writer(self.place, reader, self.cargo.manifest.segment_bytes, self.stop, more)
            writer.write(tasks)
            said.detail = said.rate(total)
        if writer.damaged:
            raise together(writer.damaged)

    def _mark_executable(self, survey: Survey) -> None:
        for file in survey.modes:
            mark(self.place.root / file.path, executable=True)

    # -- proving -----------------------------------------------------------------------------------

    def _read_back(self, tasks: tuple[Task, ...]) -> None:
        """Read what was written from the device; what came back wrong is written once more."""
        wrong = self._wrong(tasks, "read back")
        if not wrong:
            return
        self.outcome.mended = tuple(task.file.path for task in wrong)
        self._write(wrong, "write again")
        again = self._wrong(wrong, "read back again")
        if again:
            raise DamagedError(
                f"does not keep what is written to it: {checks.named([t.file.path for t in again])}",
                where=str(self.target), hint="it is broken, or claims more room than it has: "
                "do not use it; try another stick",
            )  # fmt: skip

    def _wrong(self, tasks: tuple[Task, ...], word: str) -> tuple[Task, ...]:
        found = []
        total = sum(task.file.size_bytes for task in tasks)
        with self._step(word) as said, self._reading() as reading:
            for task in tasks:
                wrong = self._wrong_pieces(reading, task.file, lambda n: said.more(n, total))
                if wrong:
                    found.append(Task(task.file, "taken", wrong, task.file.size_bytes))
            said.detail = said.rate(total)
        self.outcome.read_back += reading.evidence()
        return tuple(found)

    def _wrong_pieces(
        self, reading: PastCache, file: BundleFile, more: Callable[[int], None]
    ) -> tuple[Piece, ...]:
        wrong = []
        pieces = pieces_of(file, self.cargo.manifest.segment_bytes)
        for piece, fault in reading.faults(self.place.root / file.path, pieces):
            more(piece.size_bytes)
            if fault:
                wrong.append(piece)
        return tuple(wrong)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[PastCache]:
        """Give a reader that the memory of this computer cannot answer.

        Targets on one device take turns: its counter must count for one of them.
        """
        with _lock_of(self.ground.device or str(self.target)):
            with _descriptor(self.target) as opened:
                flush_filesystem(opened)  # what is not on the device yet would stay in memory
            _forget_device(self.ground)
            with PastCache(self.ground, self.stop, self.buffers) as reading:
                yield reading

    def _compare_head(self) -> None:
        """Make sure of the manifest and what stands beside it, which came last."""
        with self._reading() as reading:
            for name, data in self.cargo.beside.items():
                piece = Piece(name, None, 0, len(data), sha256_of(data).hexdigest())
                for _, fault in reading.faults(self.place.root / name, [piece]):
                    if fault:
                        raise DamagedError(
                            f"does not keep what is written to it: {name} ({fault})",
                            where=str(self.target), hint="run the same command again; if it stays "
                            "so, use another stick",
                        )  # fmt: skip
        self.outcome.read_back += reading.evidence()

    @contextlib.contextmanager
    def _step(self, word: str) -> Iterator[Step]:
        name = f"{word} {self.target}"
        self.report(StepStarted(name))
        step = Step(name, self.report)
        yield step
        self.report(StepFinished(name, "done", step.detail))


# -- smaller things ------------------------------------------------------------------------------------


def _file_limit() -> int | None:
    """Return the largest file this process may write; None without a limit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


def _forget_device(ground: Ground) -> None:
    """Drop what the kernel remembers of the device itself: there a program's filesystem is cached.

    Only who may read the device can do that; whether it helped, the device's counter tells.
    """
    if not ground.through_program or not ground.source.startswith("/dev/"):
        return
    with contextlib.suppress(PermissionError), _descriptor(Path(ground.source)) as opened:
        forget_pages(opened)


@contextlib.contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


_LOCKS: dict[str, threading.Lock] = {}
_LOCKS_LOCK = threading.Lock()


def _lock_of(device: str) -> threading.Lock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(device, threading.Lock())
