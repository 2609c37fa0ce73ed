"""Plugins: who is registered, who is refused, and what each hook does in a whole build."""

import json
import os
import re
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bundler import hookspecs, pipeline, plugins
from bundler.errors import DoesNotFit, PluginError, Problem, ProofFailed, RecipeError, StepFailed
from bundler.hardware import Target
from bundler.hookspecs import hookimpl
from bundler.plugins import load_plugins
from bundler.recipe import SourceReference
from bundler.store import Store
from bundler.testing import contract
from bundler.testing.contract import check_plugin, check_runtime, check_source
from bundler.testing.fakes import FakeCorpus, FakeEngine, FakeRuntime, Fakes, MemorySource
from bundler.verify import read_manifest
from bundler.world import World
from tests.fake_build import RECIPE, fakes
from tests.test_contract import example

ROOT = Path(__file__).parents[1]
PIP = ROOT / "tools/bootstrap/pip-26.3-py3-none-any.whl/pip"


def build(folder, recipe, *extra):
    """Build a bundle with some plugins beside the fakes; return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fake.toml"
    path.write_text(recipe)
    world = World(Store(folder / "store"), {"SOURCE_DATE_EPOCH": "1"}, folder=folder)
    built = pipeline.build(path, folder / "dist/fake", load_plugins(extra=[fakes(), *extra]), world)
    return read_manifest(built.output)


def bundler(*words, folder, **environment):
    """Run the program as a person does, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "bundler", *words],
        cwd=folder, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def listed(folder, **environment):
    done = bundler("plugins", "--json", folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    return {f"{row['kind']}:{row['name']}": row["from"] for row in rows}


# -- what is there -----------------------------------------------------------------------------------


def test_everything_that_ships_comes_through_the_same_doors_and_is_listed(tmp_path):
    found = listed(tmp_path)
    ours = {
        "source:path", "source:http", "source:hf", "source:pypi", "source:shipped",
        "engine:llama.cpp",
        "corpus:folder", "corpus:zim", "runtime:llama-server", "runtime:xllamacpp",
    }  # fmt: skip
    assert ours <= found.keys()
    assert all(found[name].startswith("bundler.builtin.") for name in ours)
    loaded = load_plugins(installed=False)
    assert {name for name in loaded.origins if not name.startswith("target:")} == ours
    assert {loaded.origins[f"target:{name}"] for name in loaded.targets} == {
        "bundler.builtin.targets"
    }


def test_an_unknown_name_lists_what_there_is():
    found = load_plugins(extra=[Fakes()], installed=False)
    with pytest.raises(PluginError, match="no corpus called 'epup'") as caught:
        found.maker("corpus:epup")
    assert "fake, folder, zim" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ('"memory:weights"', '"memry:weights"', "memory, path"),
        ('engine = "fake"', 'engine = "llama"', "fake, llama.cpp"),
        ('use = ["fake"]', 'use = ["vllm"]', "fake, llama-server, xllamacpp"),
        ('kind = "fake"', 'kind = "dictionary"', "fake, folder, zim"),
    ],
)
def test_a_recipe_that_names_what_is_not_installed_says_what_is(tmp_path, old, new, hint):
    with pytest.raises(RecipeError) as caught:
        build(tmp_path, RECIPE.replace(old, new))
    assert hint in str([problem.hint for problem in caught.value.problems])


# -- what is refused ---------------------------------------------------------------------------------


class Doubled:
    __name__ = "somebody.else"

    @hookimpl
    def bundler_corpora(self):
        return [FakeCorpus()]


def test_one_name_from_two_plugins_is_refused_with_both_origins():
    with pytest.raises(PluginError) as caught:
        load_plugins(extra=[Fakes(), Doubled()])
    (problem,) = caught.value.problems
    assert "corpus:fake" in problem.message
    assert "bundler.testing.fakes" in problem.message
    assert "somebody.else" in problem.message


def test_a_misspelled_hook_is_refused():
    class Misspelled:
        @hookimpl
        def bundler_corpuses(self):
            return []

    with pytest.raises(PluginError, match="bundler_corpuses"):
        load_plugins(extra=[Misspelled()])


def test_a_hook_with_an_argument_that_does_not_exist_is_refused():
    class Wrong:
        __name__ = "wrong.plugin"

        @hookimpl
        def bundler_review_plan(self, recipe):
            return []

    with pytest.raises(PluginError, match=r"(?s)wrong\.plugin.*recipe"):
        load_plugins(extra=[Wrong()])


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda: 1 / 0, r"some\.plugin failed while registering: ZeroDivisionError"),
        (lambda: None, "failed while registering: TypeError"),
        (lambda: [object()], "has no attribute 'name'"),
        (lambda: [Target(name="../x", ram_bytes=1)], "cannot be a name"),
    ],
)
def test_a_plugin_that_registers_nonsense_is_named(give, words):
    class Nonsense:
        __name__ = "some.plugin"

        @hookimpl
        def bundler_targets(self):
            return give()

    with pytest.raises(PluginError, match=words):
        load_plugins(extra=[Nonsense()])


def install(folder, name, code):
    """Put a distribution with one module and an entry point into `folder`, as pip would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[bundler]\n{name} = {name}\n")


def test_an_installed_plugin_that_cannot_be_imported_is_named_with_its_owner(tmp_path):
    install(tmp_path / "site", "brokenplugin", "import not_there_at_all\n")
    done = bundler("plugins", folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == PluginError.exit_code
    assert "plugin brokenplugin (brokenplugin) cannot be imported" in done.stderr
    assert "not_there_at_all" in done.stderr
    assert "pip uninstall brokenplugin" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_installed_plugins_of_one_entry_point_name_are_both_seen(monkeypatch):
    points = [
        EntryPoint("same", "bundler.testing.fakes:bundler_testing", "bundler"),
        EntryPoint("same", "bundler.testing.fakes:Fakes", "bundler"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(PluginError, match="bundler_testing"):
        load_plugins()


def test_code_in_a_recipes_folder_is_never_imported(tmp_path):
    folder = tmp_path / "stranger"
    install(folder, "evil", f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (folder / "sitecustomize.py").write_text((folder / "evil.py").read_text())
    (folder / "plugins").mkdir()
    (folder / "plugins/evil.py").write_text((folder / "evil.py").read_text())
    (folder / "r.toml").write_text(RECIPE.replace('engine = "fake"', 'engine = "evil"'))
    # The installed script, whose import path has no current folder in it; `python -m` would.
    script = Path(sys.executable).parent / "bundler"
    done = subprocess.run(
        [script, "plan", "r.toml", "--store", tmp_path / "store"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists()
    assert "evil" not in str(load_plugins().origins)


# -- each hook, in a whole build ---------------------------------------------------------------------


def test_bundler_sources_engines_corpora_and_runtimes_make_a_bundle(tmp_path):
    manifest = build(tmp_path, RECIPE)
    assert manifest.models[0].engine == "fake"
    assert [component["name"] for component in manifest.components] == ["fake"]


def test_bundler_sources_is_one_door_for_all_bytes(tmp_path):
    class Attic:
        @hookimpl
        def bundler_sources(self):
            source = MemorySource()
            source.name = "attic"
            source.files = {"box": {"a.txt": b"old letters"}}
            return [source]

    manifest = build(tmp_path, RECIPE.replace("memory:book", "attic:box"), Attic())
    assert manifest.corpora[0].origin.reference == "attic:box"


def test_bundler_engines_is_what_a_model_names(tmp_path):
    class Other(FakeEngine):
        name = "other"

        def offers(self, *given):
            return [
                offer.model_copy(
                    update={
                        "engine": "other",
                        "steps": tuple(
                            step.model_copy(update={"plugin": "engine:other"})
                            for step in offer.steps
                        ),
                    }
                )
                for offer in super().offers(*given)
            ]

    class Plugin:
        @hookimpl
        def bundler_engines(self):
            return [Other()]

    manifest = build(tmp_path, RECIPE.replace('engine = "fake"', 'engine = "other"'), Plugin())
    assert manifest.models[0].engine == "other"


def test_bundler_runtimes_is_what_a_recipe_uses(tmp_path):
    class Second(FakeRuntime):
        name = "second"

        def run(self, task):
            (task.output / "second.json").write_text("{}")
            return {**super().run(task), "executables": []}

    class Plugin:
        @hookimpl
        def bundler_runtimes(self):
            return [Second()]

    manifest = build(tmp_path, RECIPE.replace('use = ["fake"]', 'use = ["second"]'), Plugin())
    assert "runtime/linux-x86_64/second.json" in {file.path for file in manifest.files}


def test_bundler_corpora_and_targets_of_the_one_file_example_work_in_a_whole_build(tmp_path):
    recipe = RECIPE.replace('kind = "fake"', 'kind = "dictionary"')
    recipe = recipe.replace("memory:book", "path:glossary.tsv")
    recipe = recipe.replace('ram = "1 GB"', 'use = "old-laptop"')
    (tmp_path / "glossary.tsv").write_text("tourniquet\ta tight band\nturbid\tcloudy, of water\n")
    manifest = build(tmp_path, recipe, example())
    (corpus,) = manifest.corpora
    assert corpus.coverage.articles_indexed == 2
    assert manifest.target.name == "old-laptop"
    assert (tmp_path / "dist/fake" / corpus.file).read_bytes().startswith(b"ZIM\x04")


def test_the_one_file_example_names_every_bad_line(tmp_path):
    words = {"a.tsv": b"no tab\nx\ty\n\n \ty\n", "b.jsonl": b'{"term": 1}\n[]\n{'}
    files = {}
    for name, data in words.items():
        files[name] = tmp_path / name
        files[name].write_bytes(data)
    with pytest.raises(StepFailed) as caught:
        example().read_glossaries(files)
    places = [problem.where for problem in caught.value.problems]
    assert places == ["a.tsv:1", "a.tsv:4", "b.jsonl:1", "b.jsonl:2", "b.jsonl:3"]


def test_bundler_review_plan_stops_a_build_with_its_objection(tmp_path):
    class Careful:
        @hookimpl
        def bundler_review_plan(self, plan):
            return [Problem(f"{c.model} is too small for us") for c in plan.choices]

    with pytest.raises(DoesNotFit, match="chat is too small for us"):
        build(tmp_path, RECIPE, Careful())


def test_a_review_that_breaks_is_the_fault_of_its_plugin(tmp_path):
    class Broken:
        __name__ = "broken.review"

        @hookimpl
        def bundler_review_plan(self, plan):
            return [plan.no_such_thing]

    class Silent:
        @hookimpl
        def bundler_review_plan(self, plan):
            """Forget to return anything."""

    with pytest.raises(PluginError, match=r"broken\.review failed in bundler_review_plan"):
        build(tmp_path, RECIPE, Broken())
    with pytest.raises(PluginError, match="NoneType"):
        build(tmp_path, RECIPE, Silent())


def test_bundler_review_proof_rules_an_offer_out(tmp_path):
    class Strict:
        @hookimpl
        def bundler_review_proof(self, model, proof):
            return [Problem("too far off")] if proof.quality.kld_mean < 0.05 else []

    class Stricter:
        @hookimpl
        def bundler_review_proof(self, model, proof):
            return [Problem("never good enough", hint="take another")]

    manifest = build(tmp_path / "one", RECIPE, Strict())
    assert manifest.models[0].quant == "tenth"
    with pytest.raises(ProofFailed, match="never good enough"):
        build(tmp_path / "two", RECIPE, Stricter())


def test_each_hook_has_a_test_here():
    here = Path(__file__).read_text()
    for name in vars(hookspecs):
        if name.startswith("bundler_"):
            assert f"def {name}(self" in here or f"def test_{name}" in here, name


# -- what lies in plugins/ and examples/ -------------------------------------------------------------


def test_the_package_of_plugins_is_installed_by_pip_and_listed(tmp_path):
    pytest.importorskip("hatchling", reason="builds the plugin's wheel; tools/setup.py brings it")
    done = subprocess.run(
        [
            sys.executable, PIP, "install", "--quiet", "--no-deps", "--no-build-isolation",
            "--no-index", "--target", tmp_path / "site", ROOT / "plugins/bundler-epub",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = listed(tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert found["corpus:epub"] == "bundler-epub (bundler_epub)"


def test_the_package_of_plugins_passes_its_own_tests():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=ROOT / "plugins/bundler-epub", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_bundler_can_be_used_from_python(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples/use_from_python.py", ROOT / "recipes/quickstart.toml"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("quickstart for ")
    assert "corpora/handbook" in done.stdout


def test_an_error_from_python_keeps_its_exit_code(tmp_path):
    (tmp_path / "bad.toml").write_text("schema = 1\n")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/use_from_python.py", "bad.toml"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "bundle" in done.stderr


# -- the page that describes it ----------------------------------------------------------------------


def examples_of_the_docs():
    """Return hook → the module that its section shows."""
    text = (ROOT / "docs/plugins.md").read_text()
    sections = re.split(r"^### `(bundler_\w+)\(.*\)`$", text, flags=re.MULTILINE)[1:]
    modules = {}
    for hook, section in zip(sections[::2], sections[1::2], strict=True):
        (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
        modules[hook] = types.ModuleType(f"docs_{hook}")
        exec(compile(code, f"docs/plugins.md, {hook}", "exec"), modules[hook].__dict__)
    return modules


def test_every_example_of_the_docs_keeps_the_contract(tmp_path):
    modules = examples_of_the_docs()
    for hook, module in modules.items():
        assert hook in [name for name in dir(module) if name.startswith("bundler_")]
        check_plugin(module)
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf/words").write_text("Boil it.\n%\nCool it.\n")
    (tmp_path / "recipe").mkdir()
    world = World(
        Store(tmp_path / "store"), {"BUNDLER_SHELF": str(tmp_path / "shelf")},
        folder=tmp_path / "recipe",
    )  # fmt: skip
    (source,) = modules["bundler_sources"].bundler_sources()
    check_source(source, SourceReference.model_validate("shelf:words"), world)
    (runtime,) = modules["bundler_runtimes"].bundler_runtimes()
    check_runtime(runtime, "linux-x86_64", tmp_path / "runtime")


def test_all_examples_of_the_docs_together_build_a_bundle(tmp_path):
    modules = examples_of_the_docs()
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "model.tiny").write_bytes(b"TINY" + bytes(4000))
    (shelf / "words").write_text("Boil it.\n%\nCool it.\n")
    (tmp_path / "r.toml").write_text("""
schema = 1
[bundle]
name = "fake"
[target]
use = "clinic-box"
[models.chat]
source = "shelf:model.tiny"
engine = "ready"
[corpora.words]
kind = "fortunes"
source = "shelf:words"
[runtime]
use = ["tiny"]
""")
    world = World(Store(tmp_path / "store"), {"BUNDLER_SHELF": str(shelf)}, folder=tmp_path)
    found = load_plugins(extra=modules.values())
    built = pipeline.build(tmp_path / "r.toml", tmp_path / "dist", found, world)
    manifest = read_manifest(built.output)
    assert manifest.models[0].quant == "as-is"
    assert manifest.corpora[0].coverage.articles_indexed == 2
    assert manifest.target.name == "clinic-box"


def test_the_docs_name_every_check_of_the_contract():
    text = (ROOT / "docs/plugins.md").read_text()
    for name in vars(contract):
        if name.startswith("check_") and vars(contract)[name].__module__ == contract.__name__:
            assert f"`{name}(" in text, name
