"""What publishers say about a file beside it: `.sha256` lists and Metalink 4 (RFC 5854).

Both are small texts from a stranger: bounded before they get here, and XML is read without
document types, so no entity can unfold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.parsers import expat

from bundler.errors import SourceError, UnsafeInput

_METALINK = "urn:ietf:params:xml:ns:metalink"
_CHECKSUM_LINE = re.compile(
    r"(?:SHA256 \((?P<bsd>.+)\) = )?(?P<sha>[0-9a-fA-F]{64})(?:[ \t]+\*?(?P<name>.+))?"
)
_MOST_MIRRORS = 16


@dataclass
class Statement:
    """What a publisher states about one file."""

    name: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    mirrors: list[tuple[int, str]] = field(default_factory=list)
    """(priority, URL): the lower the better."""

    def addresses(self) -> list[str]:
        """Return at most 16 mirrors, best first."""
        return [url for _, url in sorted(set(self.mirrors))[:_MOST_MIRRORS]]


def sha256_for(text: str, name: str) -> str | None:
    """Return the digest that a checksum list gives for `name`, None when it gives none.

    >>> sha256_for("aa" * 32 + "  dir/wiki.zim", "wiki.zim") == "aa" * 32
    True
    """
    bare: set[str] = set()
    for line in text.splitlines():
        match = _CHECKSUM_LINE.fullmatch(line.strip())
        if match is None:
            continue
        named = match["bsd"] or match["name"]
        if named is None:
            bare.add(match["sha"].lower())
        elif named.strip().rpartition("/")[2] == name:
            return match["sha"].lower()
    return bare.pop() if len(bare) == 1 else None


def metalink_for(data: bytes, name: str, where: str) -> Statement | None:
    """Return what a Metalink document states about `name`, None when it is about other files.

    Raises:
        SourceError: it is not a Metalink document.
        UnsafeInput: it brings a document type, which no Metalink needs.
    """
    reader = _MetalinkReader(where)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise SourceError(f"is not a Metalink document: {error}", where=where) from error
    named = [file for file in reader.files if file.name == name]
    return named[0] if named else None


class _MetalinkReader:
    """Collects what lies directly in each `file` element."""

    def __init__(self, where: str) -> None:
        self.files: list[Statement] = []
        self._where = where
        self._path: list[str] = []
        self._attributes: dict[str, str] = {}
        self._text = ""

    def refuse(self, *_: object) -> None:
        raise UnsafeInput("brings a document type, which no Metalink needs", where=self._where)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        space, _, name = tag.rpartition(" ")
        self._path.append(name if space == _METALINK else "?")
        self._attributes, self._text = attributes, ""
        if self._path == ["metalink", "file"]:
            self.files.append(Statement(name=attributes.get("name", "")))

    def text(self, data: str) -> None:
        self._text += data

    def end(self, _: str) -> None:
        path, self._path = self._path, self._path[:-1]
        if path[:2] != ["metalink", "file"] or len(path) != 3:
            return
        file, text = self.files[-1], self._text.strip()
        if path[2] == "size" and re.fullmatch(r"\d{1,18}", text):
            file.size_bytes = int(text)
        elif path[2] == "hash" and self._attributes.get("type") == "sha-256":
            file.sha256 = text.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", text) else None
        elif path[2] == "url" and text.isascii() and text.isprintable():
            priority = self._attributes.get("priority", "")
            file.mirrors.append(
                (int(priority) if re.fullmatch(r"\d{1,6}", priority) else 999999, text)
            )
