"""One file: from its addresses into a part, until its bytes are the promised ones.

The judge is the SHA-256 known beforehand. What a server says (sizes, ranges, validators) only
decides whether its bytes are worth taking, so the worst a server can do is to waste time, and
that is bounded:

* a passing fault is waited out, up to `Patience.attempts` times in a row without progress;
* progress is a longer part than there ever was, so a server that starts over and over is not;
* wrong content is thrown away; after one clean retry more than there are addresses it is an error;
* an address that says no for good is not asked again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bundler.errors import (
    BundlerError,
    DamagedError,
    LockError,
    PassingFault,
    PluginError,
    Problem,
    SourceError,
)  # fmt: skip
from bundler.events import Note
from bundler.hookspecs import ByteStream, Source
from bundler.lock import LockedFile
from bundler.pacing import Bandwidth, Patience
from bundler.part import Part, open_part
from bundler.value import format_size
from bundler.world import World

PROGRESS_BYTES = 64 << 10
"""A part must have grown by this much before earlier failures are forgiven: a server that gives
a byte per connection would otherwise be asked for ever."""


SLOW_SECONDS = 60.0
SLOW_BYTES = 16 << 10
"""Less than SLOW_BYTES in SLOW_SECONDS counts as a stall: a server could otherwise hold us for ever
with a byte now and then. It is far below any line over which models are fetched."""


class WrongContent(Exception):
    """An address gives other bytes than the promised ones; `args[0]` says how it was noticed."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get a file: a source and an address in its words."""

    source: Source
    address: str


@dataclass(frozen=True)
class Transfer:
    """What all downloads of one `fetch` share."""

    world: World
    patience: Patience
    bandwidth: Bandwidth
    wait: Callable[[float], None]
    """Wait some seconds; raises when the whole fetch is being stopped."""
    reached: Callable[[LockedFile, int], None]
    """Told how many bytes of a file are here."""


class Download:
    """The download of one file over all ways there are."""

    def __init__(self, file: LockedFile, ways: Sequence[Way], transfer: Transfer) -> None:
        self._file = file
        self._ways = list(ways)
        self._transfer = transfer
        self._failures = 0  # in a row, without progress
        self._longest = 0
        self._wrong = 0
        self._wrong_limit = len(self._ways) + 1
        self._refusals: list[Problem] = []
        self._doubted = False

    def run(self) -> None:
        """Get the file into the store.

        Raises:
            SourceError: no address delivers it.
            DamagedError: what they deliver are other bytes.
            DoesNotFit: the disk is full.
            PluginError: a source broke its contract.
        """
        transfer = self._transfer
        with open_part(transfer.world.store, self._file, lambda: transfer.wait(0)) as part:
            self._longest = part.length
            transfer.reached(self._file, part.length)
            inherited = part.length > 0
            while not part.is_right():
                try:
                    self._attempt(part)
                    if part.missing_bytes == 0 and not part.is_right():
                        part.restart()
                        self._found_wrong("its SHA-256 is another one", forgiven=inherited)
                        inherited = False
                except PassingFault as fault:
                    self._wait_out(fault, part)
                except WrongContent as found:
                    self._found_wrong(str(found), forgiven=False)
                except SourceError as refusal:
                    self._give_up_address(refusal)
            part.finish()

    def _attempt(self, part: Part) -> None:
        """Take bytes from one address until the file is whole or the stream ends."""
        if not self._ways:
            raise SourceError(self._refusals or [Problem("has no address", self._file.path)])
        way = self._ways[0]
        if part.missing_bytes == 0:
            return
        validator = part.validator if part.address == way.address else None
        with contextlib.ExitStack() as stack:
            with translated(way):
                stream = stack.enter_context(
                    way.source.open(
                        way.address, start=part.length, end=None,
                        validator=validator, world=self._transfer.world,
                    )
                )  # fmt: skip
            self._align(part, stream)
            part.follow(way.address, stream.validator)
            self._take(part, way, stream)
            with translated(way):
                stack.close()

    def _align(self, part: Part, stream: ByteStream) -> None:
        """Make sure that the stream's bytes may follow the part's."""
        size = self._file.size_bytes
        if stream.total_bytes is not None and stream.total_bytes != size:
            raise WrongContent(f"it has {stream.total_bytes} bytes there, not {size}")
        if stream.start == part.length:
            return
        if stream.start != 0 or stream.total_bytes is None:
            # Bytes that nobody asked for, or something of unknown size (a page of a network that
            # wants a login looks like this): the part is not given up for the first of them.
            self._tell_apart(part, stream)
        part.restart()

    def _tell_apart(self, part: Part, stream: ByteStream) -> None:
        if self._doubted:
            part.restart()
            if stream.start == 0:
                return
        self._doubted = True
        raise PassingFault(f"sent bytes from {stream.start} on instead of {part.length}")

    def _take(self, part: Part, way: Way, stream: ByteStream) -> None:
        transfer = self._transfer
        since, length = time.monotonic(), part.length
        for chunk in _received(way, stream):
            data = memoryview(chunk)[: part.missing_bytes]
            transfer.bandwidth.take(len(data), transfer.wait)
            part.append(data)
            transfer.reached(self._file, part.length)
            transfer.wait(0)
            if part.missing_bytes == 0:
                return
            if time.monotonic() - since > SLOW_SECONDS:
                if part.length - length < SLOW_BYTES and not transfer.bandwidth.capped:
                    raise PassingFault("hardly sends anything", where=way.address)
                since, length = time.monotonic(), part.length
        if stream.total_bytes is None:
            part.restart()
            raise WrongContent("it ended too early")
        raise PassingFault(f"ended {format_size(part.missing_bytes)} too early")

    # -- what to do after a fault ----------------------------------------------------------------

    def _wait_out(self, fault: PassingFault, part: Part) -> None:
        if part.length >= self._longest + PROGRESS_BYTES:
            self._failures = 0
            self._longest = part.length
        elif len(self._ways) > 1:
            self._ways.append(self._ways.pop(0))
        self._failures += 1
        if self._failures >= self._transfer.patience.attempts:
            raise GivenUp(
                [Problem(f"{p.message} ({self._failures} attempts without progress)",
                         self._where(p.where), p.hint or _AGAIN) for p in fault.problems]
            ) from fault  # fmt: skip
        seconds = self._transfer.patience.delay_seconds(self._failures, fault.retry_after_seconds)
        if seconds >= 5:
            self._transfer.world.report(
                Note(f"{self._file.path}: {fault}; trying again in {seconds:.0f} s")
            )
        self._transfer.wait(seconds)

    def _found_wrong(self, how: str, *, forgiven: bool) -> None:
        """Go to the next address, or once more to the only one; give up when all were wrong.

        `forgiven`: the part began in an earlier process, so its beginning may be to blame.
        """
        self._wrong += not forgiven
        where = self._where(self._ways[0].address)
        if self._wrong and all(is_local(way.source) for way in self._ways):
            # Nobody promised that it stays: the lock is what is old, not the file what is broken.
            raise LockError(f"is not the file that was locked: {how}", where=where)
        if self._wrong >= self._wrong_limit:
            raise DamagedError(
                f"what is served is not what was locked: {how}",
                where=where,
                hint="it was changed or replaced at its source, or something in the network "
                "rewrites it; nothing of it was kept. If you trust the new file: `bundler lock`",
            )
        self._transfer.world.report(
            Note(f"{where}: not what was locked ({how}); fetching it again", "warning")
        )
        self._ways.append(self._ways.pop(0))
        self._transfer.wait(self._transfer.patience.delay_seconds(1, None))

    def _give_up_address(self, refusal: SourceError) -> None:
        """Leave an address that said no for good; raise all refusals when none is left."""
        self._refusals += [
            Problem(p.message, self._where(p.where), p.hint) for p in refusal.problems
        ]
        if self._ways:
            self._ways.pop(0)
        if not self._ways:
            raise SourceError(self._refusals) from refusal

    def _where(self, address: str) -> str:
        return f"{self._file.path} ({address})" if address else self._file.path


_AGAIN = "run the same command again when the network is better: what is here is kept"


def is_local(source: Source) -> bool:
    """Tell whether a source reads this machine only: no network is needed, and nobody is asked."""
    return bool(getattr(source, "is_local", False))


class GivenUp(SourceError):
    """All attempts were used up: a sign that others from there will fail as well."""


@contextlib.contextmanager
def translated(way: Way) -> Iterator[None]:
    """Give a source's exceptions their meaning: OSError may pass, a stranger's is its fault."""
    try:
        yield
    except BundlerError:
        raise
    except OSError as error:
        raise PassingFault(
            f"{type(error).__name__}: {error.strerror or error}", where=way.address
        ) from error
    except Exception as error:
        raise PluginError(
            f"source {way.source.name!r} failed with {type(error).__name__}: {error}",
            where=way.address,
            hint="this is a fault of that source, not of the recipe",
        ) from error


def _received(way: Way, stream: ByteStream) -> Iterator[bytes]:
    iterator = iter(stream.chunks)
    while True:
        with translated(way):
            chunk = next(iterator, None)
        if chunk is None:
            return
        yield chunk
