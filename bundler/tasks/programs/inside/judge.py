"""Runs the tests of a program that runs elsewhere, in a sandbox of its own, and says what they found.

The program never runs here. The tests get stand-ins for what it defines, and through those plain
values: nothing that the program does to its own interpreter (another `assert`, an exit before the
end, a look at the frames of its caller) reaches the tests or their verdict.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from .limits import told
from .names import free_names
from .wire import Line, decoded, encoded

_SAID_CHARACTERS = 200


class ProgramError(Exception):
    """The program raised something that is no exception of Python itself."""


class _Program:
    """The program's side of the line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.calls = 0

    def ask(self, **asked: Any) -> Any:
        """Return what the program answers, as plain values and stand-ins. Raises what it raised."""
        self._line.say(asked)
        answer = self._line.hear()
        if "error" in answer:
            raise _exception(str(answer["error"]))(str(answer["said"]))
        return decoded(answer["value"], lambda number: Remote(self, number))


class Remote:
    """Stands for something of the program that is no plain value. It is equal to itself only."""

    _program: _Program
    _number: int

    def __init__(self, program: _Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._program.calls += 1
        return self._program.ask(
            do="call", of=self._number, arguments=encoded(arguments, number_of),
            named=encoded(named, number_of),
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask(do="attr", of=self._number, name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask(do="set", of=self._number, name=name, value=encoded(value, number_of))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._program.ask(do="list", of=self._number))


def number_of(value: Any) -> int:
    """Return the number of a stand-in, for it to be handed back."""
    if isinstance(value, Remote):
        return value._number
    raise TypeError(f"a {type(value).__name__} cannot be handed to a program in another sandbox")


def _exception(name: str) -> type[Exception]:
    """Return Python's own exception of that name, but for those that end an iteration quietly."""
    found = getattr(builtins, name, None)
    quiet = (StopIteration, StopAsyncIteration)
    if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, quiet):
        return found
    return ProgramError


def judge(given: dict[str, Any], program: _Program) -> None:
    """Run the tests; whatever they raise says that they did not pass.

    Args:
        given: setup (what stands before the tests), test, entry ("" or the function that `check` gets).
        program: to be asked.
    """
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(given["setup"], "<setup>", "exec"), names)  # noqa: S102 - its purpose
    entry = given["entry"]
    names.pop(entry, None)
    for name in {*free_names(given["test"]), *([entry] if entry else [])}:
        if name in names:
            continue
        if name in sys.stdlib_module_names and name != entry:
            names[name] = importlib.import_module(name)
        else:
            names[name] = program.ask(do="get", name=name)
    exec(compile(given["test"], "<test>", "exec"), names)  # noqa: S102 - its purpose
    if entry:
        names["check"](names[entry])
    if not program.calls:
        raise ProgramError("the tests asked nothing of the program")


def main() -> None:
    """Judge one program, and write the verdict where only the judge can."""
    line, verdict = Line(int(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3])
    given = told()
    try:
        judge(given, _Program(line))
        found = {"passed": True, "why": ""}
    except BaseException as error:  # noqa: BLE001 - also an exit before the end is no pass
        found = {"passed": False, "why": f"{type(error).__name__}: {error!s:.{_SAID_CHARACTERS}}"}
    os.write(verdict, json.dumps(found).encode())
