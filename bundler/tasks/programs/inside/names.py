"""Which names a test takes from the program that it tests. Pure."""

from __future__ import annotations

import ast
import builtins


def free_names(source: str) -> list[str]:
    """Return the names that a test uses and nothing in it defines; Python's own are none of them."""
    used: set[str] = set()
    made: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return sorted(used - made - set(dir(builtins)))
