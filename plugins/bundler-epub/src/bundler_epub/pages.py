"""The pages we add: one for each book, one that lists all books, and the way from page to page."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

from bundler_epub.package import Book

_SHOWN = {
    "creators": "By", "publishers": "Published by", "dates": "Date", "languages": "Language",
    "rights": "Rights",
}  # fmt: skip


def link(target: str, base: str, text: str) -> str:
    """Return a link from the document `base` to the document `target`."""
    reference = quote(posixpath.relpath(target, posixpath.dirname(base) or "."), safe="/-._~()")
    return f'<a href="{escape(reference)}">{escape(text)}</a>'


def book_page(book: Book, title: str, page: str, places: Mapping[str, str]) -> str:
    """Return a book's page: cover, metadata, table of contents.

    Args:
        book: the book.
        title: what it is called.
        page: the page's own path.
        places: path in the archive → path of the document, of all that was taken.
    """
    parts = [f"<title>{escape(title)}</title><h1>{escape(title)}</h1>"]
    if book.cover in places:
        source = quote(posixpath.relpath(places[book.cover], posixpath.dirname(page) or "."))
        parts.append(f'<p><img src="{escape(source)}" alt="Cover"></p>')
    for name, word in _SHOWN.items():
        if book.metadata[name]:
            parts.append(f"<p>{word}: {escape('; '.join(book.metadata[name]))}</p>")
    parts += [f"<p>{escape(text)}</p>" for text in book.metadata["descriptions"]]
    parts.append("<h2>Chapters</h2>" + _contents(book, page, places))
    return "".join(parts)


def _contents(book: Book, page: str, places: Mapping[str, str]) -> str:
    titles = book.chapter_titles()
    lines = []
    for number, chapter in enumerate(book.chapters, 1):
        if chapter in places:
            text = titles.get(chapter) or f"Part {number}"
            below = _below(book, chapter, page, places)
            lines.append(f"<li>{link(places[chapter], page, text)}{below}</li>")
    return f"<ol>{''.join(lines)}</ol>"


def _below(book: Book, chapter: str, page: str, places: Mapping[str, str]) -> str:
    """Return the sections of a chapter that the table of contents names, after its first line."""
    entries = [entry for entry in book.contents if entry.path == chapter][1:]
    links = [
        f"<li>{_section(places[chapter], page, entry.fragment, entry.title)}</li>"
        for entry in entries
        if entry.fragment
    ]
    return f"<ul>{''.join(links)}</ul>" if links else ""


def _section(target: str, page: str, fragment: str, title: str) -> str:
    reference = quote(posixpath.relpath(target, posixpath.dirname(page) or "."), safe="/-._~()")
    return f'<a href="{escape(reference)}#{quote(fragment)}">{escape(title)}</a>'


def chapter_footer(page: str, own: str, before: str, after: str) -> str:
    """Return the links at the end of a chapter: the one before, the book, the next."""
    links = [
        link(before, own, "Previous") if before else "",
        link(page, own, "The book"),
        link(after, own, "Next") if after else "",
    ]
    return f"<p>{' · '.join(one for one in links if one)}</p>"


def library_page(title: str, books: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """Return the page that lists all books: (path of its page, title, authors)."""
    lines = [
        f"<li>{link(page, 'index.html', name)}{': ' if authors else ''}{escape('; '.join(authors))}</li>"
        for page, name, authors in sorted(books, key=lambda book: (book[1].casefold(), book[0]))
    ]
    head = f"<title>{escape(title)}</title><h1>{escape(title)}</h1>"
    return f"{head}<p>{len(lines)} books</p><ul>{''.join(lines)}</ul>"
