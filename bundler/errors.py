"""What can go wrong, sorted by who can act on it.

::

    BundlerError                 exit code
    ├── StepFailed        1      a step of the build, or a child process of it, broke
    ├── RecipeError       2      the recipe, or the command line, is wrong
    ├── LockError         3      the lock is missing or no longer fits the recipe
    ├── DoesNotFit        4      VRAM, RAM, disk or filesystem is too small
    ├── SourceError       5      the network or the place the bytes come from
    │   └── PassingFault  5      … in a way that trying again may cure
    ├── DamagedError      6      bytes are not the bytes that were promised
    ├── TrustError        7      signature, key or rollback
    ├── UnsafeInput       8      a file, name or path that must not be touched
    ├── ProofFailed       9      a model was measured and did not pass its gate
    │   └── NothingLeft   9      … and so did every other way to have it
    ├── BusyError        10      somebody else holds what is needed
    └── PluginError       2      a plugin is missing, doubled or broke its contract

An error is a sentence to the person who can act: where, what, and what would help. All problems
of one kind are raised together. Inside the program errors are raised; `cli` catches once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `where` it is, what it is, and what to do next."""

    message: str
    where: str = ""
    hint: str = ""
    key: str = ""
    """The recipe's key that it follows from, dotted, where nobody has looked it up in the file yet."""

    def __str__(self) -> str:
        message = self.message
        if self.key and not message.startswith(self.key):
            message = f"{self.key}: {message}"
        return f"{self.where}: {message}" if self.where else message


class BundlerError(Exception):
    """Base of every error that is shown to a person without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str | Problem | Iterable[Problem], *, where: str = "", hint: str = ""
    ) -> None:
        if isinstance(message, str):
            self.problems: tuple[Problem, ...] = (Problem(message, where, hint),)
        elif isinstance(message, Problem):
            self.problems = (message,)
        else:
            self.problems = tuple(message)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def with_problems(self, problems: Iterable[Problem]) -> Self:
        """Return the same error about other problems; what else it carries stays."""
        changed = type(self)(problems)
        vars(changed).update({k: v for k, v in vars(self).items() if k != "problems"})
        return changed

    def __reduce__(self) -> tuple[type[BundlerError], tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))


class StepFailed(BundlerError):
    """A step of the build, or the child process that ran it, broke."""

    exit_code = 1


class RecipeError(BundlerError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class LockError(BundlerError):
    """The lock is missing, or what it names is no longer what the recipe asks for."""

    exit_code = 3


class DoesNotFit(BundlerError):
    """Not enough VRAM, RAM, disk, or a filesystem that cannot hold a file."""

    exit_code = 4


class SourceError(BundlerError):
    """The network, or the place the bytes come from, did not deliver."""

    exit_code = 5


class PassingFault(SourceError):
    """A fault of the network or the server which trying again may cure; the core does that."""

    def __init__(
        self,
        message: str | Problem | Iterable[Problem],
        *,
        where: str = "",
        hint: str = "",
        retry_after_seconds: float | None = None,
        unknown_host: bool = False,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.retry_after_seconds = retry_after_seconds
        """How long the server asked to be left alone, if it did."""
        self.unknown_host = unknown_host
        """Whether the host's name was not found: most often there is no network at all."""


class DamagedError(BundlerError):
    """Bytes are not the bytes that were promised."""

    exit_code = 6


class TrustError(BundlerError):
    """A signature, a key or a version cannot be trusted."""

    exit_code = 7


class UnsafeInput(BundlerError):
    """A file, name or path that could do harm, and is therefore not touched."""

    exit_code = 8


class ProofFailed(BundlerError):
    """A model was measured and did not pass its gate."""

    exit_code = 9


class NothingLeft(ProofFailed):
    """All offers for a model are ruled out by what was measured."""


class BusyError(BundlerError):
    """Somebody else holds what is needed."""

    exit_code = 10


class PluginError(BundlerError):
    """A plugin is missing, doubled, or broke its contract."""

    exit_code = 2


_REFUSALS = {
    errno.EROFS: "choose another place, or mount that disk writable",
    errno.EACCES: "choose a place that is yours, or ask its owner",
    errno.EPERM: "choose a place that is yours, or ask its owner",
    errno.ENOSPC: "free some space and run the same command again: finished work is kept",
    errno.EDQUOT: "your share of that disk is used up: free some space, then run it again",
    errno.EFBIG: "that filesystem cannot hold so large a file: use exFAT, NTFS or ext4",
    errno.ENOMEM: "close other programs, or raise the limit (ulimit -v), and run it again",
}  # fmt: skip


def of_the_system(error: OSError | MemoryError) -> BundlerError:
    """Return what the system refused as an error of ours: `DoesNotFit` where disk or memory is the cause.

    For the edges only, where nobody nearer knew better.
    """
    if isinstance(error, MemoryError):
        return DoesNotFit("ran out of memory", hint=_REFUSALS[errno.ENOMEM])
    kind = DoesNotFit if error.errno in _REFUSALS else StepFailed
    said = error.strerror or str(error)
    hint = _REFUSALS.get(error.errno or 0, "")
    return kind(said, where=str(error.filename or ""), hint=hint)
