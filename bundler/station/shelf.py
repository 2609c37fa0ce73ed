"""Templates and static files, taken into memory at start: the drive may be pulled out later."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

_HERE = Path(__file__).parent
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class StaticFile:
    """One file of the page."""

    data: bytes
    media_type: str
    etag: str


class Shelf:
    """Everything the page is made of."""

    def __init__(self, folder: Path = _HERE) -> None:
        self.static = {
            path.name: StaticFile(data, _MEDIA_TYPES[path.suffix], _etag(data))
            for path in sorted((folder / "static").iterdir())
            if path.suffix in _MEDIA_TYPES
            for data in [path.read_bytes()]
        }
        templates = {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted((folder / "templates").glob("*.html"))
        }
        self._environment = Environment(
            loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        for name in templates:
            self._environment.get_template(name)

    def render(self, template: str, **values: Any) -> str:
        """Return a template filled with `values`, everything escaped."""
        return self._environment.get_template(template).render(values)


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:20]}"'
