"""The corpora of a bundle: opened, searched, read. The one home of libzim.

Nothing here dies with a corpus: a file that is missing or damaged leaves a corpus that says why it
is unavailable, and the others go on.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from libzim.reader import Archive
from libzim.search import Query, Searcher
from libzim.suggestion import SuggestionSearcher

from bundler.station.configuration import CorpusEntry
from bundler.station.problems import CorpusUnreadable

MOST_REDIRECTS = 8
"""Followed before a chain counts as a loop."""
LARGEST_PATH_BYTES = 2048
"""ZIM entry paths beyond this do not occur; a request for one is not looked up."""
CHECKED_AT_START_BYTES = 256 * 2**20
"""Archives up to this size are checksummed in the background (about a second); `bundler verify`
is for the large ones."""
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(; ?charset=[\w-]+)?", re.ASCII)


@dataclass(frozen=True)
class Content:
    """One entry as it lies in a corpus, redirects followed."""

    path: str
    title: str
    media_type: str
    data: memoryview


@dataclass(frozen=True)
class Hit:
    """An article that a search found."""

    corpus: str
    path: str
    title: str


@dataclass
class Corpus:
    """One corpus; `archive` is None, with a reason, when it cannot be used."""

    entry: CorpusEntry
    archive: Archive | None = None
    reason: str = ""
    """Why the corpus is unavailable, or what is wrong with it though it can be read."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def available(self) -> bool:
        return self.archive is not None

    @property
    def has_full_text(self) -> bool:
        return self.archive is not None and bool(self.archive.has_fulltext_index)

    @property
    def articles(self) -> int:
        return self.entry.articles or (self.archive.article_count if self.archive else 0)

    @property
    def main_path(self) -> str:
        """Path of the front page, or nothing."""
        if self.archive is None or not self.archive.has_main_entry:
            return ""
        with self._lock:
            try:
                return str(self.archive.main_entry.get_item().path)
            except RuntimeError:
                return ""

    def search(self, query: str, start: int, count: int) -> tuple[int, list[str]]:
        """Return the estimated number of articles with every word of `query`, and some paths."""
        archive = self._open()
        if not archive.has_fulltext_index:
            return 0, []
        # libzim's searchers are not made for several threads at once.
        with self._lock, _reading(self.entry):
            found = Searcher(archive).search(Query().set_query(encodable(query[:500])))
            estimated = found.getEstimatedMatches()
            return estimated, list(found.getResults(start, count)) if estimated else []

    def suggest(self, text: str, count: int) -> list[str]:
        """Return paths of articles whose title starts with, or has, the words of `text`."""
        archive = self._open()
        with self._lock, _reading(self.entry):
            found = SuggestionSearcher(archive).suggest(encodable(text[:200]))
            return list(found.getResults(0, count))

    def title(self, path: str) -> str:
        """Return an article's title; its path when it has none or is not there."""
        with self._lock, _reading(self.entry):
            archive = self._open()
            if not archive.has_entry_by_path(path):
                return path
            return _one_line(archive.get_entry_by_path(path).title) or path

    def read(self, path: str) -> Content | None:
        """Return an entry, following redirects; None when there is none.

        Raises CorpusUnreadable when its bytes are damaged or the drive is gone.
        """
        archive = self._open()
        if not is_entry_path(path):
            return None
        with self._lock, _reading(self.entry):
            if not archive.has_entry_by_path(path):
                return None
            entry = archive.get_entry_by_path(path)
            for _ in range(MOST_REDIRECTS):
                if not entry.is_redirect:
                    break
                entry = entry.get_redirect_entry()
            if entry.is_redirect:
                return None
            item = entry.get_item()
            return Content(
                str(item.path), _one_line(item.title), _media_type(item.mimetype), item.content
            )

    def some_titles(self, count: int) -> list[Hit]:
        """Return up to `count` articles picked at random, as examples of what is in here."""
        archive = self._open()
        hits: dict[str, Hit] = {}
        with self._lock, _reading(self.entry):
            for _ in range(count * 4 if archive.article_count else 0):
                entry = archive.get_random_entry()
                if entry.is_redirect or not entry.get_item().mimetype.startswith("text/html"):
                    continue
                if entry.path != self.main_path:
                    hits[entry.path] = Hit(self.entry.name, entry.path, _one_line(entry.title))
                if len(hits) >= count:
                    break
        return list(hits.values())

    def check(self) -> None:
        """Checksum a small archive; what is wrong goes into `reason`, the corpus stays readable."""
        if self.archive is None or self.archive.filesize > CHECKED_AT_START_BYTES:
            return
        # A second handle: a checksum must not make readers wait.
        if not Archive(self.archive.filename).check():
            self.reason = "its checksum is wrong, so some articles may be damaged"

    def _open(self) -> Archive:
        if self.archive is None:
            raise CorpusUnreadable(f"{self.entry.title}: {self.reason}")
        return self.archive


class _reading:  # noqa: N801 - used as a statement, like contextlib's own
    """Turns libzim's errors, while a corpus is read, into one that names the corpus."""

    def __init__(self, entry: CorpusEntry) -> None:
        self.entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (RuntimeError, OSError, KeyError, UnicodeDecodeError)):
            raise CorpusUnreadable(
                f"{self.entry.title}: cannot be read ({error}). The file is damaged, or the drive "
                "was taken out"
            ) from error


def open_corpus(root: Path, entry: CorpusEntry) -> Corpus:
    """Open one corpus; one that cannot be opened comes back with the reason."""
    path = root / entry.file
    if not path.is_file():
        return Corpus(entry, reason=f"{entry.file} is missing from the bundle")
    try:
        return Corpus(entry, archive=Archive(path))
    except (RuntimeError, OSError) as error:
        return Corpus(entry, reason=f"{entry.file} cannot be opened: {error}")


class Library:
    """All corpora of a bundle."""

    def __init__(self, corpora: Iterable[Corpus]) -> None:
        self.corpora = {corpus.entry.name: corpus for corpus in corpora}

    @property
    def available(self) -> list[Corpus]:
        return [corpus for corpus in self.corpora.values() if corpus.available]

    @property
    def articles(self) -> int:
        return sum(corpus.articles for corpus in self.available)

    def chosen(self, name: str) -> list[Corpus]:
        """Return the corpora meant by `name`: one, or all that are available when it is empty."""
        if not name:
            return self.available
        corpus = self.corpora.get(name)
        return [corpus] if corpus is not None and corpus.available else []

    def suggest(self, text: str, count: int, corpus: str = "") -> list[Hit]:
        """Return articles by title, the corpora taking turns."""
        lists = []
        for one in self.chosen(corpus):
            paths = one.suggest(text, count)
            lists.append([Hit(one.entry.name, path, one.title(path)) for path in paths])
        return in_turns(lists)[:count]


def in_turns(lists: Iterable[list[Hit]]) -> list[Hit]:
    """Return the items of several ranked lists, first ranks first, without doubles."""
    merged = [hit for rank in zip_longest(*lists) for hit in rank if hit is not None]
    return list(dict.fromkeys(merged))


def is_entry_path(path: str) -> bool:
    """Whether a path could be one of an entry: not empty, not huge, encodable, without NUL."""
    if not path or "\0" in path or path != encodable(path):
        return False
    return len(path.encode()) <= LARGEST_PATH_BYTES


def encodable(text: str) -> str:
    """Return `text` without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _media_type(text: str) -> str:
    """Return a media type that can be a header; a corpus can hold any string as one."""
    return text if _MEDIA_TYPE.fullmatch(text) else "application/octet-stream"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
