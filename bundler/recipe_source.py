"""Where something that a recipe names comes from. Values."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from bundler.value import Sha256, Value

_REFERENCE = re.compile(r"([a-z][a-z0-9+.-]*):(.+)", re.DOTALL)


def _or_text(schema: JsonDict) -> None:
    """Let the JSON Schema of a source reference take its short form, a string, too."""
    table: JsonDict = {key: schema.pop(key) for key in list(schema)}
    text: JsonDict = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:.+"}
    schema["description"] = table.pop("description", "")
    schema["anyOf"] = [text, table]


class SourceReference(Value):
    """Where something comes from. In a recipe: `"hf:owner/name@revision"`, `"path:../docs"`,
    `"https://host/file"`, or a table with the same keys as below.
    """

    model_config = ConfigDict(json_schema_extra=_or_text)

    source: str
    """Name of the source plugin: `path`, `http`, `hf`, or one that a plugin adds."""
    locator: str = Field(min_length=1)
    """What that source understands: a path, a URL, `owner/name`, `datasets/owner/name`."""
    revision: str = ""
    """Branch, tag or commit, for sources that have them."""
    include: tuple[str, ...] = ()
    """Glob patterns of the files wanted; all that are needed when empty."""
    sha256: Sha256 | None = None
    """Digest the (single) file must have, when the person knows it."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        match = _REFERENCE.fullmatch(given)
        if match is None:
            raise ValueError(
                f"{given!r} names no source: write 'hf:owner/name', 'path:folder' or a URL"
            )
        source, locator = match[1], match[2]
        if source in ("http", "https"):
            return {"source": "http", "locator": given}
        locator, at, revision = locator.partition("@") if source == "hf" else (locator, "", "")
        if at and not revision:
            raise ValueError(f"{given!r} has an '@' but no revision after it")
        return {"source": source, "locator": locator, "revision": revision}

    def __str__(self) -> str:
        if self.source == "http":
            return self.locator
        return f"{self.source}:{self.locator}" + (f"@{self.revision}" if self.revision else "")
