"""`station.json` and `runtime/<platform>/<name>.json`: read, checked, turned into frozen values.

A bundle may be damaged or tampered with, so every field is checked before use and all problems
are reported at once, each with its place (`station.json: models[0].file: …`). Unknown keys are
left alone: a newer builder may write more than this station knows.
"""

from __future__ import annotations

import json
import platform as machine
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundler.station.problems import StationError

SCHEMA_VERSION = 1
LARGEST_JSON_BYTES = 4 * 2**20
"""A real station.json has a few kilobytes; anything far beyond is not one."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True)
class ModelEntry:
    """One model of the bundle, as `station.json` describes it."""

    name: str
    role: str
    file: str
    context_tokens: int
    """Context of each user."""
    parallel: int
    kv_cache: str = "f16"
    residency: str = "resident"
    quant: str = ""
    size_bytes: int = 0
    memory_bytes: int = 0
    gpu_layers: int = -1
    """Layers to put on an accelerator if there is one; -1 for all, 0 for none."""


@dataclass(frozen=True)
class CorpusEntry:
    """One corpus of the bundle, as `station.json` describes it."""

    name: str
    file: str
    title: str
    language: str = ""
    articles: int = 0
    full_text: bool = True


@dataclass(frozen=True)
class Bundle:
    """What a bundle says it holds; nothing of it has been opened yet."""

    root: Path
    name: str
    version: str
    title: str
    models: tuple[ModelEntry, ...] = ()
    corpora: tuple[CorpusEntry, ...] = ()
    runtimes: tuple[str, ...] = ()
    """Names of runtimes, the preferred one first."""
    questions: tuple[str, ...] = ()
    """Questions to offer on the empty page; when there are none, articles' titles are."""

    def model_for(self, *roles: str) -> ModelEntry | None:
        """Return the first model with one of `roles`, in the order the roles are given."""
        return next((m for role in roles for m in self.models if m.role == role), None)


@dataclass(frozen=True)
class RuntimeCommand:
    """How a runtime is started and asked whether it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    api_key_environment: str = "BUNDLER_MODEL_KEY"


def this_platform() -> str:
    """Return this machine's platform as the bundle names it, such as `linux-x86_64`."""
    systems = {"linux": "linux", "darwin": "macos", "win32": "windows"}
    architectures = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "aarch64"}
    system = systems.get(sys.platform, sys.platform)
    processor = machine.machine().lower()
    architecture = architectures.get(processor, processor)
    if system == "macos" and architecture == "aarch64":
        architecture = "arm64"
    if system == "linux" and architecture == "arm64":
        architecture = "aarch64"
    return f"{system}-{architecture}"


def read_bundle(root: Path) -> Bundle:
    """Read and check `station.json` in `root`.

    Raises StationError that names every wrong field.
    """
    document = _load(
        root / "station.json", "Is this the folder of a bundle? Give it with --bundle."
    )
    reader = _Reader("station.json")
    if document.get("schema_version") != SCHEMA_VERSION:
        reader.say("schema_version", f"this station reads version {SCHEMA_VERSION} only")
    bundle = Bundle(
        root=root,
        name=reader.name(document, "name"),
        version=reader.text(document, "version", default=""),
        title=reader.text(document, "title", default="") or str(document.get("name", "")),
        models=tuple(_model(reader, *item) for item in reader.tables(document, "models")),
        corpora=tuple(_corpus(reader, *item) for item in reader.tables(document, "corpora")),
        runtimes=reader.names(document, "runtimes"),
        questions=reader.texts(document, "questions"),
    )
    for kind in ("models", "corpora"):
        names = [entry.name for entry in getattr(bundle, kind)]
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            reader.say(kind, f"the name {name!r} is used twice")
    reader.finish("The bundle is damaged, or was made for another version. Check it with `verify`.")
    return bundle


def read_runtime(root: Path, platform: str, name: str) -> RuntimeCommand | None:
    """Read how runtime `name` starts on `platform`; None when the bundle has none for it.

    Raises StationError when the description is there and wrong.
    """
    path = root / "runtime" / platform / f"{name}.json"
    if not path.is_file():
        return None
    document = _load(path, "The bundle is damaged. Check it with `verify`.")
    reader = _Reader(f"runtime/{platform}/{name}.json")
    runtime = RuntimeCommand(
        name=name,
        command=reader.texts(document, "command"),
        environment=reader.variables(document, "environment"),
        health=reader.text(document, "health", default="/health"),
        api_key_environment=reader.text(
            document, "api_key_environment", default="BUNDLER_MODEL_KEY"
        ),
    )
    if not runtime.command:
        reader.say("command", "empty; there is nothing to start")
    if not re.fullmatch(r"/[A-Za-z0-9/_.-]*", runtime.health):
        reader.say("health", "not a plain path such as /health")
    if not _VARIABLE.fullmatch(runtime.api_key_environment):
        reader.say("api_key_environment", "not a name of an environment variable")
    reader.finish("The bundle is damaged. Check it with `verify`.")
    return runtime


def _model(reader: _Reader, where: str, table: Mapping[str, Any]) -> ModelEntry:
    residency = reader.text(table, "residency", where, default="resident")
    if residency not in ("resident", "on-demand"):
        reader.say(f"{where}.residency", "expected 'resident' or 'on-demand'")
    return ModelEntry(
        name=reader.name(table, "name", where),
        role=reader.text(table, "role", where, default="chat"),
        file=reader.path(table, "file", where),
        context_tokens=reader.number(table, "context_tokens", where, least=64, default=4096),
        parallel=reader.number(table, "parallel", where, least=1, default=1),
        kv_cache=reader.text(table, "kv_cache", where, default="f16"),
        residency=residency,
        quant=reader.text(table, "quant", where, default=""),
        size_bytes=reader.number(table, "size_bytes", where, default=0),
        memory_bytes=reader.number(table, "memory_bytes", where, default=0),
        gpu_layers=reader.number(table, "gpu_layers", where, least=-1, default=-1),
    )


def _corpus(reader: _Reader, where: str, table: Mapping[str, Any]) -> CorpusEntry:
    full_text = table.get("full_text", True)
    if not isinstance(full_text, bool):
        reader.say(f"{where}.full_text", "expected true or false")
    name = reader.name(table, "name", where)
    return CorpusEntry(
        name=name,
        file=reader.path(table, "file", where),
        title=reader.text(table, "title", where, default="") or name,
        language=reader.text(table, "language", where, default=""),
        articles=reader.number(table, "articles", where, default=0),
        full_text=bool(full_text),
    )


def _load(path: Path, hint: str) -> Mapping[str, Any]:
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


class _Reader:
    """Takes fields out of JSON and collects every problem with its place."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[str] = []

    def say(self, where: str, what: str) -> None:
        self.problems.append(f"{self.file}: {where}: {what}")

    def finish(self, hint: str) -> None:
        if self.problems:
            raise StationError(self.problems, hint=hint)

    def text(
        self, table: Mapping[str, Any], key: str, where: str = "", default: str | None = None
    ) -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or len(value) > 4096:
            self.say(_place(where, key), "missing" if value is None else "expected a short text")
            return ""
        return value

    def name(self, table: Mapping[str, Any], key: str, where: str = "") -> str:
        value = self.text(table, key, where)
        if value and not _NAME.fullmatch(value):
            self.say(_place(where, key), f"{value!r} is not a name (a-z 0-9 . _ -)")
        return value

    def path(self, table: Mapping[str, Any], key: str, where: str) -> str:
        value = self.text(table, key, where)
        if value and not is_inside(value):
            self.say(_place(where, key), f"{value!r} is not a path inside the bundle")
        return value

    def number(
        self, table: Mapping[str, Any], key: str, where: str, least: int = 0, default: int = 0
    ) -> int:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
            self.say(_place(where, key), f"expected a whole number of at least {least}")
            return least
        return value

    def tables(self, table: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
        value = table.get(key, [])
        if not isinstance(value, list) or len(value) > 1000:
            self.say(key, "expected a list")
            return []
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                self.say(f"{key}[{index}]", "expected an object")
        return [(f"{key}[{i}]", item) for i, item in enumerate(value) if isinstance(item, dict)]

    def texts(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.say(key, "expected a list of texts")
            return ()
        return tuple(value)

    def names(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        values = self.texts(table, key)
        for value in values:
            if not _NAME.fullmatch(value):
                self.say(key, f"{value!r} is not a name (a-z 0-9 . _ -)")
        return values

    def variables(self, table: Mapping[str, Any], key: str) -> Mapping[str, str]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            self.say(key, "expected an object")
            return {}
        for name, content in value.items():
            if not _VARIABLE.fullmatch(name) or not isinstance(content, str) or "\0" in content:
                self.say(f"{key}.{name}", "expected a variable's name and a text")
        return {name: content for name, content in value.items() if isinstance(content, str)}


def _place(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def is_inside(path: str) -> bool:
    """Whether `path` is a plain relative path with `/`, without `..`, drive or control characters."""
    if not path or any(ord(c) < 32 or c in '\\:<>"|?*' for c in path):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))
