"""Waiting for another bundler that works on the same thing, and saying so: who, and how long by now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bundler.errors import BusyError
from bundler.events import Note
from bundler.world import World

FIRST_SECONDS = 1.0
"""A wait shorter than this is not worth a line."""
SAY_EVERY_SECONDS = 60.0
LONGEST_SECONDS = 24 * 3600.0
"""No step that is known takes longer: who waits for more waits for something that hangs."""


@contextmanager
def turn(
    world: World, name: str, what: str, *, longest_seconds: float = LONGEST_SECONDS,
    say_every_seconds: float = SAY_EVERY_SECONDS,
) -> Iterator[None]:  # fmt: skip
    """Hold the store's lock `name`; wait for another process that holds it, not in silence.

    Args:
        world: its store, and whom to tell.
        name: of the lock.
        what: what it is for, in words for a person.
        longest_seconds: when to give up.
        say_every_seconds: how often to say that it is still waited for.

    Raises:
        BusyError: it was not free in all that time.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        pause = FIRST_SECONDS
        while True:
            waited = time.monotonic() - started
            pause = max(0.0, min(pause, longest_seconds - waited))
            try:
                stack.enter_context(world.store.locked(name, timeout_seconds=pause))
                break
            except BusyError as error:
                waited = time.monotonic() - started
                who = _who(world, name)
                if waited >= longest_seconds:
                    raise BusyError(
                        f"{what}: {who} has been working on it for {_words(waited)}",
                        hint="wait for it to finish, or stop it, then run the same command again",
                    ) from error
                world.report(
                    Note(f"{what}: {who} is working on it; waiting, {_words(waited)} so far")
                )
                pause = say_every_seconds
        yield


def _who(world: World, name: str) -> str:
    process = world.store.holder(name)
    return "another bundler" if process is None else f"another bundler (process {process})"


def _words(seconds: float) -> str:
    """Say a time.

    >>> _words(0.4), _words(75), _words(7300)
    ('0 s', '1 min', '2 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
