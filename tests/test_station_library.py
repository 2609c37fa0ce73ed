"""Corpora searched and read, passages found, and nothing that dies with a damaged file."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundler.station.configuration import CorpusEntry
from bundler.station.keywords import keywords, stem
from bundler.station.library import Library, open_corpus
from bundler.station.passages import parse, passages_of, read_blocks
from bundler.station.problems import CorpusUnreadable
from bundler.station.retrieval import choose, find_passages, rank
from bundler.station.searching import search
from bundler.testing.station_bundle import make_zim

OTHER = {
    "Water rights": {"": ["Who owns the water of a river is decided by law."]},
    "Boiling point": {"": ["The boiling point of water falls with altitude."]},
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    make_zim(root / "handbook.zim", redirects={"boil.html": "boiling.html"})
    make_zim(root / "other.zim", OTHER, title="Other")
    return Library(
        [
            open_corpus(root, CorpusEntry("handbook", "handbook.zim", "Handbook")),
            open_corpus(root, CorpusEntry("other", "other.zim", "Other")),
            open_corpus(root, CorpusEntry("gone", "gone.zim", "Gone")),
        ]
    )


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("How do I boil water to make it safe?", ("boil", "water", "safe")),
        ("What is a tourniquet?", ("tourniquet",)),
        ("Wie kann ich Wasser abkochen?", ("wasser", "abkochen")),
        ("what is it", ("what", "is", "it")),
        ("", ()),
        ("?!…", ()),
    ],
)
def test_a_question_becomes_the_words_worth_searching(question, words):
    assert keywords(question) == words


@pytest.mark.parametrize(
    "family",
    [("boil", "boils", "boiled", "boiling"), ("stop", "stopped", "stopping"), ("battery", "batteries"),
     ("bleed", "bleeds", "bleeding"), ("burn", "burns", "burned")],
)  # fmt: skip
def test_forms_of_a_word_share_a_stem(family):
    assert len({stem(word) for word in family}) == 1


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_stem_is_never_longer_than_its_word_decomposed(word):
    assert len(stem(word)) <= max(len(word) * 18, 1)


@pytest.mark.parametrize(
    ("question", "heading"),
    [
        ("How many minutes must I keep the rolling boil going?", "Boiling – How to boil water"),
        ("Where do I place a tourniquet?", "Tourniquet – How to use it"),
        ("How many times do I say mayday and the name of the boat?", "Mayday call – What to say"),
        ("my friend fell into a cold lake and is shivering what first aid can I give with blankets", "Hypothermia – First aid"),
        ("Does the heat remove pesticides?", "Boiling – Limits"),
        ("my friend has a deep cut and it is bleeding a lot what can I do", "Tourniquet"),
    ],
)  # fmt: skip
def test_the_passage_that_answers_comes_first(library, question, heading):
    assert find_passages(library, question, 5)[0].heading == heading


def test_a_question_about_nothing_in_here_finds_nothing(library):
    assert find_passages(library, "Who won the football championship?", 5) == []


def test_passages_come_from_all_corpora_or_the_chosen_one(library):
    question = "At which altitude does water boil?"
    assert {p.corpus for p in find_passages(library, question, 5)} == {"handbook", "other"}
    assert {p.corpus for p in find_passages(library, question, 5, "other")} == {"other"}
    assert find_passages(library, question, 5, "gone") == []
    assert find_passages(library, question, 5, "nonsense") == []


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(
    question=st.text(max_size=200)
    | st.sampled_from(['"', "(((", "AND", "a AND OR", "*", "boil*", "title:x", "-water", "\0"])
)
def test_no_question_breaks_the_search(library, question):
    for passage in find_passages(library, question, 5):
        assert passage.text
    with contextlib.suppress(CorpusUnreadable):
        search(library, question.strip() or "x", "", 1)


def test_near_doubles_are_left_out_and_no_article_takes_all_places(library):
    blocks = read_blocks(
        b"".join(b"<p id=p%d>water boil %d</p><h2>s%d</h2>" % (n, n // 2, n) for n in range(8))
    )
    passages = passages_of("c", "a.html", "T", blocks)
    chosen = choose(rank(passages, ["water", "boil"]), 5)
    assert len(chosen) == 2
    assert chosen[0].text != chosen[1].text


def test_blocks_are_joined_under_one_heading_and_never_across():
    html = (
        b"<h1>T</h1><p>a</p><p>b</p><h2 id=x>S</h2><ul><li>c<li>d</ul><table><tr><td>e<td>f</table>"
    )
    passages = passages_of("c", "p", "T", read_blocks(html))
    assert [(p.section, p.text) for p in passages] == [("", "a b"), ("S", "c d e f")]
    assert (passages[1].first_block, passages[1].last_block) == (4, 6)


def test_lists_of_links_and_of_sources_are_no_passages():
    html = (
        b"<p>text <a href=x>link</a> more text</p><ul><li><a href=a>Water</a></ul><p><a>one</a> <a>two</a></p>"
        b"<h2>Sources</h2><p>A book about water</p><h2>After</h2><p>more</p>"
    )
    texts = [p.text for p in passages_of("c", "p", "T", read_blocks(html))]
    assert texts == ["text link more text", "more"]


def test_what_is_inside_a_block_with_an_id_belongs_to_it():
    blocks = read_blocks(b'<ul id="p4"><li>a</li><li>b</li></ul><p id="p5">c</p>')
    assert [(b.anchor, b.text) for b in blocks] == [("p4", "a b"), ("p5", "c")]


@settings(deadline=None)
@given(st.binary(max_size=400) | st.text("<>/pliuhd123 id='\"=", max_size=300).map(str.encode))
def test_any_bytes_are_read_as_an_article(html):
    assert parse(html) is not None
    for passage in passages_of("c", "p", "t", read_blocks(html)):
        assert passage.text
        assert passage.first_block <= passage.last_block


def test_a_search_over_all_corpora_mixes_them_and_counts(library):
    found = search(library, "water", "", 1)
    assert {result.corpus_title for result in found.results} == {"Handbook", "Other"}
    assert found.estimated == 4
    assert not found.relaxed
    assert found.results[0].title == "Water rights"


def test_a_search_that_is_too_narrow_is_relaxed_and_says_so(library):
    found = search(library, "bleeding mayday", "", 1)
    assert found.relaxed
    assert {result.title for result in found.results} >= {"Tourniquet", "Mayday call"}


def test_snippets_mark_the_words_and_escape_the_rest(tmp_path):
    make_zim(
        tmp_path / "x.zim", {"A <b>": {"": ["Water <script>alert(1)</script> boils & cools."]}}
    )
    library = Library([open_corpus(tmp_path, CorpusEntry("x", "x.zim", "X"))])
    result = search(library, "boil", "", 1).results[0]
    assert "&lt;script&gt;" in result.snippet_html
    assert "<mark>boils</mark> &amp; cools" in result.snippet_html
    assert result.title_html == "A &lt;b&gt;"


def test_pages_follow_each_other_without_doubles(tmp_path):
    make_zim(
        tmp_path / "many.zim", {f"Article {n:02}": {"": [f"water number {n}"]} for n in range(25)}
    )
    library = Library([open_corpus(tmp_path, CorpusEntry("many", "many.zim", "Many"))])
    pages = [search(library, "water", "", n) for n in (1, 2, 3, 4)]
    assert [len(page.results) for page in pages] == [10, 10, 5, 0]
    assert [page.more for page in pages] == [True, True, False, False]
    assert len({result.href for page in pages for result in page.results}) == 25


def test_titles_are_suggested_while_typing(library):
    assert "Boiling" in [hit.title for hit in library.suggest("boi", 8)]
    assert library.suggest("boi", 8, "gone") == []


def test_redirects_are_followed_to_the_article(library):
    content = library.corpora["handbook"].read("boil.html")
    assert content.path == "boiling.html"
    assert content.title == "Boiling"


@pytest.mark.parametrize(
    "path", ["", "nothing", "../handbook.zim", "a\0b", "x" * 100_000, "\ud800", "boiling.html/"]
)
def test_an_entry_that_is_not_there_is_none(library, path):
    assert library.corpora["handbook"].read(path) is None


def test_a_corpus_that_is_gone_says_why(library):
    gone = library.corpora["gone"]
    assert not gone.available
    assert gone.reason == "gone.zim is missing from the bundle"
    with pytest.raises(CorpusUnreadable, match=r"Gone: gone\.zim is missing"):
        gone.read("x")


def test_a_damaged_article_is_named_and_its_neighbours_are_read(tmp_path):
    path = make_zim(
        tmp_path / "d.zim", {f"Article {n}": {"": [f"text {n} " * 200]} for n in range(30)}
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0x55 for byte in data[middle : middle + 64])
    path.write_bytes(data)
    corpus = open_corpus(tmp_path, CorpusEntry("d", "d.zim", "D"))
    if corpus.available:
        corpus.check()
        assert "checksum is wrong" in corpus.reason
        for n in range(30):
            with contextlib.suppress(CorpusUnreadable):
                corpus.read(f"article-{n}.html")
