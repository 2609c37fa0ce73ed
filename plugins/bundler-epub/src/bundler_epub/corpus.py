"""All books of a corpus → documents → bundler's own ZIM writer."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge import build_zim, zim_tool
from bundler.errors import Problem, StepFailed
from bundler.hookspecs import Task
from bundler.proof import Coverage, Skipped
from bundler.value import check_relative_path
from bundler_epub.archive import Archive, BookRefused, open_archive
from bundler_epub.markup import BadMarkup, chapter_html, find_all, parse_xml, text_of
from bundler_epub.package import Book, read_book
from bundler_epub.pages import book_page, chapter_footer, library_page

VERSION = "1"
"""Raised whenever the same books would give another ZIM."""
_LIBRARY = "index.html"
_LISTED = 100
_HTML = (".html", ".htm", ".xhtml")


class EpubCorpus:
    """Makes `corpus.zim` of EPUB books; see the package's docstring."""

    name = "epub"

    def tool(self) -> str:
        """Return the versions of everything that shapes the bytes of the ZIM."""
        return f"epub {VERSION}; {zim_tool()}"

    def run(self, task: Task) -> Mapping[str, Any]:
        """Make `corpus.zim`; its facts are the coverage, with every book that was left out.

        Raises:
            StepFailed: no book could be read.
            BundlerError: what `build_zim` raises.
        """
        title = str(task.parameters.get("title") or task.parameters["name"])
        with task.world.store.scratch() as folder:
            documents = _Documents(folder)
            books = [
                book
                for name, path in sorted(task.inputs.items())
                if (book := _taken(documents, name, path)) is not None
            ]
            if not books:
                problems = [Problem(one.reason, where=one.path) for one in documents.skipped[:20]]
                hint = "a corpus of kind 'epub' needs at least one EPUB without DRM"
                raise StepFailed([Problem("no book could be read", hint=hint), *problems])
            documents.add(_LIBRARY, library_page(title, books).encode(), title)
            coverage = build_zim(documents.files, task, titles=documents.titles)
        return _with_books(coverage, documents).model_dump(mode="json")


@dataclass
class _Documents:
    """What the ZIM is made of; the files lie in `folder` under numbers."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, data: bytes, title: str = "") -> None:
        """Add one document. Raises BookRefused for a name that no bundle can hold."""
        try:
            check_relative_path(name)
        except ValueError as error:
            raise BookRefused(f"holds an unsafe name: {error}") from error
        path = self.folder / str(len(self.files))
        path.write_bytes(data)
        self.files[name] = path
        if title:
            self.titles[name] = title

    def take(self, other: _Documents) -> None:
        """Add all documents of another collection, whose names are new."""
        self.files.update(other.files)
        self.titles.update(other.titles)
        self.notes.extend(other.notes)


_Listed = tuple[str, str, tuple[str, ...]]
"""A book in the list of books: its page, its title, its authors."""


def _taken(documents: _Documents, name: str, path: Path) -> _Listed | None:
    """Add a book's documents; return how it is listed, or None when it was refused.

    All of a book or nothing of it: half a manual is worse than none.
    """
    if not name.lower().endswith(".epub"):
        documents.skipped.append(Skipped(path=name, reason="is no EPUB: its name ends otherwise"))
        return None
    own = _Documents(documents.folder / f"book-{len(documents.files)}-{len(documents.skipped)}")
    own.folder.mkdir()
    try:
        with open_archive(path) as archive:
            folder = _free_folder(documents, name[: -len(".epub")])
            listed = _add_book(own, name, folder, archive)
    except BookRefused as refusal:
        documents.skipped.append(Skipped(path=name, reason=str(refusal)))
        return None
    documents.take(own)
    return listed


def _add_book(own: _Documents, name: str, folder: str, archive: Archive) -> _Listed:
    book = read_book(archive)
    page = f"{folder}.html"
    title = book.title or posixpath.basename(folder)
    chapters, empty = _chapters(archive, book)
    places = _places(folder, chapters, book.pictures)
    titles = book.chapter_titles()
    order = list(chapters)
    for number, path in enumerate(order):
        previous = places[order[number - 1]] if number else ""
        following = places[order[number + 1]] if number + 1 < len(order) else ""
        footer = chapter_footer(page, places[path], previous, following)
        text = titles.get(path) or f"{title}, part {number + 1}"
        own.add(places[path], (chapters[path] + footer).encode(), text)
    for path in book.pictures:
        own.add(places[path], archive.read(path))
    own.add(page, book_page(book, title, page, places).encode(), title)
    own.notes.extend(_notes(name, book, empty))
    return page, title, book.metadata["creators"]


def _free_folder(documents: _Documents, wish: str) -> str:
    """Return a folder for a book that no other one has; `index` is the list of books.

    No part of it begins or ends with a dot or is otherwise taken for a file of the system.
    """
    parts = [part.strip(" .~_") or "book" for part in wish.split("/")]
    wish = folder = "/".join(parts)
    number = 1
    while any(
        name == f"{folder}.html" or name.startswith(f"{folder}/")
        for name in (_LIBRARY, *documents.files)
    ):
        number += 1
        folder = f"{wish}-{number}"
    return folder


def _chapters(archive: Archive, book: Book) -> tuple[dict[str, str], list[str]]:
    """Return path → HTML of the chapters with text, in order, and the paths of those without."""
    chapters: dict[str, str] = {}
    empty = []
    for path in book.chapters:
        data = archive.read(path)
        try:
            root = parse_xml(data)
        except BadMarkup as error:
            raise BookRefused(f"its chapter {path} {error}") from error
        if any(text_of(body) for body in find_all(root, "body")):
            chapters[path] = chapter_html(root, "")
        else:
            empty.append(path)
    if not chapters:
        raise BookRefused("has no text in it: a book of pictures, or a scan")
    return chapters, empty


def _places(folder: str, chapters: Mapping[str, str], pictures: Sequence[str]) -> dict[str, str]:
    """Return path in the archive → path of the document: the same tree without its common folders."""
    paths = [*chapters, *pictures]
    common = posixpath.commonpath([f"/{posixpath.dirname(path)}" for path in paths])[1:]
    cut = f"{common}/" if common else ""
    places = {}
    for path in paths:
        ending = "" if path not in chapters or path.lower().endswith(_HTML) else ".html"
        places[path] = f"{folder}/{path.removeprefix(cut)}{ending}"
    return places


def _notes(name: str, book: Book, empty: list[str]) -> Iterator[str]:
    if empty:
        yield f"{name}: {len(empty)} pages without text are left out (covers)"
    if book.others:
        yield f"{name}: {book.others} files that are no reading matter are left out"


def _with_books(coverage: Coverage, documents: _Documents) -> Coverage:
    """Return the coverage with the books that were refused in it."""
    skipped = sorted((*coverage.skipped, *documents.skipped), key=lambda one: one.path)
    return coverage.model_copy(
        update={
            "articles_found": coverage.articles_found + len(documents.skipped),
            "skipped": tuple(skipped[:_LISTED]),
            "skipped_total": coverage.skipped_total + len(documents.skipped),
            "notes": (*coverage.notes, *documents.notes[:_LISTED]),
        }
    )
