"""One document of whatever type → a page with anchors. Runs in a child process with limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge.anchors import elements_with_depth, give_anchors
from bundler.builtin.knowledge.cleaning import take_out
from bundler.builtin.knowledge.drawing import clean_drawing
from bundler.builtin.knowledge.limited_child import ChildFailed, answer_requests
from bundler.builtin.knowledge.markdown_text import markdown_html, split_front_matter
from bundler.builtin.knowledge.pdf_text import pdf_html
from bundler.builtin.knowledge.plain_text import decode, text_html, text_title

MAX_TEXT_BYTES = 32 * 2**20
"""Larger documents are no reading matter, and a phone could not show their article."""
MAX_PDF_BYTES = 512 * 2**20
MAX_DEPTH = 256
"""HTML nested deeper is refused: no hand or tool writes such pages, only attackers do."""
MAX_ELEMENTS = 500_000
_DISTINCT_WORDS = 4000
_TITLE_CHARACTERS = 300
_JOINERS = "\u200c\u200d"  # they shape words in Persian, Hindi and others
_WORD = re.compile(r"[^\W\d_]{4,24}")
_EDGES = ".,;:!?()[]{}\"'“”‘’«»*_/…-–—"


def read_document(path: Path, kind: str) -> dict[str, Any]:
    """Return a document's page: `title`, `description`, `html` (not yet safe), `ids`, `words`,
    `distinct` (words to check the index with), `notes`.

    `kind` is `markdown`, `html`, `text` or `pdf`.

    Raises:
        ValueError: it cannot become an article; the message says why.
    """
    limit = MAX_PDF_BYTES if kind == "pdf" else MAX_TEXT_BYTES
    size = path.stat().st_size
    if size == 0:
        raise ValueError("is empty")
    if size > limit:
        raise ValueError(f"is too large: {size >> 20} MiB, the limit is {limit >> 20} MiB")
    notes: list[str] = []
    title, description, markup = _markup(path, kind, notes)
    return _page(title, description, markup, notes)


def _markup(path: Path, kind: str, notes: list[str]) -> tuple[str, str, str]:
    if kind == "pdf":
        title, markup, note = pdf_html(path)
        notes.extend([note] if note else [])
        return title, "", markup
    text, encoding = decode(path.read_bytes(), is_html=kind == "html")
    if encoding == "cp1252":
        notes.append("is not UTF-8; read as Windows-1252")
    if kind == "markdown":
        front, text = split_front_matter(text)
        return front.get("title", ""), front.get("description", ""), markdown_html(text)
    if kind == "text":
        return text_title(text), "", text_html(text)
    return "", "", text


def _page(title: str, description: str, markup: str, notes: list[str]) -> dict[str, Any]:
    from selectolax.lexbor import LexborHTMLParser

    parser = LexborHTMLParser(markup)
    if parser.body is None:
        raise ValueError("has no text in it")
    _refuse_bombs(parser)
    title = title or _head(parser, "title")
    description = description or _head(parser, 'meta[name="description"]', "content")
    taken = take_out(parser)
    notes.extend(
        f"without its {name} ({count})" for name, count in sorted(taken.items()) if name in _MISSED
    )
    body = parser.body
    text = str(body.text(separator=" "))
    words = text.split()
    if not words:
        raise ValueError("has no text in it")
    heading = body.css_first("h1")
    first_heading = " ".join(str(heading.text(separator=" ")).split()) if heading else ""
    ids = give_anchors(parser)
    return {
        "title": _printable(title or first_heading)[:_TITLE_CHARACTERS],
        "description": _printable(description)[:_TITLE_CHARACTERS],
        "html": parser.body.inner_html,
        "has_heading": heading is not None,
        "ids": sorted(ids),
        "words": len(words),
        "distinct": _distinct(words),
        "notes": notes,
    }


def _distinct(words: list[str]) -> list[str]:
    """Return the plain words of a text: letters only, so that any tokenizer keeps them whole."""
    plain = {word.strip(_EDGES).lower() for word in words}
    return sorted(word for word in plain if _WORD.fullmatch(word))[:_DISTINCT_WORDS]


# Elements whose loss a reader would notice.
_MISSED = {"svg", "math", "canvas", "iframe", "object", "embed"}


def _refuse_bombs(parser: Any) -> None:
    """Raise ValueError for a tree that would take for ever to sanitise or to show."""
    for count, (_, depth) in enumerate(elements_with_depth(parser.root)):
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} elements")
        if count > MAX_ELEMENTS:
            raise ValueError(f"has more than {MAX_ELEMENTS:,} elements")


def _head(parser: Any, selector: str, attribute: str = "") -> str:
    node = parser.css_first(selector)
    if node is None:
        return ""
    text = node.attributes.get(attribute) if attribute else node.text()
    return text or ""


def _printable(text: str) -> str:
    """Return one line that does no harm to a terminal: no control or direction characters."""
    shown = "".join(c if c.isprintable() or c in _JOINERS else " " for c in text)
    return " ".join(shown.split())


def _answer(request: dict[str, str]) -> dict[str, Any]:
    path = Path(request["path"])
    try:
        if request["kind"] == "drawing":
            return {"svg": clean_drawing(path.read_bytes()).decode()}
        return read_document(path, request["kind"])
    except (ValueError, OSError, RecursionError) as error:
        raise ChildFailed(str(error) or type(error).__name__) from error


if __name__ == "__main__":
    answer_requests(_answer)
