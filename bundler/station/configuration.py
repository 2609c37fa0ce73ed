"""`station.json` and `runtime/<platform>/<name>.json`: read, checked, turned into frozen values.

A bundle may be damaged or tampered with, so every field is checked before use and all problems
are reported at once, each with its place (`station.json: models[0].file: …`). Unknown keys are
left alone: a newer builder may write more than this station knows.
"""

from __future__ import annotations

import platform as machine
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bundler.station.fields import Reader, is_variable, load_object

SCHEMA_VERSION = 1
MOST_TIERS = 64
"""A recipe may name 16."""


@dataclass(frozen=True)
class DraftEntry:
    """A small model that guesses words for another one, in the same program."""

    file: str
    kv_cache: str = "f16"
    gpu_layers: int = -1
    """As of a model."""
    shards: tuple[str, ...] = ()
    """All its files where it is cut into several."""


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
    tier: str = ""
    """The tier it belongs to; empty for a model of all tiers."""
    adapters: tuple[tuple[str, float], ...] = ()
    """Files of LoRA adapters that are applied to it, each with its scale."""
    projector: str = ""
    """File of the projector with which it sees; empty for a model that only reads."""
    shards: tuple[str, ...] = ()
    """All its files where it is cut into several; the program is given the first, `file`."""
    draft: DraftEntry | None = None
    """What guesses words for it; it runs without, too."""


@dataclass(frozen=True)
class TierEntry:
    """One kind of machine the bundle holds models for, and what they need there."""

    name: str
    """Empty in a bundle for one kind of machine."""
    title: str
    accelerator: str = "none"
    """`none`, `cuda`, `rocm`, `vulkan`, `metal`: what the needs were planned for."""
    vram_bytes: int = 0
    """On the accelerator: the resident models, and the largest that takes turns."""
    ram_bytes: int = 0
    """In main memory, likewise."""
    device_count: int = 1
    """Accelerators that share `vram_bytes` evenly."""


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
    tiers: tuple[TierEntry, ...] = ()
    """Best first. Bundles of before there were tiers have none."""

    def for_tier(self, name: str) -> Bundle:
        """Return the bundle with the models of one tier, and those of all tiers, only."""
        return replace(self, models=tuple(m for m in self.models if m.tier in ("", name)))

    def unfinished(self) -> str:
        """Say that an update, or the copy to here, was cut off; "" when neither was.

        What there is may be opened all the same: somebody may need it now.
        """
        if (self.root / ".bundler-update" / "switch").is_file():
            return (
                "An update of this bundle was cut off in its last step: parts of two versions lie "
                "here. To finish it, run the same update again."
            )
        if (self.root / ".bundler-deploy").is_dir():
            return "The copy of this bundle was cut off: something may be missing. Copy it again."
        return ""

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
    devices: tuple[str, ...] = ()
    """What lists the accelerators it can use (see `probe`); empty when it can use none."""
    adapter: tuple[str, ...] = ()
    """What is added for each LoRA adapter, with `{file}` and `{scale}`."""
    projector: tuple[str, ...] = ()
    """What is added for a projector, with `{file}`."""
    draft: tuple[str, ...] = ()
    """What is added for a draft, with `{file}`, `{kv_cache}` and `{gpu_layers}`."""


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
    document = load_object(
        root / "station.json", "Is this the folder of a bundle? Give it with --bundle."
    )
    reader = Reader("station.json")
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
        tiers=tuple(_tier(reader, *item) for item in reader.tables(document, "tiers")),
    )
    _check_tiers(reader, bundle)
    _check_names(reader, bundle)
    reader.finish("The bundle is damaged, or was made for another version. Check it with `verify`.")
    return bundle


def _check_names(reader: Reader, bundle: Bundle) -> None:
    """Models of two tiers may have one name: only one of them is ever served."""
    sets = [bundle.for_tier(tier.name).models for tier in bundle.tiers] or [bundle.models]
    twice = {name for models in sets for name in _doubled(models)}
    for kind, names in (("models", twice), ("corpora", set(_doubled(bundle.corpora)))):
        for name in sorted(names):
            reader.say(kind, f"the name {name!r} is used twice")


def _doubled(entries: tuple[ModelEntry, ...] | tuple[CorpusEntry, ...]) -> list[str]:
    names = [entry.name for entry in entries]
    return [name for name in names if name and names.count(name) > 1]


def _check_tiers(reader: Reader, bundle: Bundle) -> None:
    names = [tier.name for tier in bundle.tiers]
    if len(names) > MOST_TIERS:
        reader.say("tiers", f"expected at most {MOST_TIERS}")
    for name in sorted({name for name in names if names.count(name) > 1}):
        reader.say("tiers", f"the name {name!r} is used twice")
    if "" in names and len(names) > 1:
        reader.say("tiers", "one of several has no name")
    for index, model in enumerate(bundle.models):
        if model.tier and model.tier not in names:
            reader.say(f"models[{index}].tier", f"there is no tier {model.tier!r}")


def read_runtime(root: Path, platform: str, name: str) -> RuntimeCommand | None:
    """Read how runtime `name` starts on `platform`; None when the bundle has none for it.

    Raises StationError when the description is there and wrong.
    """
    path = root / "runtime" / platform / f"{name}.json"
    if not path.is_file():
        return None
    document = load_object(path, "The bundle is damaged. Check it with `verify`.")
    reader = Reader(f"runtime/{platform}/{name}.json")
    runtime = RuntimeCommand(
        name=name,
        command=reader.texts(document, "command"),
        devices=reader.texts(document, "devices"),
        adapter=reader.texts(document, "adapter"),
        projector=reader.texts(document, "projector"),
        draft=reader.texts(document, "draft"),
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
    if not is_variable(runtime.api_key_environment):
        reader.say("api_key_environment", "not a name of an environment variable")
    reader.finish("The bundle is damaged. Check it with `verify`.")
    return runtime


def _model(reader: Reader, where: str, table: Mapping[str, Any]) -> ModelEntry:
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
        tier=reader.name(table, "tier", where, default=""),
        adapters=tuple(
            (reader.path(item, "file", place), reader.fraction(item, "scale", place))
            for place, item in (
                (f"{where}.{place}", item) for place, item in reader.tables(table, "adapters")
            )
        ),
        projector=reader.path(table, "projector", where) if "projector" in table else "",
        shards=reader.paths(table, "shards", where),
        draft=_draft(reader, where, table),
    )


def _draft(reader: Reader, where: str, table: Mapping[str, Any]) -> DraftEntry | None:
    if "draft" not in table:
        return None
    given, place = table["draft"], f"{where}.draft"
    if not isinstance(given, Mapping):
        reader.say(place, "expected an object")
        return None
    return DraftEntry(
        file=reader.path(given, "file", place),
        kv_cache=reader.text(given, "kv_cache", place, default="f16"),
        gpu_layers=reader.number(given, "gpu_layers", place, least=-1, default=-1),
        shards=reader.paths(given, "shards", place),
    )


def _tier(reader: Reader, where: str, table: Mapping[str, Any]) -> TierEntry:
    name = reader.name(table, "name", where, default="")
    return TierEntry(
        name=name,
        title=reader.text(table, "title", where, default="") or name or "one kind of computer",
        accelerator=reader.name(table, "accelerator", where, default="none"),
        vram_bytes=reader.number(table, "vram_bytes", where),
        ram_bytes=reader.number(table, "ram_bytes", where),
        device_count=reader.number(table, "device_count", where, least=1, default=1),
    )


def _corpus(reader: Reader, where: str, table: Mapping[str, Any]) -> CorpusEntry:
    name = reader.name(table, "name", where)
    return CorpusEntry(
        name=name,
        file=reader.path(table, "file", where),
        title=reader.text(table, "title", where, default="") or name,
        language=reader.text(table, "language", where, default=""),
        articles=reader.number(table, "articles", where, default=0),
        full_text=reader.switch(table, "full_text", where, default=True),
    )
