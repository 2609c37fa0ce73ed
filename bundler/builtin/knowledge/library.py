"""Which file of a folder becomes which entry of the ZIM, and where its links lead. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote, unquote

from bundler.builtin.knowledge.anchors import author_id

OWN_FOLDER = "_bundler"
"""Folder of the ZIM for what we add: the style sheet and the table of contents."""
STYLE_PATH = f"{OWN_FOLDER}/style.css"
CONTENTS_PATH = f"{OWN_FOLDER}/contents.html"

_DOCUMENTS = {
    ".md": "markdown", ".markdown": "markdown", ".mdown": "markdown", ".mkd": "markdown",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".txt": "text", ".text": "text", ".rst": "text", ".adoc": "text", ".org": "text",
    ".pdf": "pdf",
}  # fmt: skip
_TEXTS_WITHOUT_SUFFIX = {
    "license",
    "licence",
    "copying",
    "notice",
    "readme",
    "authors",
    "changelog",
}
MEDIA_TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif",
    ".webp": "image/webp", ".svg": "image/svg+xml", ".mp3": "audio/mpeg", ".ogg": "audio/ogg",
    ".oga": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav", ".m4a": "audio/mp4",
    ".mp4": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg", ".pdf": "application/pdf",
}  # fmt: skip
_MAGIC = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBP",
    "audio/mpeg": rb"ID3|\xff[\xe2-\xfb]",
    "audio/ogg": rb"OggS",
    "video/ogg": rb"OggS",
    "audio/wav": rb"RIFF....WAVE",
    "audio/mp4": rb"....ftyp",
    "video/mp4": rb"....ftyp",
    "video/webm": rb"\x1a\x45\xdf\xa3",
    "application/pdf": rb".{0,1024}?%PDF-",
}
MAGIC_BYTES = 1032
_HIDDEN = {"thumbs.db", "desktop.ini", "__macosx"}
_MAIN_NAMES = ("index", "readme", "home")


@dataclass(frozen=True, slots=True)
class Document:
    """A file that becomes an article."""

    source: str
    """Its path in the folder."""
    kind: str
    """`markdown`, `html`, `text` or `pdf`."""
    path: str
    """The article's path in the ZIM."""


@dataclass(frozen=True)
class Shelf:
    """What a folder holds, sorted: articles to be, media, and what is neither."""

    documents: tuple[Document, ...]
    media: Mapping[str, str]
    """Path → MIME type; PDFs are media as well as documents."""
    unsupported: tuple[str, ...]
    hidden: tuple[str, ...]
    """Files of the system or an editor that no reader would miss."""


def sort_files(paths: Iterable[str]) -> Shelf:
    """Decide what each file of a folder becomes; the order of `paths` does not matter."""
    kinds, media, unsupported, hidden = {}, {}, [], []
    for path in sorted(paths):
        suffix = posixpath.splitext(path)[1].lower()
        if _is_hidden(path):
            hidden.append(path)
            continue
        kind = _kind(path, suffix)
        if path.split("/")[0] == OWN_FOLDER or not (kind or suffix in MEDIA_TYPES):
            unsupported.append(path)
            continue
        if kind:
            kinds[path] = kind
        if suffix in MEDIA_TYPES:
            media[path] = MEDIA_TYPES[suffix]
    documents = tuple(
        Document(source, kinds[source], path) for source, path in _article_paths(kinds).items()
    )
    return Shelf(documents, media, tuple(unsupported), tuple(hidden))


def _is_hidden(path: str) -> bool:
    return any(
        part.startswith(".") or part.endswith("~") or part.lower() in _HIDDEN
        for part in path.split("/")
    )


def _kind(path: str, suffix: str) -> str:
    if not suffix and posixpath.basename(path).lower() in _TEXTS_WITHOUT_SUFFIX:
        return "text"
    return _DOCUMENTS.get(suffix, "")


def _article_paths(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return source → article path: `a.md` → `a.html`, but `a.md.html` if `a.html` is claimed.

    A PDF's article is always `a.pdf.html`, since the original stays at `a.pdf`.
    """
    wishes: dict[str, list[str]] = {}
    for source, kind in kinds.items():
        stem = source if kind == "pdf" else posixpath.splitext(source)[0]
        wishes.setdefault(f"{stem}.html", []).append(source)
    taken = set(kinds) | set(wishes)
    paths = {}
    for wish, sources in wishes.items():
        # The file that already has the name keeps it; otherwise the first in order gets it.
        winner = wish if wish in sources else min(sources)
        for source in sources:
            path = wish
            while source != winner and path in taken:
                path = f"{source}.html" if path == wish else f"{path}.html"
            taken.add(path)
            paths[source] = path
    return dict(sorted(paths.items()))


def looks_like(mime_type: str, head: bytes) -> bool:
    """Tell whether a file's first bytes are those of its type (SVG is checked by its cleaning)."""
    pattern = _MAGIC.get(mime_type)
    return pattern is None or re.match(pattern, head, re.DOTALL) is not None


def main_document(documents: Iterable[Document]) -> Document | None:
    """Return the document that opens first: `index`, `readme` or `home` at the top, if any."""
    top = {
        posixpath.splitext(document.source)[0].lower(): document
        for document in documents
        if "/" not in document.source and document.kind != "pdf"
    }
    return next((top[name] for name in _MAIN_NAMES if name in top), None)


def title_from_name(path: str) -> str:
    """Return a title for a document that has none.

    >>> title_from_name("water/how-to_boil.txt")
    'How to boil'
    """
    name = path.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    words = stem.replace("-", " ").replace("_", " ").strip() or name
    return words[:1].upper() + words[1:]


def relative(target: str, base: str) -> str:
    """Return the reference from the entry `base` to the entry `target`, percent-encoded."""
    return quote(posixpath.relpath(target, posixpath.dirname(base) or "."), safe="/-._~()")


@dataclass
class Links:
    """Rewrites the references of one folder's documents and remembers those that lead nowhere."""

    articles: Mapping[str, str]
    """Source → article path, of the documents that really became articles."""
    media: frozenset[str]
    ids: Mapping[str, frozenset[str]]
    """Article path → ids in it."""
    dead: list[tuple[str, str]] = field(default_factory=list)
    """(source of the document, reference), in the order they were met."""

    @cached_property
    def _folders(self) -> frozenset[str]:
        """Every folder that holds an article, at whatever depth; `.` is the top."""
        parts = (source.split("/") for source in self.articles)
        return frozenset({".", *("/".join(p[:n]) for p in parts for n in range(1, len(p)))})

    def rewrite(self, document: Document, reference: str, *, is_resource: bool) -> str | None:
        """Return what `reference` of `document` becomes in the ZIM, or None if it leads nowhere."""
        path, _, fragment = reference.partition("#")
        target = self._target(document, path.partition("?")[0], is_resource=is_resource)
        if target is None:
            self.dead.append((document.source, reference))
            return None
        anchor = self._anchor(target, unquote(fragment), document, reference)
        if target == document.path and not path:
            return anchor or "#"
        return relative(target, document.path) + anchor

    def _target(self, document: Document, path: str, *, is_resource: bool) -> str | None:
        if not path:
            return None if is_resource else document.path
        path = unquote(path).replace("\\", "/")
        folder = "" if path.startswith("/") else posixpath.dirname(document.source)
        source = posixpath.normpath(posixpath.join(folder, path.lstrip("/")))
        if source.startswith("../") or source == "..":
            return None
        if is_resource:
            return source if source in self.media else None
        return self._page(source)

    def _page(self, source: str) -> str | None:
        candidates = [source, *(f"{source}{suffix}" for suffix in (".md", ".html"))]
        candidates += [posixpath.normpath(f"{source}/{name}") for name in _INDEXES]
        for candidate in candidates:
            if candidate in self.articles:
                return self.articles[candidate]
        if source in self.media:
            return source
        return CONTENTS_PATH if source in self._folders else None

    def _anchor(self, target: str, fragment: str, document: Document, reference: str) -> str:
        if not fragment or target not in self.ids:
            return ""
        page = re.fullmatch(r"page=(\d+)(?:&.*)?", fragment)
        wanted = f"page-{page[1]}" if page else author_id(fragment)
        if wanted in self.ids[target]:
            return "#" + quote(wanted)
        if wanted == "top":
            return "#"
        self.dead.append((document.source, reference))
        return ""


_INDEXES = ("index.md", "index.html", "index.htm", "README.md")
