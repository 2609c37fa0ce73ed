"""From a question to the few passages that may answer it.

The index only knows articles that have *all* words of a query. So several queries are made of the
question's keywords, articles vote-counted, the best ones read, and their passages ranked by the
words they share with the question (Okapi BM25, k1 1.2 and b 0.75 as in Robertson & Zaragoza 2009).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from bundler.station.keywords import keywords, stem, stems_of
from bundler.station.library import Corpus, Library
from bundler.station.passages import Passage, passages_of, read_blocks
from bundler.station.problems import CorpusUnreadable

MOST_ARTICLES = 12
"""Articles read for one question, over all corpora: bounds the time of an answer's search."""
ARTICLES_PER_QUERY = 8
ARTICLES_PER_TITLE = 3
WORDS_IN_PAIRS = 4
"""Pairs are made of this many of the rarest words: 6 queries."""
SMALLEST_SHARE = 0.33
"""A passage must carry this share of the question's weight in rare words: one of three words that
are equally rare, never one common word alone."""
ENOUGH_RARE = 0.5
"""… but one word half as rare as the question's rarest always suffices: people in need write long
questions, and of "my friend has a deep cut, it is bleeding a lot" one word may be what counts."""
WEAKEST_SCORE = 0.2
"""Of the best passage's score; weaker ones only lead a small model astray."""
MOST_FROM_ONE_ARTICLE = 2
SAME_TEXT_OVERLAP = 0.8
"""Passages sharing this share of their words (Jaccard) say the same; the better one is kept."""
_K1, _B = 1.2, 0.75


def find_passages(library: Library, question: str, count: int, corpus: str = "") -> list[Passage]:
    """Return up to `count` passages for a question, the best first; none when nothing fits."""
    words = keywords(question)
    corpora = library.chosen(corpus)
    surveys = [survey for one in corpora if (survey := _survey(one, words)) is not None]
    rarity = _rarity(surveys, words)
    candidates: list[Passage] = []
    for one, path, vote in _without_front_pages(_articles(surveys, rarity)):
        candidates += [replace(passage, score=vote) for passage in _read(one, path)]
    ranked = rank(candidates, words, rarity, SMALLEST_SHARE)
    return choose([one for one in ranked if one.score >= WEAKEST_SCORE * ranked[0].score], count)


@dataclass(frozen=True)
class _Survey:
    """What one corpus has for each word alone."""

    corpus: Corpus
    articles: Mapping[str, int]
    """Word → estimated number of articles with it."""
    found: Mapping[str, Sequence[str]]
    titled: Mapping[str, Sequence[str]]


def _survey(corpus: Corpus, words: Sequence[str]) -> _Survey | None:
    """Look every word up; None for a corpus that cannot be read (the page says so elsewhere)."""
    try:
        hits = {word: corpus.search(word, 0, ARTICLES_PER_QUERY) for word in words}
        titled = {word: corpus.suggest(word, ARTICLES_PER_TITLE) for word in words}
    except CorpusUnreadable:
        return None
    articles = {word: max(hits[word][0], len(titled[word])) for word in words}
    return _Survey(corpus, articles, {word: hits[word][1] for word in words}, titled)


def _rarity(surveys: Sequence[_Survey], words: Sequence[str]) -> dict[str, float]:
    """Return each word's weight (inverse document frequency over all corpora together).

    A word that no article has weighs as much as the rarest one that some have: it is missed, but
    must not outweigh all that was found.
    """
    total = sum(survey.corpus.articles for survey in surveys) + 1
    counts = {word: sum(survey.articles[word] for survey in surveys) for word in words}
    present = {word: math.log(1 + total / n) for word, n in counts.items() if n}
    return {word: present.get(word, max(present.values(), default=0.0)) for word in words}


def _articles(
    surveys: Sequence[_Survey], rarity: Mapping[str, float]
) -> list[tuple[Corpus, str, float]]:
    """Return the articles worth reading, with votes from 0 to 1, over all corpora."""
    votes = [
        (vote, survey.corpus, path) for survey in surveys for path, vote in _vote(survey, rarity)
    ]
    votes.sort(key=lambda item: (-item[0], item[1].entry.name, item[2]))
    best = votes[0][0] if votes else 1.0
    return [(corpus, path, vote / best) for vote, corpus, path in votes[:MOST_ARTICLES]]


def _without_front_pages(
    articles: Sequence[tuple[Corpus, str, float]],
) -> Sequence[tuple[Corpus, str, float]]:
    """Leave front pages out: a list of all articles has all words and answers nothing.

    Unless they are all there is: a corpus may be one document.
    """
    rest = [item for item in articles if item[1] != item[0].main_path]
    return rest or articles


def _vote(survey: _Survey, rarity: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return one corpus's articles by how many and how rare words of the question they have."""
    votes: defaultdict[str, float] = defaultdict(float)
    present = [word for word, articles in survey.articles.items() if articles]
    for word in present:
        _count(votes, survey.found[word], rarity[word])
        _count(votes, survey.titled[word], rarity[word])
    rarest = sorted(present, key=lambda word: (-rarity[word], word))[:WORDS_IN_PAIRS]
    queries: list[tuple[str, ...]] = list(combinations(rarest, 2))
    if len(present) > 2:
        queries.append(tuple(present))
    for query in queries:
        try:
            _, paths = survey.corpus.search(" ".join(query), 0, ARTICLES_PER_QUERY)
        except CorpusUnreadable:
            break
        _count(votes, paths, sum(rarity[word] for word in query))
    return sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:MOST_ARTICLES]


def _count(votes: defaultdict[str, float], paths: Iterable[str], weight: float) -> None:
    for place, path in enumerate(paths):
        votes[path] += weight / (1 + 0.15 * place)


def _read(corpus: Corpus, path: str) -> list[Passage]:
    try:
        content = corpus.read(path)
    except CorpusUnreadable:
        return []  # One damaged article must not cost the answer; opening it says what is wrong.
    if content is None or not content.media_type.startswith("text/html"):
        return []
    blocks = read_blocks(bytes(content.data))
    title = content.title or next((b.text for b in blocks if b.heading_level), content.path)
    return passages_of(corpus.entry.name, content.path, title, blocks)


def rank(
    candidates: Sequence[Passage],
    words: Sequence[str],
    rarity: Mapping[str, float] | None = None,
    smallest_share: float = 0.0,
) -> list[Passage]:
    """Return the passages that have enough of the question's words, the best first.

    `rarity` gives the words' weights; without it all weigh the same.
    """
    weights: dict[str, float] = {}
    for word in words:
        weights[stem(word)] = max(weights.get(stem(word), 0.0), (rarity or {}).get(word, 1.0))
    whole = sum(weights.values())
    if not candidates or not whole:
        return []
    needed = min(smallest_share * whole, ENOUGH_RARE * max(weights.values()))
    texts = [Counter(stems_of(passage.text)) for passage in candidates]
    average = sum(text.total() for text in texts) / len(texts) or 1.0
    ranked = []
    for passage, text in zip(candidates, texts, strict=True):
        title = Counter(stems_of(passage.heading))
        matched = sum(w for word, w in weights.items() if text[word] or title[word])
        if matched <= 0 or matched < needed:
            continue
        share = matched / whole
        length = _K1 * (1 - _B + _B * text.total() / average)
        score = sum(
            w * (text[word] * (_K1 + 1) / (text[word] + length) + (title[word] > 0))
            for word, w in weights.items()
        )
        # Coverage squared: a passage with all words beats one that repeats a single word.
        ranked.append(replace(passage, score=score * share * share * (1 + 0.5 * passage.score)))
    return sorted(ranked, key=lambda p: (-p.score, p.corpus, p.path, p.first_block))


def choose(ranked: Sequence[Passage], count: int) -> list[Passage]:
    """Return the best passages without near doubles and not all from one article."""
    chosen: list[tuple[Passage, frozenset[str]]] = []
    per_article: Counter[tuple[str, str]] = Counter()
    for passage in ranked:
        words = frozenset(stems_of(passage.text))
        article = (passage.corpus, passage.path)
        if per_article[article] >= MOST_FROM_ONE_ARTICLE:
            continue
        if any(_overlap(words, other) > SAME_TEXT_OVERLAP for _, other in chosen):
            continue
        per_article[article] += 1
        chosen.append((passage, words))
        if len(chosen) == count:
            break
    return [passage for passage, _ in chosen]


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one | other) or 1)
