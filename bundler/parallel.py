"""One action over many items on a few threads: stopped together, and its errors told together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from bundler.download import GivenUp
from bundler.errors import (
    BundlerError,
    DamagedError,
    DoesNotFit,
    SourceError,
    StepFailed,
    UnsafeInput,
)

Item = TypeVar("Item")

_STOP_SECONDS = 1.0


class Stopped(Exception):
    """Raised by an action which notices that everything is being stopped; never shown."""


def in_parallel(
    action: Callable[[Item], None],
    items: Sequence[Item],
    name: Callable[[Item], str],
    threads: int,
    stop: threading.Event,
) -> list[BundlerError]:
    """Do `action` for all items and return what went wrong, in the order of the items.

    A full disk or a host that cannot be reached keeps further items from being begun. On
    KeyboardInterrupt all are stopped within about a second; a thread that hangs in a read is
    left behind, and holds nothing but its part's lock until the read times out.
    """
    waiting = list(enumerate(items))[::-1]
    errors: dict[int, BundlerError] = {}
    lock = threading.Lock()

    def work() -> None:
        while not stop.is_set():
            with lock:
                hopeless = any(isinstance(e, DoesNotFit | GivenUp) for e in errors.values())
                if not waiting or hopeless:
                    return
                index, item = waiting.pop()
            error = _outcome(action, item, name(item))
            if error is not None:
                with lock:
                    errors[index] = error
                if isinstance(error, DoesNotFit):
                    stop.set()

    workers = [
        threading.Thread(target=work, daemon=True, name=f"transfer-{number}")
        for number in range(min(max(1, threads), len(items)))
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        stop.set()
        for worker in workers:
            worker.join(_STOP_SECONDS / len(workers))
        raise
    found = [errors[index] for index in sorted(errors)]
    if waiting and found:
        found.append(type(found[0])(f"{len(waiting)} more files were not tried"))
    return found


def _outcome(action: Callable[[Item], None], item: Item, where: str) -> BundlerError | None:
    try:
        action(item)
    except Stopped:
        return None
    except BundlerError as error:
        return error
    except OSError as error:
        return StepFailed(
            f"the store cannot be used: {error}",
            where=where,
            hint="look at the disk it is on and at who may write there",
        )
    except Exception as error:  # noqa: BLE001 - a thread has no caller: whatever it was must be seen
        failed = StepFailed(f"{type(error).__name__}: {error}", where=where)
        failed.__cause__ = error
        return failed
    return None


def raise_together(errors: Sequence[BundlerError]) -> None:
    """Raise all problems as one error, of the kind that needs the person most."""
    for kind in (DoesNotFit, UnsafeInput, DamagedError, SourceError, BundlerError):
        for error in errors:
            if isinstance(error, kind):
                problems = [problem for each in errors for problem in each.problems]
                raise (kind if kind is SourceError else type(error))(problems) from error
