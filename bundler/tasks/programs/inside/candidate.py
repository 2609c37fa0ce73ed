"""Runs a model's program, and answers what the judge asks of it. Nothing here is to be believed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .limits import told
from .wire import Line, decoded, encoded

_MOST_ITEMS = 100_000


class _Objects:
    """What the judge knows by numbers only."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._known: list[Any] = []

    def number(self, value: Any) -> int:
        self._known.append(value)
        return len(self._known) - 1

    def __getitem__(self, number: int) -> Any:
        return self._known[number]

    def answer(self, asked: Mapping[str, Any]) -> Any:
        """Do what is asked: `get` a name of the program, an `attr`, `set` one, `call` something,
        or `list` it.
        """
        if asked["do"] == "get":
            return self._names[asked["name"]]
        what = self[asked["of"]]
        if asked["do"] == "attr":
            return getattr(what, asked["name"])
        if asked["do"] == "set":
            return setattr(what, asked["name"], decoded(asked["value"], self.__getitem__))
        if asked["do"] == "list":
            return [one for one, _ in zip(what, range(_MOST_ITEMS), strict=False)]
        arguments = decoded(asked["arguments"], self.__getitem__)
        return what(*arguments, **decoded(asked["named"], self.__getitem__))


def main() -> None:
    """Run the program, then answer until nobody asks any more."""
    line = Line(int(sys.argv[1]), int(sys.argv[2]))
    given = told()
    module = ModuleType("candidate")
    sys.modules["candidate"] = module
    exec(compile(given["program"], "<program>", "exec"), module.__dict__)  # noqa: S102 - its purpose
    objects = _Objects(module.__dict__)
    while True:
        try:
            asked = line.hear()
        except EOFError:
            return
        try:
            said = {"value": encoded(objects.answer(asked), objects.number)}
        except Exception as error:  # noqa: BLE001 - whatever it raises, the judge is told
            said = {"error": type(error).__name__, "said": f"{error!s:.200}"}
        line.say(said)
