"""The corpus kind `folder`: Markdown, HTML, text and PDF documents become a searchable ZIM."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundler
from bundler.builtin.knowledge.cleaning import clean_article
from bundler.builtin.knowledge.coverage import ReadBack, read_back
from bundler.builtin.knowledge.illustration import illustration_png
from bundler.builtin.knowledge.library import (
    CONTENTS_PATH,
    STYLE_PATH,
    Links,
    Shelf,
    main_document,
    sort_files,
)
from bundler.builtin.knowledge.limited_child import ChildFailed, LimitedChild
from bundler.builtin.knowledge.pages import STYLE, article_page, contents_body
from bundler.builtin.knowledge.reading import Page, Reading, read_documents, read_media
from bundler.errors import Problem, StepFailed, UnsafeInput
from bundler.fingerprint import code_digest
from bundler.hookspecs import Task
from bundler.proof import Coverage, Skipped
from bundler.store import full_disk_is_an_error
from bundler.value import Value, check_relative_path

_LISTED = 100
_WRITER_MEMORY_BYTES = 16 * 2**30
_ADD_SECONDS = 3600.0
_FINISH_SECONDS = 24 * 3600.0
_BATCH_CHARACTERS = 4 * 2**20
_NEARLY_FULL_BYTES = 4 * 2**20
"""Xapian writes whole blocks: with less than this left, a failed write has met the end."""


class FolderOptions(Value):
    """Parameters of the step: what a reader shows about the corpus, and its date."""

    name: str
    date: str
    """YYYY-MM-DD, from the lock: the file's bytes depend on no clock."""
    title: str = ""
    language: str = "eng"
    creator: str = ""
    description: str = ""
    licence: str = ""


class FolderCorpus:
    """Makes `corpus.zim` of a folder of documents; see `bundler.builtin.knowledge`."""

    name = "folder"

    def tool(self) -> str:
        """Return the versions of everything that shapes the bytes of the ZIM."""
        return zim_tool()

    def run(self, task: Task) -> Mapping[str, Any]:
        """Make `corpus.zim` from the inputs; raises what `build_zim` raises."""
        return build_zim(task.inputs, task).model_dump(mode="json")


def zim_tool() -> str:
    """Return the versions of everything that shapes the bytes `build_zim` writes.

    Part of the `tool()` of every corpus kind that ends in `build_zim`.
    """
    from importlib.metadata import version

    packages = ("libzim", "markdown-it-py", "nh3", "pypdfium2", "selectolax")
    own = f"bundler {code_digest(Path(__file__).parent)}"
    parts = [own, *(f"{name} {version(name)}" for name in packages)]
    return "; ".join(parts)


def build_zim(
    documents: Mapping[str, Path], task: Task, *, titles: Mapping[str, str] | None = None
) -> Coverage:
    """Leave `corpus.zim` of `documents` in the task's output folder; return what became of them.

    The same for every corpus kind: reads in a child process with limits, sanitises, rewrites
    links, indexes, writes the same bytes every time, reads the file back.

    Args:
        documents: relative path → file: Markdown, HTML, text and PDF become articles; images,
            audio and video are kept. `a/b.md` becomes the article `a/b.html`; links among them
            are by their paths here. Nothing is written to the files.
        task: the step of the corpus kind: its parameters (see `FolderOptions`), output,
            progress and world.
        titles: path of a document → its title, where that is known better than it says itself.

    Raises:
        DoesNotFit: the disk is full.
        StepFailed: no document could be read, or the finished file fails its checks.
        UnsafeInput: a path that must not be used.
    """
    options = FolderOptions.model_validate(dict(task.parameters))
    _check_names(documents)
    shelf = sort_files(documents)
    steps = _Advance(task.progress, len(shelf.documents))
    store = task.world.store
    with full_disk_is_an_error(store.root, "the pages of a corpus"), store.scratch() as spool:
        reading = read_documents(shelf.documents, documents, spool, steps.part(0.6))
        reading.pages[:] = [_retitled(page, titles or {}) for page in reading.pages]
        read_media(shelf.media, documents, spool, reading)
        _refuse_nothing(reading)
        dead = _write(task.output / "corpus.zim", options, reading, steps.part(0.3))
        found = read_back(
            task.output / "corpus.zim", reading.pages, reading.frequency, steps.part(0.1)
        )
    return _coverage(options, shelf, reading, found, dead)


def _retitled(page: Page, titles: Mapping[str, str]) -> Page:
    return replace(page, title=titles.get(page.document.source, page.title))


class _Advance:
    """Progress over several passes of the same articles, in shares of the whole."""

    def __init__(self, progress: Callable[..., None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0.0
        progress(0, total, "articles")

    def part(self, share: float) -> Callable[[], None]:
        """Return what is to be called once for each article of one pass."""

        def advance() -> None:
            self._done += share
            self._progress(min(int(self._done + 1e-6), self._total), self._total, "articles")

        return advance


def _check_names(inputs: Mapping[str, Path]) -> None:
    problems = []
    for name in inputs:
        try:
            check_relative_path(name)
        except ValueError as error:
            problems.append(Problem(str(error), where=repr(name), hint="rename the file"))
    if problems:
        raise UnsafeInput(problems)


def _refuse_nothing(reading: Reading) -> None:
    if not reading.pages:
        problems = [Problem(skipped.reason, where=skipped.path) for skipped in reading.skipped[:20]]
        hint = "a folder needs at least one Markdown, HTML, text or PDF document"
        raise StepFailed([Problem("no document could be read", hint=hint), *problems])


def _write(
    path: Path, options: FolderOptions, reading: Reading, advance: Callable[[], None]
) -> list[tuple[str, str]]:
    """Write the ZIM and return its dead links. Raises StepFailed with the writer's own words."""
    main = main_document(page.document for page in reading.pages)
    links = Links(
        {page.document.source: page.document.path for page in reading.pages},
        frozenset(reading.media),
        {page.document.path: page.ids for page in reading.pages},
    )
    begin = {
        "begin": str(path),
        "language": options.language,
        "main": main.path if main else CONTENTS_PATH,
        "metadata": _metadata(options, reading),
        "illustration": illustration_png(options.name).hex(),
    }
    entries = _entries(options, reading, links, advance)
    with full_disk_is_an_error(path.parent, path.name):
        _write_in_a_child(path, begin, _batches(entries))
    return links.dead


def _write_in_a_child(
    path: Path, begin: dict[str, Any], batches: Iterator[list[dict[str, Any]]]
) -> None:
    with LimitedChild(
        "bundler.builtin.knowledge.writer", memory_bytes=_WRITER_MEMORY_BYTES
    ) as child:
        try:
            child.ask(begin, seconds=_ADD_SECONDS)
            for batch in batches:
                child.ask({"add": batch}, seconds=_ADD_SECONDS)
            child.ask({"finish": True}, seconds=_FINISH_SECONDS)
        except ChildFailed as failure:
            _raise_if_full(path.parent, failure)
            message = f"the ZIM could not be written: {failure}"
            raise StepFailed(message, where=path.name) from failure


def _raise_if_full(folder: Path, failure: ChildFailed) -> None:
    """Raise the OSError that made the writer fail; libzim and Xapian tell it in words or not at all."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(number) in str(failure):
            raise OSError(number, str(failure)) from failure
    if shutil.disk_usage(folder).free < _NEARLY_FULL_BYTES:
        raise OSError(errno.ENOSPC, str(failure)) from failure


def _metadata(options: FolderOptions, reading: Reading) -> dict[str, str]:
    types = {mime_type.partition("/")[0] for mime_type, _ in reading.media.values()}
    tags = (
        f"_ftindex:yes;_pictures:{_yes('image' in types)};_videos:{_yes('video' in types)};"
        "_details:yes"
    )
    values = {
        "Title": options.title or options.name,
        "Description": options.description or f"{len(reading.pages)} articles",
        "Language": options.language,
        "Creator": options.creator or "unknown",
        "Publisher": "bundler",
        "Date": options.date,
        "Name": options.name,
        "Tags": tags,
        "License": options.licence,
        "Scraper": f"bundler {bundler.__version__}",
    }
    return {name: value for name, value in values.items() if value}


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _entries(
    options: FolderOptions, reading: Reading, links: Links, advance: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Give all entries of the ZIM in a fixed order: ours, articles by path, media by path."""
    contents = contents_body(
        options.title or options.name,
        [(page.document.path, page.title) for page in reading.pages],
    )
    yield _aside(STYLE_PATH, "", "text/css", STYLE)
    yield _aside(
        CONTENTS_PATH,
        "Contents",
        "text/html",
        article_page(
            path=CONTENTS_PATH, title="Contents", description="", body=contents,
            has_heading=True, language=options.language,
        ),
    )  # fmt: skip
    for page in sorted(reading.pages, key=lambda page: page.document.path):
        yield {
            "path": page.document.path,
            "title": page.title,
            "mime_type": "text/html",
            "front": True,
            "text": _article(options, page, links),
        }
        advance()
    for path, (mime_type, file) in sorted(reading.media.items()):
        yield {
            "path": path, "title": "", "mime_type": mime_type, "front": False, "file": str(file),
        }  # fmt: skip


def _aside(path: str, title: str, mime_type: str, text: str) -> dict[str, Any]:
    return {"path": path, "title": title, "mime_type": mime_type, "front": False, "text": text}


def _article(options: FolderOptions, page: Page, links: Links) -> str:
    loaded = page.load()
    document = page.document

    def rewrite(reference: str, is_resource: bool) -> str | None:
        return links.rewrite(document, reference, is_resource=is_resource)

    return article_page(
        path=document.path,
        title=page.title,
        description=page.description,
        body=clean_article(loaded["html"], rewrite),
        has_heading=loaded["has_heading"],
        language=options.language,
        original=document.source if document.source in links.media else "",
    )


def _batches(entries: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.get("text", "")) + 200
        if size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _coverage(
    options: FolderOptions,
    shelf: Shelf,
    reading: Reading,
    found: ReadBack,
    dead: list[tuple[str, str]],
) -> Coverage:
    skipped = [
        *reading.skipped,
        *(Skipped(path=path, reason="is of a type that is not read") for path in shelf.unsupported),
        *(Skipped(path=path, reason="is written but no search finds it") for path in found.missing),
    ]
    skipped.sort(key=lambda one: one.path)
    return Coverage(
        title=options.title or options.name,
        language=options.language,
        articles_found=len(shelf.documents) + len(shelf.unsupported),
        articles_indexed=found.indexed,
        media=len(reading.media),
        words_indexed=sum(page.words for page in reading.pages),
        skipped=tuple(skipped[:_LISTED]),
        skipped_total=len(skipped),
        notes=tuple(_notes(shelf, reading, found, dead)),
    )


def _notes(
    shelf: Shelf, reading: Reading, found: ReadBack, dead: list[tuple[str, str]]
) -> Iterator[str]:
    if found.probed < len(reading.pages):
        yield f"{found.probed:,} of {len(reading.pages):,} articles were searched for to check the index"
    if found.untitled:
        yield f"titles that do not find their article: {', '.join(found.untitled)}"
    if shelf.hidden:
        yield f"{len(shelf.hidden)} hidden files were left out"
    if dead:
        listed = ", ".join(f"{source} → {reference!a}" for source, reference in dead[:20])
        yield f"{len(dead)} links lead nowhere and are plain text now: {listed}"
    yield from reading.notes[:_LISTED]
