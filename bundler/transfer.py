"""Gets locked files into the store: many at once, each until its SHA-256 is the promised one.

1. What is in the store is hashed before it is trusted; damaged objects are removed.
2. What lies elsewhere on this machine (a local folder, a download cache) is taken from there.
3. The rest is downloaded (`download`), if there is room for it and a network may be used.

Files that are whole stay in the store whatever happens to the others, and what is half done
stays as a part, so the same command always goes on where it was.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bundler.download import Download, Transfer, Way, is_local, translated
from bundler.errors import (
    BusyError,
    DamagedError,
    DoesNotFit,
    LockError,
    PassingFault,
    Problem,
    SourceError,
)  # fmt: skip
from bundler.events import Note, Progress, Report
from bundler.hookspecs import Source
from bundler.lock import LockedFile
from bundler.pacing import DEFAULT_PATIENCE, Bandwidth, Patience, patiently
from bundler.parallel import Stopped, in_parallel, raise_together
from bundler.part import forget_part, part_length
from bundler.value import format_size
from bundler.world import World

_REPORT_SECONDS = 0.1
_MOST_NAMED = 10


@dataclass(frozen=True)
class _Wanted:
    """One content, and every way to get it."""

    file: LockedFile
    ways: tuple[Way, ...]


def fetch(
    files: Sequence[tuple[Source, LockedFile]],
    world: World,
    *,
    step: str,
    patience: Patience = DEFAULT_PATIENCE,
) -> None:
    """Get every file into `world.store`; files that are there whole cost only their hashing.

    Raises:
        SourceError: some cannot be had; all of them are named. Offline: which ones are missing.
        DamagedError: what is served is not what was locked, also after a clean retry.
        DoesNotFit: there is no room; before the first byte where that can be known.
    """
    wanted = _distinct(files)
    stop = threading.Event()
    missing = _without_stored(wanted, world, stop)
    missing = _without_local(missing, world, stop)
    if not missing:
        return
    remote = [item for item in missing if not all(is_local(way.source) for way in item.ways)]
    if world.offline and remote:
        raise SourceError(_offline_problems(remote))
    _check_room(missing, world)
    _download_all(missing, world, step, patience, stop)


def _offline_problems(missing: Sequence[_Wanted]) -> list[Problem]:
    """Name what is missing and where it would come from, the largest first, then the sum of it."""
    largest = sorted(missing, key=lambda item: (-item.file.size_bytes, item.file.path))
    named = [
        Problem(
            f"is not in the store ({format_size(item.file.size_bytes)}), and no connection may be "
            "opened",
            f"{item.file.path} ({item.file.addresses[0]})" if item.file.addresses else item.file.path,
        )
        for item in largest[:_MOST_NAMED]
    ]  # fmt: skip
    count = f"{len(missing)} file" + ("" if len(missing) == 1 else "s")
    hint = "run the same command once with a network, without --offline; what it fetched stays"
    return [*named, Problem(f"missing: {count} of {format_size(_total(missing))}", hint=hint)]


def read_range(
    source: Source,
    file: LockedFile,
    start: int,
    length: int,
    world: World,
    *,
    patience: Patience = DEFAULT_PATIENCE,
) -> bytes:
    """Return the bytes `start` to `start + length` (or to the end) of a locked file.

    For headers: nothing can check a part of a file, so what is read is hostile input. From the
    store when it is there, otherwise by a ranged request, tried again after passing faults.

    Raises:
        SourceError: it cannot be had.
    """
    end = min(start + length, file.size_bytes)
    if world.store.has(file.sha256, file.size_bytes):
        with world.store.object_path(file.sha256).open("rb") as stored:
            stored.seek(start)
            return stored.read(end - start)
    problems: list[Problem] = []
    for address in file.addresses:
        way = Way(source, address)
        try:
            return patiently(lambda: _ranged(way, file, start, end, world), patience)  # noqa: B023 - called at once
        except SourceError as error:
            problems += [
                Problem(p.message, f"{file.path} ({address})", p.hint) for p in error.problems
            ]
    raise SourceError(problems or [Problem("has no address", file.path)])


def _ranged(way: Way, file: LockedFile, start: int, end: int, world: World) -> bytes:
    taken = bytearray()
    with (
        translated(way),
        way.source.open(way.address, start=start, end=end, validator=None, world=world) as stream,
    ):
        if stream.total_bytes not in (None, file.size_bytes):
            raise SourceError(
                f"has {stream.total_bytes} bytes there, not {file.size_bytes}", where=way.address
            )
        skip = start - stream.start
        if skip < 0:
            raise PassingFault(f"sent bytes from {stream.start} on instead of {start}")
        for chunk in stream.chunks:
            taken += chunk[skip : skip + end - start - len(taken)]
            skip = max(0, skip - len(chunk))
            if len(taken) >= end - start:
                return bytes(taken)
    if len(taken) < end - start:
        raise PassingFault("ended too early", where=way.address)
    return bytes(taken)


# -- what need not be downloaded ---------------------------------------------------------------------


def _distinct(files: Iterable[tuple[Source, LockedFile]]) -> list[_Wanted]:
    """Join files of the same content: each is fetched once, over the addresses of all."""
    found: dict[str, tuple[LockedFile, list[Way]]] = {}
    for source, file in files:
        first, ways = found.setdefault(file.sha256, (file, []))
        if first.size_bytes != file.size_bytes:
            raise LockError(
                f"{first.path} and {file.path} have the same SHA-256 but different sizes",
                hint="the lock was edited or damaged: make it anew with `bundler lock`",
            )
        ways += [w for w in (Way(source, a) for a in file.addresses) if w not in ways]
    return [_Wanted(file, tuple(ways)) for file, ways in found.values()]


def _without_stored(wanted: list[_Wanted], world: World, stop: threading.Event) -> list[_Wanted]:
    """Hash what the store has and return what is not there, or no longer right."""
    whole: set[str] = set()

    def check(item: _Wanted) -> None:
        if _is_whole(item, world):
            whole.add(item.file.sha256)

    here = [w for w in wanted if world.store.has(w.file.sha256, w.file.size_bytes)]
    raise_together(in_parallel(check, here, _name, world.parallel_transfers, stop))
    return [w for w in wanted if w.file.sha256 not in whole]


def _is_whole(item: _Wanted, world: World) -> bool:
    """Tell whether the store has the bytes; says so when they were damaged and are removed."""
    if not world.store.has(item.file.sha256, item.file.size_bytes):
        return False
    try:
        world.store.verified(item.file.sha256)
    except FileNotFoundError:
        return False  # Another process has just found it damaged.
    except DamagedError as error:
        world.report(Note(f"{item.file.path}: {error}", "warning", "it is fetched again"))
        return False
    return True


def _without_local(wanted: list[_Wanted], world: World, stop: threading.Event) -> list[_Wanted]:
    """Take what lies on this machine and return the rest."""
    adopted: set[str] = set()

    def take(item: _Wanted) -> None:
        if _adopt_local(item, world):
            adopted.add(item.file.sha256)

    raise_together(in_parallel(take, wanted, _name, world.parallel_transfers, stop))
    return [w for w in wanted if w.file.sha256 not in adopted]


def _adopt_local(item: _Wanted, world: World) -> bool:
    for source in {id(way.source): way.source for way in item.ways}.values():
        find = getattr(source, "local_copy", None)
        path = find(item.file, world) if find else None
        if path is None:
            continue
        try:
            world.store.adopt(path, expect=item.file.sha256)
        except (DamagedError, FileNotFoundError) as error:
            world.report(Note(f"{item.file.path}: the copy on this machine is not used: {error}"))
        else:
            forget_part(world.store, item.file)
            return True
    return False


def _name(item: _Wanted) -> str:
    return item.file.path


def _total(items: Iterable[_Wanted]) -> int:
    return sum(item.file.size_bytes for item in items)


def _check_room(missing: list[_Wanted], world: World) -> None:
    """Refuse to begin what cannot end: a full disk hours later helps nobody."""
    here = sum(part_length(world.store, item.file) for item in missing)
    needed = _total(missing) - here
    free = shutil.disk_usage(world.store.root).free
    if needed > free:
        raise DoesNotFit(
            f"{format_size(needed)} are to be fetched and {format_size(free)} are free: "
            f"{format_size(needed - free)} too little",
            where=str(world.store.root),
            hint="free some space, or put the store on a larger disk",
        )


# -- downloading -------------------------------------------------------------------------------------


class _Meter:
    """Adds up how far all files are, and reports it now and then; never goes back."""

    def __init__(self, report: Report, step: str, total: int) -> None:
        self._report = report
        self._step = step
        self._total = total
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        self._done = 0
        self._reported = (-1, 0.0)

    def reached(self, file: LockedFile, length: int) -> None:
        with self._lock:
            before = self._files.get(file.sha256, 0)
            if length > before:
                self._files[file.sha256] = length
                self._done += length - before
            last, when = self._reported
            now = time.monotonic()
            whole = self._done == self._total
            if last != self._done and (whole or now - when >= _REPORT_SECONDS):
                self._reported = (self._done, now)
                self._report(Progress(self._step, self._done, self._total))


def _download_all(
    missing: list[_Wanted], world: World, step: str, patience: Patience, stop: threading.Event
) -> None:
    def wait(seconds: float) -> None:
        if stop.wait(seconds) if seconds > 0 else stop.is_set():
            raise Stopped

    meter = _Meter(world.report, step, _total(missing))
    transfer = Transfer(
        world, patience, Bandwidth(world.bandwidth_bytes_per_second), wait, meter.reached
    )

    def get(item: _Wanted) -> None:
        with _Turn(item, world, wait):
            if _is_whole(item, world):  # Another process was faster.
                forget_part(world.store, item.file)
            else:
                Download(item.file, item.ways, transfer).run()
            meter.reached(item.file, item.file.size_bytes)

    largest_first = sorted(missing, key=lambda item: (-item.file.size_bytes, item.file.sha256))
    raise_together(in_parallel(get, largest_first, _name, world.parallel_transfers, stop))


class _Turn:
    """The lock of one content, waited for in a way that can be stopped."""

    def __init__(self, item: _Wanted, world: World, wait: Callable[[float], None]) -> None:
        self._item = item
        self._world = world
        self._wait = wait

    def __enter__(self) -> None:
        said = False
        while True:
            self._held = self._world.store.locked(self._item.file.sha256, timeout_seconds=0.2)
            try:
                return self._held.__enter__()
            except BusyError:
                self._wait(0)
                if not said:
                    said = True
                    self._world.report(
                        Note(f"{self._item.file.path}: another bundler is fetching it; waiting")
                    )

    def __exit__(self, *exception: object) -> None:
        self._held.__exit__(None, None, None)
