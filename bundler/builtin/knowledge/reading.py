"""Reads all documents of a folder through one limited child and keeps their pages on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge.library import MAGIC_BYTES, Document, looks_like, title_from_name
from bundler.builtin.knowledge.limited_child import ChildFailed, LimitedChild
from bundler.proof import Skipped

MEMORY_BYTES = 3 * 2**30
"""For one document: a PDF of 512 MiB is read from the disk, not held."""
SECONDS = 180.0
"""For one document, also on a slow machine that is busy."""


@dataclass(frozen=True, slots=True)
class Page:
    """What is remembered of a document that was read; its HTML lies in `spool`."""

    document: Document
    title: str
    description: str
    words: int
    ids: frozenset[str]
    spool: Path

    def load(self) -> dict[str, Any]:
        """Return all that the child said about the document."""
        loaded: dict[str, Any] = json.loads(self.spool.read_bytes())
        return loaded


@dataclass
class Reading:
    """The result: pages in order, media as files, what was skipped, how frequent words are."""

    pages: list[Page] = field(default_factory=list)
    media: dict[str, tuple[str, Path]] = field(default_factory=dict)
    """Path → (MIME type, file)."""
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    frequency: Counter[str] = field(default_factory=Counter)
    """Word → number of documents that have it."""


def read_documents(
    documents: Iterable[Document],
    inputs: Mapping[str, Path],
    spool: Path,
    advance: Callable[[], None],
    *,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Reading:
    """Read every document; one that breaks its reader is skipped with the reason.

    `advance` is called after each document.
    """
    reading = Reading()
    with LimitedChild("bundler.builtin.knowledge.documents", memory_bytes=memory_bytes) as child:
        for number, document in enumerate(documents):
            request = {"path": str(inputs[document.source]), "kind": document.kind}
            try:
                answer = child.ask(request, seconds=seconds)
            except ChildFailed as failure:
                reading.skipped.append(Skipped(path=document.source, reason=str(failure)))
            else:
                _keep(reading, document, answer, spool / f"{number}.json")
            advance()
    return reading


def _keep(reading: Reading, document: Document, answer: dict[str, Any], spool: Path) -> None:
    spool.write_text(json.dumps(answer), encoding="utf-8")
    reading.frequency.update(answer["distinct"])
    reading.notes.extend(f"{document.source} {note}" for note in answer["notes"])
    reading.pages.append(
        Page(
            document,
            answer["title"] or title_from_name(document.source),
            answer["description"],
            answer["words"],
            frozenset(answer["ids"]),
            spool,
        )
    )


def read_media(
    media: Mapping[str, str], inputs: Mapping[str, Path], spool: Path, reading: Reading
) -> None:
    """Check every media file and add it to `reading`: its first bytes, and all of an SVG."""
    unread = {
        skipped.path for skipped in reading.skipped if not skipped.reason.startswith("has no text")
    }
    with LimitedChild("bundler.builtin.knowledge.documents", memory_bytes=MEMORY_BYTES) as child:
        for number, (path, mime_type) in enumerate(media.items()):
            if path in unread:
                continue  # a PDF that could not be opened, named already
            try:
                file = _checked(path, mime_type, inputs[path], spool / f"{number}.svg", child)
            except ChildFailed as failure:
                reading.skipped.append(Skipped(path=path, reason=str(failure)))
            else:
                reading.media[path] = (mime_type, file)


def _checked(path: str, mime_type: str, file: Path, clean: Path, child: LimitedChild) -> Path:
    """Return the file to take for a medium: itself, or its cleaned form. Raises ChildFailed."""
    if mime_type == "image/svg+xml":
        request = {"path": str(file), "kind": "drawing"}
        clean.write_text(child.ask(request, seconds=SECONDS)["svg"], encoding="utf-8")
        return clean
    with file.open("rb") as stream:
        head = stream.read(MAGIC_BYTES)
    if not looks_like(mime_type, head):
        raise ChildFailed(f"is named like {mime_type} but is something else")
    return file
