"""Fields of JSON that nobody vouches for: taken out one by one, every problem kept with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundler.station.problems import StationError

LARGEST_JSON_BYTES = 4 * 2**20
"""A real station.json has a few kilobytes; anything far beyond is not one."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def load_object(path: Path, hint: str) -> Mapping[str, Any]:
    """Return the JSON object in a file; StationError with `hint` when there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON_BYTES + 1)
    except OSError as error:
        raise StationError(
            f"{path}: cannot be read: {error.strerror or error}", hint=hint
        ) from error
    if len(data) > LARGEST_JSON_BYTES:
        raise StationError(f"{path}: larger than {LARGEST_JSON_BYTES:,} bytes", hint=hint)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StationError(f"{path}: not JSON: {error}", hint=hint) from error
    if not isinstance(document, dict):
        raise StationError(f"{path}: expected an object at the top", hint=hint)
    return document


class Reader:
    """Takes fields out of JSON and collects every problem with its place."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[str] = []

    def say(self, where: str, what: str) -> None:
        """Note a problem with one field."""
        self.problems.append(f"{self.file}: {where}: {what}")

    def finish(self, hint: str) -> None:
        """Raise StationError with all problems, if there are any."""
        if self.problems:
            raise StationError(self.problems, hint=hint)

    def text(
        self, table: Mapping[str, Any], key: str, where: str = "", default: str | None = None
    ) -> str:
        """Return a text; a field that is missing is a problem unless it has a default."""
        value = table.get(key, default)
        if not isinstance(value, str) or len(value) > 4096:
            self.say(_place(where, key), "missing" if value is None else "expected a short text")
            return ""
        return value

    def name(
        self, table: Mapping[str, Any], key: str, where: str = "", default: str | None = None
    ) -> str:
        """Return a name that is safe in a path and an address."""
        value = self.text(table, key, where, default)
        if value and not is_name(value):
            self.say(_place(where, key), f"{value!r} is not a name (a-z 0-9 . _ -)")
        return value

    def path(self, table: Mapping[str, Any], key: str, where: str) -> str:
        """Return a path that stays inside the bundle."""
        value = self.text(table, key, where)
        if value and not is_inside(value):
            self.say(_place(where, key), f"{value!r} is not a path inside the bundle")
        return value

    def paths(self, table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
        """Return a list of paths that stay inside the bundle; nothing where there is none."""
        values = table.get(key, [])
        if not isinstance(values, list) or len(values) >= 1 << 16:
            self.say(_place(where, key), "expected a list of paths")
            return ()
        return tuple(self.path({key: value}, key, where) for value in values)

    def fraction(self, table: Mapping[str, Any], key: str, where: str) -> float:
        """Return a number that need not be whole, 1 where there is none."""
        value = table.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e6:
            self.say(_place(where, key), "expected a number")
            return 1.0
        return float(value)

    def number(
        self, table: Mapping[str, Any], key: str, where: str, least: int = 0, default: int = 0
    ) -> int:
        """Return a whole number from `least` to 2^60."""
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
            self.say(_place(where, key), f"expected a whole number of at least {least}")
            return least
        return value

    def switch(self, table: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
        """Return true or false."""
        value = table.get(key, default)
        if not isinstance(value, bool):
            self.say(_place(where, key), "expected true or false")
        return bool(value)

    def tables(self, table: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the objects of a list, each with its place."""
        value = table.get(key, [])
        if not isinstance(value, list) or len(value) > 1000:
            self.say(key, "expected a list")
            return []
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                self.say(f"{key}[{index}]", "expected an object")
        return [(f"{key}[{i}]", item) for i, item in enumerate(value) if isinstance(item, dict)]

    def texts(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.say(key, "expected a list of texts")
            return ()
        return tuple(value)

    def names(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """Return a list of names."""
        values = self.texts(table, key)
        for value in values:
            if not is_name(value):
                self.say(key, f"{value!r} is not a name (a-z 0-9 . _ -)")
        return values

    def variables(self, table: Mapping[str, Any], key: str) -> Mapping[str, str]:
        """Return environment variables."""
        value = table.get(key, {})
        if not isinstance(value, dict):
            self.say(key, "expected an object")
            return {}
        for name, content in value.items():
            if not is_variable(name) or not isinstance(content, str) or "\0" in content:
                self.say(f"{key}.{name}", "expected a variable's name and a text")
        return {name: content for name, content in value.items() if isinstance(content, str)}


def _place(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def is_inside(path: str) -> bool:
    """Whether `path` is a plain relative path with `/`, without `..`, drive or control characters."""
    if not path or any(ord(c) < 32 or c in '\\:<>"|?*' for c in path):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))


def is_name(text: str) -> bool:
    """Whether `text` is a name as bundles have them: `a-z 0-9 . _ -`."""
    return bool(_NAME.fullmatch(text))


def is_variable(text: str) -> bool:
    """Whether `text` can be the name of an environment variable."""
    return bool(_VARIABLE.fullmatch(text))
