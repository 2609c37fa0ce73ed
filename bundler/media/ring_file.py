"""The ring of known keys on this machine's disk: read, changed and written by one at a time.

`keyring.json` holds what is known, `statements.json` besides what our own keys have said of keys:
whoever removes a damaged ring does not lose that with it. What is known only grows (a key that was
revoked stays so, the newest bundle that was seen stays seen), so what is written is put together
with what lies there by then, and nobody undoes what another has learned meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bundler.descriptors import NEVER_THROUGH_LINKS, lock
from bundler.errors import BusyError, TrustError
from bundler.media.keyring import Keyring, joined, joined_statements
from bundler.store import write_durably
from bundler.value import pretty_json

RING_NAME = "keyring.json"
OWN_STATEMENTS_NAME = "statements.json"
LOCK_NAME = ".lock"
_WAIT_SECONDS = 30.0
"""Nobody holds the ring while a person thinks: passwords are asked for before."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the keys of a folder; the lock goes with the process, whatever becomes of it.

    Raises:
        BusyError: another bundler held them all the time.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | NEVER_THROUGH_LINKS, 0o600)
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            lock(descriptor)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise BusyError(
                    "another bundler is changing the keys",
                    where=str(folder),
                    hint="wait for it to finish, then run the same command again",
                ) from error
        time.sleep(0.02)


def read_ring(folder: Path) -> Keyring:
    """Return what this machine knows; an empty ring when it knows nothing yet.

    Raises:
        TrustError: a file is damaged: whom to believe is never guessed.
    """
    ring = _read_ring(folder / RING_NAME)
    own = _read_statements(folder / OWN_STATEMENTS_NAME)
    return ring.model_copy(update={"statements": joined_statements(own, ring.statements)})


def _read_ring(path: Path) -> Keyring:
    try:
        return Keyring.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Keyring()
    except ValueError as error:
        raise TrustError(
            "the list of trusted keys is damaged",
            where=str(path),
            hint="bring it back from a copy, or remove it and trust the keys anew",
        ) from error


def _read_statements(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise ValueError("a list of statements was expected")
        return tuple(found)
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as error:
        raise TrustError(
            "what your own keys said of keys is damaged",
            where=str(path),
            hint="bring it back from a copy: without it nobody follows a key that you changed",
        ) from error


def write_ring(folder: Path, ring: Keyring) -> None:
    """Keep what is known, with what others have learned meanwhile.

    Raises:
        TrustError: what lies there is damaged.
        BusyError: another bundler is changing the keys.
    """
    change_ring(folder, lambda there: joined(there, ring))


def change_ring(folder: Path, change: Callable[[Keyring], Keyring]) -> Keyring:
    """Read the ring, change it and write it, with nobody in between; return it."""
    with held(folder):
        before = read_ring(folder)
        after = change(before)
        if after != before:
            put_ring(folder, after)
        return after


def put_ring(folder: Path, ring: Keyring) -> None:
    """Write the ring, for who holds the folder; the old one stays until the new one is on the disk."""
    if ring.statements:
        write_durably(
            folder / OWN_STATEMENTS_NAME, pretty_json(list(ring.statements)).encode(), mode=0o600
        )
    write_durably(folder / RING_NAME, pretty_json(ring).encode())
