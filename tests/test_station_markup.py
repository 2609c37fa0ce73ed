"""Model output as HTML: nothing of it is live, and citations lead to retrieved passages only."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from bundler.station.markup import Source, cited, highlight, read_address, render_answer
from tests.xss_vectors import vectors

SOURCES = [
    Source("handbook", "water/boiling.html", "Boiling", "…", 4, 5),
    Source("handbook", 'a "b"<c>&d?e#f.html', "<img src=x onerror=alert(1)>", "…", 0, 0),
]
ALLOWED_TAGS = {
    "html", "head", "body", "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4",
    "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span", "strong", "sup", "table", "tbody", "td",
    "th", "thead", "tr", "ul", "-text",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {"href", "class", "title", "data-source", "aria-label", "start", "align"}


def assert_inert(html, sources):
    tree = LexborHTMLParser(html)
    hrefs = {source.href for source in sources}
    for node in tree.css("*"):
        assert node.tag in ALLOWED_TAGS, node.html
        assert set(node.attributes) <= ALLOWED_ATTRIBUTES, node.html
        if node.tag == "a":
            assert node.attributes["href"] in hrefs, node.html


@pytest.mark.parametrize("vector", vectors(1))
def test_nothing_a_model_says_is_live(vector):
    for text in (vector, f"So [1] {vector} [2]", f"- {vector}\n\n1. {vector}", f"**{vector}**"):
        assert_inert(render_answer(text, SOURCES), SOURCES)
        assert_inert(render_answer(text, []), [])


@settings(deadline=None)
@given(st.text(st.sampled_from(string.printable + "é中\u202e\u0000"), max_size=300))
def test_no_text_at_all_is_live(text):
    assert_inert(render_answer(text, SOURCES), SOURCES)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["[1]", "[2]", "[3]", "(", ")", "[", "]", ":", "<", ">", "!", "`", "*", "http://x.y", "javascript:z", "\n", " ", "|", "#"]), max_size=40))  # fmt: skip
def test_no_pile_of_marks_makes_a_foreign_link(parts):
    assert_inert(render_answer("".join(parts), SOURCES), SOURCES)


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(0, 5))
def test_every_citation_counted_has_a_source(text, count):
    assert all(1 <= number <= count for number in cited(text + " [1] [9]", count))


def test_a_citation_links_to_its_passage_with_the_sources_title():
    html = render_answer("Boil it [1].", SOURCES)
    assert 'href="/read/handbook/water/boiling.html?passage=4-5"' in html
    assert 'title="Boiling"' in html
    assert ">1</a>" in html


def test_several_numbers_in_one_bracket_become_several_links():
    assert render_answer("Yes [1, 2] [2;1] [1][2].", SOURCES).count("<a ") == 6


@pytest.mark.parametrize(
    "text", ["[3]", "[0]", "[1, 3]", "[01x]", "[-1]", "[1000]", "[ ]", "`[1]`", "    [1]"]
)
def test_what_is_no_citation_of_a_source_stays_as_written(text):
    html = render_answer(text, SOURCES)
    assert "<a" not in html
    assert text.strip().strip("`") in html


def test_markdown_is_rendered():
    html = render_answer(
        "# T\n\n**b** *i* ~~s~~\n\n1. x\n2. y\n\n| a |\n|---|\n| c |\n\n```py\nx < 1\n```", []
    )
    for part in (
        "<h1>T</h1>",
        "<strong>b</strong>",
        "<em>i</em>",
        "<s>s</s>",
        "<ol>",
        "<td>c</td>",
        "x &lt; 1",
    ):
        assert part in html


def test_pictures_and_links_become_their_text_and_address():
    html = render_answer("![a map](http://x/y.png) [site](http://x/z)", [])
    assert html == "<p>[picture: a map] site (http://x/z)</p>\n"


@settings(deadline=None)
@given(st.text(max_size=80))
def test_highlighting_escapes_everything_but_its_marks(text):
    html = highlight(text, lambda word: word == "water")
    rest = html.replace("<mark>water</mark>", "")
    assert not re.search(r"[<>\"']", rest)


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_a_readers_address_stays_on_the_reader(corpus, path):
    address = read_address(corpus, path.encode("utf-8", "replace").decode(), 1, 2)
    assert re.fullmatch(
        r"/read/[\w.~!$&'()*+,;=:@%-]*/[\w.~!$&'()*+,;=:@%/-]*\?passage=1-2", address, re.ASCII
    )
