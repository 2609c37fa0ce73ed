"""The doors of a delta for people at the far end: a script that starts the bundle's own programs."""

from __future__ import annotations

from pathlib import Path

_TEMPLATES = Path(__file__).parents[1] / "templates"


def doors() -> dict[str, bytes]:
    """Return path → bytes of the files with which a delta is applied where no bundler is."""
    return {
        "update.sh": (_TEMPLATES / "update.sh").read_bytes(),
        "README.txt": (_TEMPLATES / "update.txt").read_bytes(),
    }
