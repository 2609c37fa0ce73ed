"""The search page: articles with all the words, over one corpus or all, with snippets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundler.station.answering import snippet
from bundler.station.keywords import keywords, stem, stems_of
from bundler.station.library import Corpus, Hit, Library, in_turns
from bundler.station.markup import highlight, read_address
from bundler.station.passages import Block, Passage, passages_of, read_blocks
from bundler.station.problems import CorpusUnreadable
from bundler.station.retrieval import rank

RESULTS_PER_PAGE = 10


@dataclass(frozen=True)
class Result:
    """One article found, as it is listed."""

    title: str
    title_html: str
    corpus_title: str
    section: str
    snippet_html: str
    href: str


@dataclass(frozen=True)
class Results:
    """One page of results."""

    results: tuple[Result, ...]
    estimated: int
    page: int
    more: bool
    searched_for: str
    """The words that were really searched."""
    relaxed: bool
    """Whether words were left out because no article has all of them."""
    problems: tuple[str, ...] = ()


def search(library: Library, query: str, corpus: str, page: int) -> Results:
    """Return one page of articles for a query.

    All words first; when nothing has them all, only the telling ones; then any of these.
    """
    problems: list[str] = []
    telling = keywords(query)
    for words in dict.fromkeys((query, " ".join(telling))):
        estimated, hits = _with_all(library.chosen(corpus), words, page, problems)
        if estimated:
            return _page(library, hits, words, query, estimated, page, problems, relaxed=False)
    each = [_with_all(library.chosen(corpus), word, page, problems) for word in telling]
    hits = in_turns([found for _, found in each])
    estimated = max((count for count, _ in each), default=0)
    words = " ".join(telling)
    return _page(library, hits, words, query, estimated, page, problems, relaxed=True)


def _with_all(
    corpora: Sequence[Corpus], words: str, page: int, problems: list[str]
) -> tuple[int, list[Hit]]:
    """Return the estimated number and the hits up to the end of `page` plus one."""
    wanted, total, lists = page * RESULTS_PER_PAGE + 1, 0, []
    for one in corpora:
        try:
            estimated, paths = one.search(words, 0, wanted)
            if not one.entry.full_text or (not paths and not one.has_full_text):
                paths = one.suggest(words, wanted)
                estimated = len(paths)
            lists.append([Hit(one.entry.name, path, one.title(path)) for path in paths])
            total += estimated
        except CorpusUnreadable as error:
            if str(error) not in problems:
                problems.append(str(error))
    return total, _titles_first(in_turns(lists), words)


def _titles_first(hits: list[Hit], words: str) -> list[Hit]:
    """Put articles whose title holds every word in front, else keep the order."""
    wanted = set(stems_of(words))
    return sorted(hits, key=lambda hit: not wanted <= set(stems_of(hit.title)))


def _page(
    library: Library, hits: list[Hit], words: str, query: str, estimated: int, page: int,
    problems: list[str], *, relaxed: bool,
) -> Results:  # fmt: skip
    start = (page - 1) * RESULTS_PER_PAGE
    shown = hits[start : start + RESULTS_PER_PAGE]
    return Results(
        results=tuple(_result(library.corpora[hit.corpus], hit, query) for hit in shown),
        estimated=max(estimated, start + len(shown)),
        page=page,
        more=len(hits) > start + RESULTS_PER_PAGE,
        searched_for=words,
        relaxed=relaxed and bool(shown),
        problems=tuple(problems),
    )


def _result(corpus: Corpus, hit: Hit, query: str) -> Result:
    passage = _best_passage(corpus, hit, query)
    wanted = {stem(word) for word in keywords(query)}
    place = (passage.first_block, passage.last_block) if passage else ()
    return Result(
        title=hit.title,
        title_html=highlight(hit.title, lambda word: stem(word.casefold()) in wanted),
        corpus_title=corpus.entry.title,
        section=passage.section if passage else "",
        snippet_html=snippet(passage.text, query, 220) if passage else "",
        href=read_address(hit.corpus, hit.path, *place),
    )


def _best_passage(corpus: Corpus, hit: Hit, query: str) -> Passage | None:
    try:
        content = corpus.read(hit.path)
    except CorpusUnreadable:
        return None  # Opening the article says what is wrong with it.
    if content is None or not content.media_type.startswith("text/html"):
        return None
    blocks: list[Block] = read_blocks(bytes(content.data))
    passages = passages_of(hit.corpus, content.path, hit.title, blocks)
    ranked = rank(passages, keywords(query))
    return ranked[0] if ranked else next(iter(passages), None)
