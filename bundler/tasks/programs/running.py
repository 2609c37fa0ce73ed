"""One program of a model against its tests: two sandboxes, and what the judge's says."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from bundler.tasks.items import CodeItem
from bundler.tasks.programs.sandbox import Sandbox

_MOST_VERDICT_BYTES = 1 << 14
_WALL_FACTOR = 3
"""Waiting costs no processor time, and a loaded machine takes longer for the same."""
_WALL_SECONDS = 10
_CPU_SIGNALS = (24, 9)
_SIGNAL_CODE = 128
_ENDING_SECONDS = 5
_GONE = ("EOFError", "BrokenPipeError")
"""What a judge says when nobody is at the other end."""

Ending = Literal["passed", "failed", "time"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests of a program found."""

    ending: Ending
    """`time`: it was ended because it took too long."""
    why: str = ""
    """What the tests raised, in the judge's words."""


def verdict_on(program: str, item: CodeItem, sandbox: Sandbox, cpu_seconds: int) -> Verdict:
    """Run a program, and its tests beside it; whatever goes wrong there is no pass.

    Args:
        program: what the model wrote, whole.
        item: the task with its tests.
        sandbox: for each of the two.
        cpu_seconds: of processor time, for each of the two.
    """
    seconds = _WALL_FACTOR * cpu_seconds + _WALL_SECONDS
    tests = {"setup": item.setup, "test": item.test, "entry": item.entry}
    with (
        _pipe() as to_program,
        _pipe() as to_judge,
        _pipe() as verdict,
        sandbox.running(
            "candidate", {"program": program}, cpu_seconds, to_program.read, to_judge.write
        ) as candidate,
        sandbox.running(
            "judge", tests, cpu_seconds, to_judge.read, to_program.write, verdict.write
        ),
    ):
        # Only the two hold the lines between them: when one ends, the other hears of it.
        to_program.close()
        to_judge.close()
        verdict.close_write()
        said = _read(verdict.read, time.monotonic() + seconds)
        if said is None:
            return Verdict("time", f"it took more than {seconds} s")
        return _judged(said, candidate)


def _judged(said: bytes, candidate: subprocess.Popen[bytes]) -> Verdict:
    """Return the judge's verdict; of a program that ended early, whether it was its time."""
    try:
        found = json.loads(said)
        passed, why = found["passed"] is True, str(found["why"])
    except (ValueError, TypeError, KeyError):
        return Verdict("failed", "its tests ended without a verdict")
    if passed:
        return Verdict("passed")
    if why.startswith(_GONE) and _out_of_time(candidate):
        return Verdict("time", "it took too much processor time")
    return Verdict("failed", why)


def _out_of_time(candidate: subprocess.Popen[bytes]) -> bool:
    try:
        return candidate.wait(timeout=_ENDING_SECONDS) - _SIGNAL_CODE in _CPU_SIGNALS
    except subprocess.TimeoutExpired:
        return False


class _Pipe:
    """Two ends, each closed once."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self._open = {self.read, self.write}

    def close(self) -> None:
        for number in tuple(self._open):
            self._close(number)

    def close_write(self) -> None:
        self._close(self.write)

    def _close(self, number: int) -> None:
        if number in self._open:
            self._open.remove(number)
            os.close(number)


@contextmanager
def _pipe() -> Iterator[_Pipe]:
    made = _Pipe()
    try:
        yield made
    finally:
        made.close()


def _read(number: int, deadline: float) -> bytes | None:
    """Return what is written until the other end is closed; None where that takes too long."""
    said = b""
    while len(said) < _MOST_VERDICT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([number], [], [], left)[0]:
            return None
        part = os.read(number, _MOST_VERDICT_BYTES)
        if not part:
            break
        said += part
    return said
