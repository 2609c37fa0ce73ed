"""Imports point down one list, and each third-party package has one home."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bundler"

# From the top of the house to its ground: a module may import those below it, and its own floor.
FLOORS = """
__main__
cli
starting key_commands repair_commands machine_commands update_commands deploy_commands packing_commands command_order results inspect_commands
doctor
pipeline deploy packing
compose
report drawing
advice
console moving_lines
locking
resolve execute proving offering rechecking
far_end
seal transfer verify media update
planning
feedback bom attest gates starters parallel recipe_file recipe_schema recipe_places recipe_words
segments grouping layout download part solver sourcing turns beside first_start unfinished
builtin testing
plugins
hookspecs
world
store fingerprint
tasks
manifest recipe_drafts
plan proof measured lock recipe recipe_target recipe_source recipe_tasks inspection
machine
hardware weights pacing
events value errors later printable descriptors
__init__
"""
# Who may import what is heavy, fragile or an effect. Everything else may be imported anywhere.
HOMES = {
    "llama_cpp": {"builtin.llamacpp"},
    "libzim": {"builtin.knowledge", "station", "testing"},
    "huggingface_hub": {"builtin.sources"},
    "httpx2": {"builtin.sources"},
    "pypdfium2": {"builtin.knowledge"},
    "selectolax": {"builtin.knowledge", "station"},
    "sentencepiece": {"builtin.llamacpp"},
    "tokenizers": {"builtin.llamacpp"},
    "gguf": {"builtin.llamacpp"},
    "numpy": {"builtin.llamacpp", "update.matching", "testing.outliers"},
    "pynvml": {"builtin.llamacpp", "machine"},
    "xllamacpp": {"builtin.runtimes"},
    "typer": {
        "cli",
        "starting",
        "key_commands",
        "repair_commands",
        "machine_commands",
        "update_commands",
        "deploy_commands",
        "packing_commands",
        "inspect_commands",
        "command_order",
    },
    "minisign": {"media", "update.far_end"},
    "par2": {"media"},
    "rich": {
        "cli",
        "results",
        "console",
        "moving_lines",
        "drawing",
        "key_commands",
        "repair_commands",
        "machine_commands",
        "update_commands",
        "deploy_commands",
        "inspect_commands",
    },
    "duckdb": {"tasks"},
    "filelock": {"store"},
    "jsonschema": {"tasks"},
    "py3langid": {"tasks"},
    "referencing": {"tasks"},
    "jinja2": {"report", "starters", "builtin.llamacpp", "station"},
    "tree_sitter": {"recipe_file"},
    "tree_sitter_toml": {"recipe_file"},
    "pluggy": {"hookspecs", "plugins"},
    "starlette": {"station"},
    "uvicorn": {"station"},
    "platformdirs": {"cli", "key_commands", "machine_commands"},
}
# What holds values only: importing any of these must not reach the world.
VALUES = (
    "value", "errors", "events", "hardware", "recipe", "recipe_target", "recipe_source", "recipe_tasks", "lock", "plan", "proof",
    "manifest",
)  # fmt: skip
EFFECTS = {"os", "subprocess", "socket", "urllib", "shutil", "tempfile", "httpx2", "threading"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path):
    """Yield every module that a file imports, also inside functions, as a dotted name."""
    inside = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            yield name
            if name == "bundler":
                yield from (f"bundler.{alias.name}" for alias in node.names)


def floor(name: str) -> int:
    floors = [line.split() for line in FLOORS.strip().splitlines()]
    top = name.partition(".")[0]
    for index, rooms in enumerate(floors):
        if top in rooms:
            return index
    raise AssertionError(f"bundler.{name} stands on no floor: add it to FLOORS")


def in_home(module: str, homes: set[str]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path):
    module = dotted(path)
    for name in imported(path):
        if not name.startswith("bundler.") or module == "__init__":
            continue
        other = name.removeprefix("bundler.")
        if (
            not (PACKAGE / other.split(".")[0]).exists()
            and not (PACKAGE / f"{other.split('.')[0]}.py").exists()
        ):
            continue  # a name of the package itself, as `bundler.__version__`
        if module.startswith("station"):
            assert other.startswith("station"), f"the station imports {name} of the build side"
        elif other.startswith("station"):
            # The doctor asks the station what it would take: one judgement, not two.
            assert module in (
                "cli",
                "builtin.runtimes.main",
                "doctor.serving",
                # One format of the fingerprint, written here and read there.
                "builtin.llamacpp.fingerprinting",
                "builtin.llamacpp.recheck",
                # What a person types at the far end: one word for both.
                "far_end.commands",
                "far_end.telling",
            ) or module.startswith("testing")
        elif other.startswith("builtin") and not module.startswith(("builtin", "testing")):
            raise AssertionError(f"the core imports a plugin: {name}")
        else:
            assert floor(module) <= floor(other), f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_each_third_party_package_has_its_home(path):
    module = dotted(path)
    for name in imported(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or in_home(module, homes), f"{module} imports {name}"


@pytest.mark.parametrize("module", VALUES)
def test_values_do_not_reach_the_world(module):
    names = {name.split(".")[0] for name in imported(PACKAGE / f"{module}.py")}
    assert not names & EFFECTS


def test_one_plugin_does_not_lean_on_another():
    rooms = {p.name for p in (PACKAGE / "builtin").iterdir() if p.is_dir()}
    for path in (PACKAGE / "builtin").rglob("*.py"):
        own = path.relative_to(PACKAGE / "builtin").parts[0]
        for name in imported(path):
            if name.startswith("bundler.builtin."):
                other = name.split(".")[2]
                assert other == own or other not in rooms or own not in rooms, f"{path}: {name}"
