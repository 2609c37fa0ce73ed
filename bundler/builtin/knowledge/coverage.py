"""The finished ZIM, read back: is every article there, and does a search find it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge.reading import Page
from bundler.errors import StepFailed

MAX_PROBED = 5000
"""Larger corpora are probed at this many articles, evenly spread; Coverage says so."""
TITLES_PROBED = 20
_PROBE_WORDS = 4
_FIRST_RESULTS = 100


@dataclass(frozen=True)
class ReadBack:
    """What was found when the finished ZIM was opened again."""

    indexed: int
    """Articles that are there and, as far as probed, found by their own words."""
    probed: int
    missing: tuple[str, ...]
    """Sources of articles that no search for their own words finds."""
    untitled: tuple[str, ...]
    """Sources of sampled articles whose title does not find them."""


def read_back(
    zim: Path, pages: Sequence[Page], frequency: Counter[str], advance: Callable[[], None]
) -> ReadBack:
    """Open a finished ZIM, check it, read every article and search for each one's rarest words.

    Raises:
        StepFailed: the file does not pass libzim's checks, or an article is not in it.
    """
    from libzim.reader import Archive

    archive = Archive(zim)
    if not archive.check() or not archive.has_fulltext_index or not archive.has_title_index:
        raise StepFailed("the finished ZIM does not pass libzim's own checks", where=zim.name)
    for page in pages:
        if not archive.get_entry_by_path(page.document.path).get_item().size:
            raise StepFailed(f"{page.document.path} came out empty", where=zim.name)
        advance()
    probes = list(evenly(pages, MAX_PROBED))
    missing = tuple(p.document.source for p in probes if not _found(archive, p, frequency))
    titles = evenly(pages, TITLES_PROBED)
    untitled = tuple(p.document.source for p in titles if not _found_by_title(archive, p))
    return ReadBack(len(pages) - len(missing), len(probes), missing, untitled)


def evenly(pages: Sequence[Page], count: int) -> Iterable[Page]:
    """Return at most `count` of `pages`, evenly spread, the same ones every time."""
    if len(pages) <= count:
        return pages
    return [pages[index * len(pages) // count] for index in range(count)]


def _found(archive: Any, page: Page, frequency: Counter[str]) -> bool:
    from libzim.search import Query, Searcher

    rarest = nsmallest(
        _PROBE_WORDS, page.load()["distinct"], key=lambda word: (frequency[word], -len(word), word)
    )
    text = " ".join(rarest) or page.title
    results = Searcher(archive).search(Query().set_query(text))
    if page.document.path in results.getResults(0, _FIRST_RESULTS):
        return True
    count = results.getEstimatedMatches()
    return count > _FIRST_RESULTS and page.document.path in results.getResults(0, count)


def _found_by_title(archive: Any, page: Page) -> bool:
    from libzim.suggestion import SuggestionSearcher

    suggestions = SuggestionSearcher(archive).suggest(page.title)
    found = suggestions.getResults(0, max(_FIRST_RESULTS, suggestions.getEstimatedMatches()))
    return page.document.path in found
