"""What users read is held to what the program does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from bundler import errors, hookspecs
from bundler.cli import app
from bundler.recipe_file import parse_recipe, read_recipe
from bundler.verify import read_manifest
from tests.demo import demo_bundle

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
COMMANDS = typer.main.get_command(app).commands


def test_the_reference_of_recipe_keys_is_fresh():
    script = ROOT / "tools/recipe_reference.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0


def test_every_recipe_key_is_described():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\(", DOCS["recipes.md"], re.MULTILINE)
    assert len(rows) > 50
    assert [key for key, words in rows if not words] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name):
    assert f"`bundler {name}" in DOCS["commands.md"]
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert option in DOCS["commands.md"], f"{name} {option}"
        assert getattr(parameter, "help", "documented"), f"{name} {parameter.name} has no help"


def test_every_exit_code_is_documented():
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.BundlerError):
            assert re.search(rf"^\| {value.exit_code}\b", DOCS["commands.md"], re.MULTILINE)
            assert value is errors.BundlerError or value.__name__ in errors.__doc__


def hooks():
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if name.startswith("bundler_") and callable(function)
    }


def test_every_hook_and_its_arguments_are_documented():
    for name, function in hooks().items():
        arguments = ", ".join(function.__code__.co_varnames[: function.__code__.co_argcount])
        assert f"### `{name}({arguments})`" in DOCS["plugins.md"]


def test_every_link_in_the_docs_leads_somewhere():
    for path in [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in link and not link.startswith("mailto:"):
                assert (path.parent / link).exists(), f"{path.relative_to(ROOT)}: {link}"


def test_recipes_in_the_docs_and_in_the_repository_are_good_recipes():
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        read_recipe(path)
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        parse_recipe(block.encode())


def test_the_readme_begins_with_the_two_commands_and_make_has_them():
    screen = (ROOT / "README.md").read_text().splitlines()[:24]
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test"):
        assert any(line.startswith(f"$ make {command}") for line in screen)
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_figures_of_the_example_are_those_of_the_example():
    text = (ROOT / "README.md").read_text()
    manifest = read_manifest(demo_bundle())
    (corpus,) = manifest.corpora
    assert f"a handbook of\n{corpus.coverage.articles_indexed} articles" in text
    assert manifest.parity is not None
    assert "5 % parity" in text
    card = (ROOT / "examples/model/README.md").read_text()
    assert "5.0 M parameters" in card
    assert "5 million parameters" in text


def test_the_picture_in_the_readme_is_what_the_planner_says_today():
    script = ROOT / "tools/plan_picture.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "run tools/plan_picture.py, and look at the picture"
    assert "docs/plan.svg" in (ROOT / "README.md").read_text()


def test_no_address_of_a_registry_is_written_down():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    registry = re.compile(
        r"(py" + r"pi\.org|pythonhosted\." + r"org|registry\.npm" + r"js|deb\.deb" + r"ian)"
    )
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and path.suffix not in (".whl", ".safetensors", ".model"):
            assert not registry.search(path.read_text(errors="replace")), name
