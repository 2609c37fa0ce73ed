"""An article made ready for the reader: inert, its links kept inside, a passage marked.

The content origin's policy and the frame's sandbox already stop scripts and requests elsewhere;
what is taken out here would only leave dead corners (or tell a resolver a name, as
`<link rel=dns-prefetch>` does, which no policy forbids).
"""

from __future__ import annotations

import html as escaping
import re
from dataclasses import dataclass
from urllib.parse import quote

from selectolax.lexbor import LexborHTMLParser, LexborNode

from bundler.station.passages import LARGEST_ARTICLE_BYTES, blocks_of, parse

_REMOVED = "script, base, iframe, frame, frameset, object, embed, portal, fencedframe"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_INVISIBLE = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028\u2029\ufeff]")
_REFRESH = re.compile(r"\s*\d*\s*;?\s*url\s*=\s*['\"]?([^'\"]+)", re.IGNORECASE)
LARGEST_REDIRECT_BYTES = 4096
"""A page that only sends the reader on (old converters make them) is smaller than this."""
PASSAGE_ANCHOR = "bundler-passage"
PLAIN_CLASS = "bundler-plain"
"""For pages without any style of their own: `reader.css` dresses them."""


@dataclass(frozen=True)
class Place:
    """Where an article is shown: what stands in the bar above it and in front of its links."""

    base: str
    """Path prefix of all corpora on the content origin: `/<key>`."""
    corpus: str
    corpus_title: str
    title: str


def prepare(html: bytes, place: Place, passage: tuple[int, int] | None) -> bytes:
    """Return the article's HTML as the reader shows it; `passage` is a range of block numbers.

    A page beyond 8 MiB is passed on with the bar only.
    """
    if len(html) > LARGEST_ARTICLE_BYTES:
        return _with_bar(html.decode("utf-8", "replace"), place)
    tree = parse(html)
    if passage is not None:
        _mark(tree, *passage)
    _make_inert(tree)
    for node in tree.css("a, area"):
        _keep_inside(node, place)
    if tree.css_first("link, style") is None and (body := tree.css_first("body")) is not None:
        body.attrs["class"] = PLAIN_CLASS
    return _with_bar(tree.html or "", place)


def sent_on_to(html: bytes) -> str | None:
    """Return the relative address a redirect-only page leads to, or None."""
    if len(html) > LARGEST_REDIRECT_BYTES:
        return None
    for node in parse(html).css("meta"):
        if (node.attributes.get("http-equiv") or "").lower() == "refresh":
            found = _REFRESH.match(node.attributes.get("content") or "")
            if found and outside_address(found[1]) is None and not found[1].startswith("/"):
                return quote(found[1].strip(), safe="/#?&=%~:@!$'()*+,;.-_")
    return None


def outside_address(href: str) -> str | None:
    r"""Return the address if `href` leads out of the corpus, else None.

    >>> outside_address("java\nscript:alert(1)"), outside_address("a/b.html#c")
    ('javascript:alert(1)', None)
    """
    plain = _INVISIBLE.sub("", href).replace("\\", "/")
    return plain if _SCHEME.match(plain) or plain.startswith("//") else None


def _mark(tree: LexborHTMLParser, first: int, last: int) -> None:
    for number, (node, level) in enumerate(blocks_of(tree)):
        if not first <= number <= last or level:
            continue
        node.attrs["class"] = f"{node.attributes.get('class') or ''} bundler-passage".strip()
        if number == first:
            node.attrs["id"] = PASSAGE_ANCHOR


def _make_inert(tree: LexborHTMLParser) -> None:
    for node in tree.css(_REMOVED):
        node.decompose()
    for node in tree.css("link"):
        if (node.attributes.get("rel") or "").lower().split() != ["stylesheet"]:
            node.decompose()
    for node in tree.css("meta"):
        if node.attributes.get("http-equiv") is not None:
            node.decompose()


def _keep_inside(node: LexborNode, place: Place) -> None:
    attributes = node.attributes
    for name in ("target", "ping", "xlink:href"):
        if name in attributes:
            del node.attrs[name]
    href = attributes.get("href")
    if href is None:
        return
    address = outside_address(href)
    if address is None:
        if href.strip().startswith("/"):
            node.attrs["href"] = f"{place.base}/{quote(place.corpus)}{href.strip()}"
        return
    if address.lower().startswith(("http:", "https:", "//")):
        node.attrs["href"] = f"{place.base}/-/outside?to={quote(address[:2000], safe='')}"
        node.attrs["class"] = f"{attributes.get('class') or ''} bundler-outside".strip()
    else:
        del node.attrs["href"]


def _with_bar(page: str, place: Place) -> bytes:
    sheet = f'<link rel="stylesheet" href="{place.base}/-/reader.css">'
    bar = (
        '<nav class="bundler-bar" aria-label="Where you are"><span>'
        f"{escaping.escape(place.corpus_title)}</span> <b>{escaping.escape(place.title)}</b></nav>"
    )
    page = _after(r"<head[^>]*>", sheet, page)
    return _after(r"<body[^>]*>", bar, page).encode("utf-8", "replace")


def _after(pattern: str, addition: str, page: str) -> str:
    found = re.search(pattern, page, re.IGNORECASE)
    return page[: found.end()] + addition + page[found.end() :] if found else addition + page
