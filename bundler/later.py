"""What is named now and imported when it is first used.

A command starts with every built-in plugin registered, and uses a few of them: planning from a lock
asks one engine and fetches nothing. So a built-in plugin stands here by its name, and its module,
with all that it imports, waits for the first thing that is asked of it.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from typing import Any


def attribute(place: str) -> Any:
    """Import what `place` names: `package.module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def later(place: str, **known: Any) -> Any:
    """Return a stand-in for an instance of the class at `place`, made when it is first asked.

    Args:
        place: `package.module:Class`; it is called without arguments, once.
        known: attributes that can be read without making it; a test holds the built-in ones to
            those of the class.
    """
    return _Later(place, known)


def exports(places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` for names that are imported when they are first asked for."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"there is no {name!r} here")
        return attribute(places[name])

    return find


class _Later:
    def __init__(self, place: str, known: Mapping[str, Any]) -> None:
        self.__dict__.update(known)
        self._place = place
        self._lock = threading.Lock()
        self._made: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look for special names before there is anything to look in.
        if name.startswith("_"):
            raise AttributeError(name)
        with self._lock:
            if not self._made:
                self._made.append(attribute(self._place)())
        return getattr(self._made[0], name)

    def __repr__(self) -> str:
        return f"<{self._place}>"
