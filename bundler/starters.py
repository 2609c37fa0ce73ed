"""The doors of a bundle for people: start scripts for each system, made from templates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundler.value import check_name

_TEMPLATES = Path(__file__).with_name("templates")
# Path in the bundle → template, line ending. cmd.exe loses labels in files with bare newlines.
_SCRIPTS = {
    "start": ("start.sh.j2", "\n"),
    "start.command": ("start.command.j2", "\n"),
    "start.cmd": ("start.cmd.j2", "\r\n"),
}


def start_files(platforms: Iterable[str], name: str, title: str) -> dict[str, bytes]:
    """Return path → bytes of the files that start a bundle.

    Args:
        platforms: the platforms it has a runtime for.
        name: its name.
        title: one line for people; what could end a comment of a script is taken out of it.
    """
    values = {
        "platforms": sorted(platforms),
        "name": check_name(name),
        "title": " ".join("".join(c if c.isprintable() else " " for c in title).split()) or name,
    }
    # Scripts, not HTML: nothing is to be escaped; every value is made harmless above.
    templates = Environment(  # noqa: S701
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    files = {
        path: templates.get_template(template).render(values).replace("\n", ending).encode()
        for path, (template, ending) in _SCRIPTS.items()
    }
    files["app/main.py"] = (_TEMPLATES / "main.py.j2").read_bytes()
    return files
