"""Collects what plugins register, ours and strangers', and refuses what is doubled or broken.

Plugins come only through installed entry points (group `bundler`), never from a recipe or its
folder: a recipe from a stranger cannot run code.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from bundler import hookspecs
from bundler.errors import PluginError, Problem
from bundler.hardware import Target
from bundler.hookspecs import CorpusKind, Engine, Maker, Runtime, Source
from bundler.plan import Plan
from bundler.value import check_name

if TYPE_CHECKING:
    from bundler.proof import Proof

BUILTIN = (
    "bundler.builtin.sources",
    "bundler.builtin.llamacpp",
    "bundler.builtin.knowledge",
    "bundler.builtin.runtimes",
    "bundler.builtin.targets",
)
ENTRY_POINT_GROUP = "bundler"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Plugins:
    """Everything that is installed, by kind and name."""

    sources: Mapping[str, Source]
    engines: Mapping[str, Engine]
    corpora: Mapping[str, CorpusKind]
    runtimes: Mapping[str, Runtime]
    targets: Mapping[str, Target]
    origins: Mapping[str, str]
    """`kind:name` → the distribution or module that registered it."""
    manager: pluggy.PluginManager

    def maker(self, reference: str) -> Maker:
        """Return who does the steps of `engine:…`, `corpus:…` or `runtime:…`."""
        kind, _, name = reference.partition(":")
        makers: Mapping[str, Mapping[str, Maker]] = {
            "engine": self.engines, "corpus": self.corpora, "runtime": self.runtimes,
        }  # fmt: skip
        return self.named(makers[kind], name, kind)

    def named(self, kind: Mapping[str, _T], name: str, word: str) -> _T:
        """Return the plugin called `name`, or raise PluginError that lists what there is."""
        if name not in kind:
            raise PluginError(
                f"there is no {word} called {name!r}",
                hint=f"installed: {', '.join(sorted(kind)) or 'none'} (see `bundler plugins`)",
            )
        return kind[name]

    def review_plan(self, plan: Plan) -> list[Problem]:
        """Ask every plugin for objections to a plan."""
        return self._objections("bundler_review_plan", plan=plan)

    def review_proof(self, model: str, proof: Proof) -> list[Problem]:
        """Ask every plugin for objections to a model's proof."""
        return self._objections("bundler_review_proof", model=model, proof=proof)

    def _objections(self, hook: str, **given: Any) -> list[Problem]:
        problems: list[Problem] = []
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            arguments = [given[name] for name in implementation.argnames]
            try:
                problems.extend(implementation.function(*arguments))
            except Exception as error:
                raise PluginError(
                    f"plugin {implementation.plugin_name} failed in {hook}: "
                    f"{type(error).__name__}: {error}",
                    hint="this is a fault of that plugin, not of the recipe",
                ) from error
        return problems


def load_plugins(extra: Iterable[ModuleType | object] = (), *, installed: bool = True) -> Plugins:
    """Load the built-in plugins, the installed ones and `extra` (for tests and library use).

    Raises:
        PluginError: a plugin does not import, a hook is misspelled, or a name is registered twice;
            says whose it was.
    """
    manager = pluggy.PluginManager("bundler")
    manager.add_hookspecs(hookspecs)
    for name in BUILTIN:
        manager.register(importlib.import_module(name), name)
    # pluggy's own loader skips a second plugin of the same entry-point name in silence and does
    # not say which one failed to import, so the loop is ours.
    for point in entry_points(group=ENTRY_POINT_GROUP) if installed else ():
        _register(manager, _import(point), _origin(point))
    for module in extra:
        _register(manager, module, getattr(module, "__name__", repr(module)))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"a plugin implements a hook that does not exist: {error}",
            hint="the hooks are listed in docs/plugins.md",
        ) from error
    return _collect(manager)


def _origin(point: EntryPoint) -> str:
    distribution = point.dist.name if point.dist is not None else "unknown"
    return f"{distribution} ({point.value})"


def _import(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise PluginError(
            f"plugin {_origin(point)} cannot be imported: {type(error).__name__}: {error}",
            hint=f"repair or uninstall it: pip uninstall {getattr(point.dist, 'name', '…')}",
        ) from error


def _register(manager: pluggy.PluginManager, plugin: Any, origin: str) -> None:
    """Register one plugin; say whose it is when pluggy refuses it (twice, or wrong arguments)."""
    try:
        manager.register(plugin, origin)
    except (ValueError, pluggy.PluginValidationError) as error:
        raise PluginError(
            f"plugin {origin} cannot be registered: {error}",
            hint="the hooks and their arguments are listed in docs/plugins.md",
        ) from error


def _collect(manager: pluggy.PluginManager) -> Plugins:
    origins: dict[str, str] = {}
    problems: list[Problem] = []

    def gather(hook: str, word: str) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            for item in _answer(implementation.function, implementation.plugin_name):
                label = f"{word}:{item.name}"
                if item.name in named:
                    problems.append(
                        Problem(
                            f"{label} is registered by both {origins[label]} and "
                            f"{implementation.plugin_name}",
                            hint="uninstall one of them",
                        )
                    )
                named[item.name] = item
                origins[label] = implementation.plugin_name
        return dict(sorted(named.items()))

    plugins = Plugins(
        sources=gather("bundler_sources", "source"),
        engines=gather("bundler_engines", "engine"),
        corpora=gather("bundler_corpora", "corpus"),
        runtimes=gather("bundler_runtimes", "runtime"),
        targets=gather("bundler_targets", "target"),
        origins=origins,
        manager=manager,
    )
    if problems:
        raise PluginError(problems)
    return plugins


def _answer(function: Any, plugin: str) -> list[Any]:
    """Return what a hook gives, each with a name that can be used."""
    try:
        items = list(function())
    except Exception as error:
        raise PluginError(
            f"plugin {plugin} failed while registering: {type(error).__name__}: {error}"
        ) from error
    for item in items:
        try:
            check_name(item.name)
        except (AttributeError, TypeError, ValueError) as error:
            raise PluginError(f"plugin {plugin} registers {item!r}: {error}") from error
    return items
