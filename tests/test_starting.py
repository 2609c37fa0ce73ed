"""What a command loads and builds before it does its work: no more than it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundler.cli import app
from bundler.later import exports, later
from bundler.plugins import load_plugins
from bundler.starting import asked_for
from tests.demo import quickstart

ROOT = Path(__file__).parents[1]
# Loading any of these to make a plan from a lock means that something is loaded too early: networks,
# downloads, writers of bundles, and the built-in plugins that a plan asks nothing.
NOT_FOR_PLANNING = (
    "asyncio", "ssl", "http.client", "urllib.request", "tarfile", "logging", "filelock",
    "packaging", "huggingface_hub", "httpx2", "numpy", "rich.progress", "rich.live",
    "rich._emoji_codes", "jinja2", "tree_sitter",
    "bundler.execute", "bundler.transfer", "bundler.download", "bundler.proving", "bundler.seal",
    "bundler.compose", "bundler.grouping", "bundler.manifest", "bundler.report",
    "bundler.moving_lines", "bundler.advice.asking", "bundler.advice.explanation",
    "bundler.weights.gguf", "bundler.weights.safetensors", "bundler.media.repair",
    "bundler.builtin.sources.http", "bundler.builtin.sources.hub", "bundler.builtin.sources.path",
    "bundler.builtin.runtimes.xllamacpp", "bundler.builtin.runtimes.pypi",
    "bundler.builtin.knowledge.folder", "bundler.builtin.knowledge.zim",
    "bundler.proof", "bundler.tasks.items", "bundler.tasks.reading", "bundler.tasks.rows",
    "bundler.tasks.schemas",
)  # fmt: skip
LOADED = """
import json, sys
from bundler.__main__ import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_a_plan_from_a_lock_loads_nothing_that_it_does_not_ask(tmp_path: Path):
    recipe = quickstart()
    words = ["plan", str(recipe), "--frozen", "--offline", "--store", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert "bundler.planning.planner" in loaded
    early = [n for n in NOT_FOR_PLANNING if any(m == n or m.startswith(n + ".") for m in loaded)]
    assert not early


def test_the_program_looks_for_garbage_and_for_strangers_plugins_less_before_it_imports():
    code = (
        "import gc, os, sys, bundler.__main__, bundler.cli\n"
        "assert 'pydantic' not in sys.modules and gc.get_threshold()[0] < 10_000\n"
        "bundler.cli.main = lambda: print(gc.get_threshold()[0], os.environ['PYDANTIC_DISABLE_PLUGINS'])\n"
        "bundler.__main__.main()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYDANTIC_DISABLE_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment,
    )  # fmt: skip
    assert done.stdout.split() == ["200000", "__all__"], done.stderr


def test_what_stands_for_a_builtin_plugin_says_what_the_plugin_says():
    plugins = load_plugins(installed=False)
    stand_ins = [
        found
        for kind in (plugins.sources, plugins.engines, plugins.corpora, plugins.runtimes)
        for found in kind.values()
        if hasattr(type(found), "__getattr__")
    ]
    assert len(stand_ins) >= 8
    for found in stand_ins:
        known = {k: v for k, v in vars(found).items() if not k.startswith("_")}
        assert "name" in known
        made = type(found)(found._place, {})  # the same plugin, with nothing said of it
        assert known == {name: getattr(made, name) for name in known}


def test_a_stand_in_is_made_once_and_asked_for_what_it_does_not_know():
    one = later("collections:Counter", name="counter")
    assert one.name == "counter"
    one.update("aab")
    assert one.most_common(1) == [("a", 2)]
    with pytest.raises(AttributeError):
        one.nothing_of_the_kind  # noqa: B018 - asking is the test


def test_a_name_that_a_package_does_not_export_is_an_attribute_error():
    find = exports({"Counter": "collections:Counter"})
    assert find("Counter")("a")["a"] == 1
    with pytest.raises(AttributeError, match="'Other'"):
        find("Other")


def test_every_command_is_built_alone_and_anything_else_with_all_of_them():
    names = {c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    assert {"plan", "build", "verify"} <= names
    assert "key" in groups
    for name in names | groups:
        only = asked_for(app, [name, "--help"])
        assert len(only.registered_commands) + len(only.registered_groups) == 1
    for words in ([], ["--help"], ["--version"], ["paln"]):
        assert asked_for(app, words) is app
