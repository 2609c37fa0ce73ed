"""A plugin in one file: the corpus kind `dictionary`, and a target of our own.

A glossary (one term in a line: `term<TAB>definition`, or JSON lines `{"term": …, "definition": …}`)
becomes a searchable ZIM with one article for each term. In a recipe:

    [target]
    use = "old-laptop"

    [corpora.words]
    kind = "dictionary"
    source = "path:glossary.tsv"

To install it, put this file beside a `pyproject.toml` and run `pip install .`:

    [project]
    name = "bundler-dictionary"
    version = "1.0"
    dependencies = ["bundler"]

    [project.entry-points.bundler]           # the group; the name before "=" is free
    dictionary = "plugin_in_one_file"        # the module that has the hooks

`bundler plugins` then lists it. See docs/plugins.md, and plugins/ for a larger one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge import build_zim, zim_tool
from bundler.errors import Problem, StepFailed
from bundler.hardware import Target
from bundler.hookspecs import CorpusKind, Task, hookimpl

VERSION = "1"  # Raise it when the same glossary would give another ZIM: old results are not reused.


class DictionaryCorpus:
    """Glossaries, one article for each term."""

    name = "dictionary"

    def tool(self) -> str:
        """Name everything that shapes the result beside the files themselves."""
        return f"dictionary {VERSION}; {zim_tool()}"

    def run(self, task: Task) -> Mapping[str, Any]:
        """Leave `corpus.zim`; what is returned is the coverage that the bundle's report shows."""
        definitions = read_glossaries(task.inputs)
        # Scratch space lies in the store and is removed afterwards; only `task.output` is kept.
        with task.world.store.scratch() as folder:
            pages: dict[str, Path] = {}
            for number, term in enumerate(sorted(definitions)):
                file = folder / str(number)
                file.write_text(article(term, definitions[term]), encoding="utf-8")
                pages[f"{number:06}.html"] = file
            return build_zim(pages, task).model_dump(mode="json")


def article(term: str, definitions: Sequence[str]) -> str:
    """Return one term's page; the core sanitises it once more."""
    body = "".join(f"<p>{escape(definition)}</p>" for definition in definitions)
    return f"<title>{escape(term)}</title><h1>{escape(term)}</h1>{body}"


def read_glossaries(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return term → definitions. All bad lines are raised together, each with its place."""
    definitions: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for name, path in sorted(files.items()):
        for number, line in lines(name, path):
            try:
                # The suffix is that of the name in the recipe's folder: the file itself has none.
                term, definition = from_json(line) if name.endswith(".jsonl") else from_tabs(line)
            except ValueError as error:
                problems.append(Problem(str(error), where=f"{name}:{number}"))
            else:
                definitions.setdefault(term, []).append(definition)
    if problems:
        raise StepFailed(problems)
    return definitions


def lines(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StepFailed("is not UTF-8 text", where=name) from error
    return ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def from_tabs(line: str) -> tuple[str, str]:
    """Return term and definition of a line with a tab."""
    term, tab, definition = line.partition("\t")
    return checked(term, definition if tab else None)


def from_json(line: str) -> tuple[str, str]:
    """Return term and definition of a line of JSON."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("expected an object with `term` and `definition`")
    return checked(entry.get("term"), entry.get("definition"))


def checked(term: Any, definition: Any) -> tuple[str, str]:
    """Return both without the space around them; raises ValueError when one is missing."""
    if not isinstance(term, str) or not isinstance(definition, str):
        raise ValueError("expected a term, a tab and a definition")
    if not term.strip() or not definition.strip():
        raise ValueError("the term or its definition is empty")
    return term.strip(), definition.strip()


@hookimpl
def bundler_corpora() -> Sequence[CorpusKind]:
    """Give the corpus kind."""
    return [DictionaryCorpus()]


@hookimpl
def bundler_targets() -> Sequence[Target]:
    """Give a machine for the catalogue."""
    return [
        Target(
            name="old-laptop",
            title="The laptop in the drawer, 4 GB RAM",
            ram_bytes=2 * 2**30,
            cpu_level="x86-64-v2",
            source="measured: `free -b` on it, less a browser",
        )
    ]
