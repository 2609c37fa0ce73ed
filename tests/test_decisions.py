"""Decisions are short, complete and still true of what is installed."""

import ast
import re
import sys
import tomllib
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
TABLE = {
    cells[0]: cells
    for line in (ROOT / "docs/decisions/0006-dependencies.md").read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    and cells[0] not in ("package", "---")
}
REQUIRED = dict(
    re.fullmatch(r"([A-Za-z0-9-]+)>=([0-9.]+)", line).groups()
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
)
# Of an extra: said in words below the table, and only there where somebody wants it.
OPTIONAL = {
    re.split("[>=]", line)[0]
    for extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ].values()
    for line in extra
}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    """Return the distributions whose modules the package imports, also inside functions."""
    modules = set()
    for path in (ROOT / "bundler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    foreign = modules - set(sys.stdlib_module_names) - {"bundler"}
    return {canonical(name) for module in foreign for name in known.get(module, [])}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_one_page_with_context_options_decision_and_cost(path):
    text = path.read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [
        "Context", "Options", "Decision", "Cost",
    ]  # fmt: skip
    assert re.match(rf"# {int(path.name[:4])}\. \w", text)
    assert len(text.splitlines()) < 70
    assert path.name in (ROOT / "docs/decisions/README.md").read_text()


def test_records_are_numbered_without_gaps():
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))


def test_every_dependency_is_in_the_table_and_none_that_is_gone():
    assert sorted(TABLE) == sorted(REQUIRED)
    assert {name: TABLE[name][1] for name in TABLE} == REQUIRED


@pytest.mark.parametrize("name", sorted(TABLE))
def test_each_row_has_a_reason_an_alternative_and_the_licence_that_is_installed(name):
    assert all(TABLE[name])
    about = metadata(name)
    stated = about.get("License-Expression") or about.get("License") or ""
    classifiers = " ".join(c for c in about.get_all("Classifier") or [] if "License ::" in c)
    licence = TABLE[name][2]
    if about.get("License-Expression") or len(stated) > 4:
        assert licence == stated
    else:
        assert licence.split("-")[0] in f"{stated} {classifiers}", f"{stated} {classifiers}"


def test_every_dependency_is_imported_somewhere():
    used = imported() | {"tree-sitter-toml", "pip"}  # pip is run as a program
    assert sorted(set(map(canonical, REQUIRED)) - used) == []


def test_what_is_imported_is_declared_or_named_as_brought_by_another():
    text = (ROOT / "docs/decisions/0006-dependencies.md").read_text()
    brought = {"anyio", "h11", "markupsafe"}
    assert imported() - {canonical(name) for name in (*REQUIRED, *OPTIONAL)} == brought
    assert all(f"`{name}`" in text for name in brought)


def test_what_is_optional_is_told_of_too():
    text = (ROOT / "docs/decisions/0006-dependencies.md").read_text()
    assert all(f"{name} (" in text for name in OPTIONAL)
