"""Reads tasks whose answers are programs: HumanEval's and MBPP's format. Pure.

HumanEval: `task_id`, `prompt` (a program's beginning), `entry_point`, `test` (with a function `check`),
`canonical_solution` if it has one. MBPP: `text` or `prompt` (words), `test_list` (assertions),
`test_setup_code` and `test_imports`, `code` (a solution) if they are there.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any

from bundler.tasks.items import CodeItem
from bundler.tasks.programs.inside.names import free_names
from bundler.tasks.rows import Form, Wrong, read_rows

_KEYS = (
    "task_id", "prompt", "text", "entry_point", "test", "test_list", "test_setup_code",
    "test_imports", "canonical_solution", "code",
)  # fmt: skip
_FORMATS = (
    "HumanEval's format has task_id, prompt, entry_point and test; MBPP's has task_id, text (or "
    "prompt) and test_list"
)
_MOST_TESTS = 1000
_ASKED = "{text}\nYour code should pass these tests:\n\n{tests}\n"


def read_code(data: bytes, path: str) -> tuple[CodeItem, ...]:
    """Return the tasks of a file; each counts once.

    Raises:
        RecipeError, UnsafeInput: as `rows.read_rows`.
    """
    return read_rows(data, path, _CODE)


def _code(row: int, given: Mapping[str, Any]) -> CodeItem | Wrong:
    """Return a task whose parts have been looked at; Parquet fills what a row lacks with null."""
    given = {key: value for key, value in given.items() if value is not None}
    if "test_list" in given:
        made = _mbpp(row, given)
    elif "test" in given:
        made = _humaneval(row, given)
    else:
        found = ", ".join(str(key)[:40] for key in list(given)[:12])
        return Wrong(f"lacks test or test_list; it has: {found or 'nothing'}", _FORMATS)
    return made


def _humaneval(row: int, given: Mapping[str, Any]) -> CodeItem | Wrong:
    if "entry_point" not in given:
        return Wrong("lacks entry_point: the name of the function that its test is given", _FORMATS)
    if wrong := _no_texts(given, "prompt", "entry_point", "test"):
        return wrong
    prompt, entry, test = (str(given[name]) for name in ("prompt", "entry_point", "test"))
    for name, source, function in (("prompt", prompt, entry), ("test", test, "check")):
        tree = _parsed(source)
        if isinstance(tree, str):
            return Wrong(f"its {name} is no Python: {tree}", _FORMATS)
        if function not in _functions(tree):
            return Wrong(f"its {name} defines no function {function[:60]!r}", _FORMATS)
    solution = str(given.get("canonical_solution") or "")
    return CodeItem(
        row, str(given.get("task_id", row)), prompt, entry, entry, prompt, test,
        prompt + solution if solution.strip() else "",
    )  # fmt: skip


def _mbpp(row: int, given: Mapping[str, Any]) -> CodeItem | Wrong:
    name = "text" if "text" in given else "prompt"
    if wrong := _no_texts(given, name):
        return wrong
    tests = given["test_list"]
    if not isinstance(tests, list) or not 0 < len(tests) <= _MOST_TESTS:
        return Wrong(f"its test_list is no list of 1 to {_MOST_TESTS:,} texts")
    imports = given.get("test_imports", [])
    before = (
        [*imports, given.get("test_setup_code", "")] if isinstance(imports, list) else [imports]
    )
    if not all(isinstance(one, str) for one in (*tests, *before)):
        return Wrong("its tests, or what stands before them, are no texts")
    test = "\n".join((*before, *tests))
    tree = _parsed(test)
    if isinstance(tree, str):
        return Wrong(f"its tests are no Python: {tree}")
    tested = _tested(tree, set(free_names(test)))
    if not tested:
        return Wrong("its tests call nothing that a program could define")
    asked = _ASKED.format(text=str(given[name]).strip(), tests="\n".join(tests))
    solution = given.get("code", given.get("canonical_solution", ""))
    return CodeItem(
        row, str(given.get("task_id", row)), asked, "", tested, "", test, str(solution)
    )  # fmt: skip


def _no_texts(given: Mapping[str, Any], *names: str) -> Wrong | None:
    for name in names:
        if name not in given:
            return Wrong(f"lacks {name}", _FORMATS)
        if not isinstance(given[name], str) or not given[name].strip():
            return Wrong(f"its {name} is no text")
    return None


def _parsed(source: str) -> ast.Module | str:
    """Return a stranger's program as a tree, or why it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the program's own spelling
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return str(error)[:200] or type(error).__name__


def _functions(tree: ast.Module) -> set[str]:
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def _tested(tree: ast.Module, free: set[str]) -> str:
    """Return the name of what the tests call first and do not define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in free:
            return node.func.id
    return ""


_CODE = Form(
    (), (), _code, optional=_KEYS, columns_hint=_FORMATS, same=lambda item: item.name
)  # fmt: skip
