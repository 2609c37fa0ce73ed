"""How the work on a stick ends early: because somebody said so, or because the stick is gone."""

from __future__ import annotations

import errno
from pathlib import Path

from bundler.errors import BundlerError, DoesNotFit, StepFailed

_GONE = frozenset({errno.ENODEV, errno.EIO, errno.ENXIO, errno.ENOTCONN, errno.ESTALE})
AGAIN = "the same command goes on from there"


class Stopped(Exception):
    """Raised between two blocks when everything is being stopped; never shown."""


def told(error: OSError, target: Path) -> BundlerError:
    """Return an error of the system on a stick as one for people."""
    said = error.strerror or str(error)
    where = str(error.filename or target)
    if error.errno == errno.ENOSPC:
        return DoesNotFit(
            "the stick is full, although it said that there was room", where=where,
            hint="somebody else writes to it, or it is damaged: look at what is on it, then "
            "run the same command again",
        )  # fmt: skip
    if error.errno == errno.EFBIG:
        return DoesNotFit(
            "the filesystem (or a limit of this shell) does not allow a file as large", where=where,
            hint="use exFAT, or look at `ulimit -f`",
        )  # fmt: skip
    if error.errno == errno.EROFS:
        return StepFailed(
            "the stick became read-only: that is what systems do when it has faults", where=where,
            hint="take it out, plug it in again, let the system check it, or use another one; then "
            + AGAIN,
        )  # fmt: skip
    if error.errno in _GONE or not target.is_dir():
        return StepFailed(
            f"the stick was pulled out, or is broken ({said})", where=where,
            hint=f"plug it in again and mount it at the same place: {AGAIN}; if it happens again "
            "there, use another stick",
        )  # fmt: skip
    return StepFailed(said, where=where, hint=f"what was copied stays: {AGAIN}")
