"""Writes docs/recipes.md and docs/recipe.schema.json from the types that read a recipe.

Run it with `.venv/bin/python tools/recipe_reference.py`; with `--check` it only tells, by exit
code 1, that one of them is not fresh.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bundler.recipe_schema import recipe_schema
from bundler.value import pretty_json

OUTPUT = Path(__file__).resolve().parent.parent / "docs/recipes.md"
SCHEMA = OUTPUT.with_name("recipe.schema.json")
HEAD = """\
# Recipes

A recipe is a TOML file of at most 1 MiB. Every problem in it is said at once, with line, column
and what would help. Editors check it while you write with the JSON Schema that
`bundler schema > recipe.schema.json` prints and the first line `#:schema ./recipe.schema.json`.

Sizes are numbers of bytes or strings such as `"24 GB"` (10⁹) and `"512 MiB"` (2²⁰). Paths are
relative to the recipe's own folder, with `/`; absolute ones are refused, since the recipe would
mean another thing on another machine. Names are lower case, safe on every filesystem.

This page is written by `tools/recipe_reference.py` from the types that read a recipe.
"""
SECTIONS = [
    ("Recipe", ""), ("BundleOptions", "[bundle]"), ("TargetRequest", "[target]"),
    ("TierRequest", "[tiers.<name>]"),
    ("ModelRequest", "[models.<name>]"), ("Gates", "[models.<name>.gates]"),
    ("AdapterRequest", "[[models.<name>.adapters]]"),
    ("CorpusRequest", "[corpora.<name>]"), ("SourceReference", "sources"),
    ("RuntimeOptions", "[runtime]"), ("VerifyOptions", "[verify]"),
    ("TaskRequest", "[verify.tasks.<name>]"),
]  # fmt: skip


def reference() -> str:
    """Return the whole page."""
    schema = recipe_schema()
    types = {**schema["$defs"], "Recipe": schema}
    parts = [HEAD]
    for name, title in SECTIONS:
        table = types[name]
        if "anyOf" in table:
            table = {**table["anyOf"][1], "description": table["description"]}
        parts.append(section(title or "the whole", table, types))
    return "\n".join(parts)


def section(title: str, table: dict[str, Any], types: dict[str, Any]) -> str:
    """Return one table of a recipe as Markdown."""
    lines = [f"## {title}\n", " ".join(table.get("description", "").split()), ""]
    lines += ["| key | what | default |", "|---|---|---|"]
    required = set(table.get("required", ()))
    for key, field in table["properties"].items():
        words = " ".join(field.get("description", "").split())
        kind = type_words(field, types)
        default = "required" if key in required else default_words(field)
        lines.append(f"| `{key}` | {words}{' ' if words else ''}({kind}) | {default} |")
    return "\n".join(lines) + "\n"


def default_words(field: dict[str, Any]) -> str:
    """Return a default as it would be written in TOML."""
    default = field.get("default")
    if default in (None, "", [], {}):
        return "none"
    if isinstance(default, dict):
        return "see below"
    if isinstance(default, list):
        return "`[" + ", ".join(f'"{item}"' for item in default) + "]`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def type_words(field: dict[str, Any], types: dict[str, Any]) -> str:
    """Return a type in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "a source" if name == "SourceReference" else "a table"
    if "const" in field:
        return f"always {field['const']}"
    if "enum" in field:
        return "one of " + ", ".join(f"`{item}`" for item in field["enum"])
    if "anyOf" in field:
        options = [o for o in field["anyOf"] if o.get("type") != "null"]
        if {o.get("type") for o in options} == {"integer", "string"}:
            return "a size"
        return " or ".join(dict.fromkeys(type_words(option, types) for option in options))
    if field.get("type") == "array":
        return f"list of {type_words(field.get('items', {}), types)}"
    if field.get("type") == "object":
        return "tables by name"
    words = {"string": "string", "integer": "whole number", "number": "number",
             "boolean": "true or false"}  # fmt: skip
    return words.get(field.get("type", ""), "any")


if __name__ == "__main__":
    pages = {OUTPUT: reference(), SCHEMA: pretty_json(recipe_schema())}
    if "--check" in sys.argv:
        raise SystemExit(any(path.read_text(encoding="utf-8") != pages[path] for path in pages))
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
