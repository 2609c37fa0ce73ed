"""Model output to safe HTML, with citations that can only lead to retrieved passages.

Two layers, neither trusting the other: markdown-it-py with raw HTML, images and all links turned
off, then nh3 with a short list of tags. The only links in the result are the citations made here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

LONGEST_ANSWER_CHARACTERS = 200_000
"""Rendered at most; a runaway model must not cost the machine its memory."""
_CITATION = re.compile(r"\[\s*(\d{1,3}(?:\s*[,;]\s*\d{1,3}){0,9})\s*\]")
_TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li",
    "ol", "p", "pre", "s", "span", "strong", "sup", "table", "tbody", "td", "th", "thead", "tr",
    "ul",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "class", "title", "data-source", "aria-label"},
    "ol": {"start"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
}


@dataclass(frozen=True)
class Source:
    """Where a citation leads: an article of a corpus, at a passage."""

    corpus: str
    path: str
    title: str
    snippet: str = ""
    first_block: int = 0
    last_block: int = 0

    @property
    def href(self) -> str:
        """Address of the reader's page for it, on the station itself."""
        return read_address(self.corpus, self.path, self.first_block, self.last_block)


def read_address(corpus: str, path: str, first_block: int = -1, last_block: int = -1) -> str:
    """Return the address that opens an article in the reader, at a passage if given."""
    address = f"/read/{quote(corpus, safe='')}/{quote(path, safe='/')}"
    if first_block < 0:
        return address
    return f"{address}?passage={first_block}-{max(first_block, last_block)}"


def render_answer(text: str, sources: Sequence[Source]) -> str:
    """Return an answer as safe HTML; `[n]` becomes a link where there is an n-th source."""
    rendered = _markdown().render(text[:LONGEST_ANSWER_CHARACTERS], {"sources": list(sources)})
    return nh3.clean(
        rendered,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        link_rel=None,
        url_schemes=set(),
        attribute_filter=_only_reader_links,
    )


def cited(text: str, count: int) -> list[int]:
    """Return the numbers cited in a text that have a source, in order of appearance."""
    numbers = [int(n) for found in _CITATION.findall(text) for n in re.split(r"[,;]", found)]
    return [n for n in dict.fromkeys(numbers) if 1 <= n <= count]


def highlight(text: str, wanted: Callable[[str], bool]) -> str:
    """Return `text` escaped, with `<mark>` around the words that `wanted` accepts."""
    pieces = []
    for piece in re.split(r"(\w+)", text):
        escaped = html.escape(piece)
        pieces.append(f"<mark>{escaped}</mark>" if piece.strip() and wanted(piece) else escaped)
    return "".join(pieces)


def _only_reader_links(tag: str, attribute: str, value: str) -> str | None:
    if tag == "a" and attribute == "href" and not value.startswith("/read/"):
        return None
    return value


_shared: list[MarkdownIt] = []


def _markdown() -> MarkdownIt:
    if not _shared:
        parser = MarkdownIt("commonmark", {"html": False, "linkify": False})
        parser.enable(["table", "strikethrough"])
        # Without references `[1]: http://…` cannot turn the citation [1] into a link.
        parser.disable(["reference", "html_block", "html_inline"])
        parser.core.ruler.push("station_inert", _inert)
        _shared.append(parser)
    return _shared[0]


def _inert(state: StateCore) -> None:
    """Replace links and images by their text and address, then make citations of `[n]`."""
    sources: list[Source] = state.env.get("sources", [])
    for block in state.tokens:
        if block.type == "inline" and block.children:
            block.children = _cite(_without_links(block.children), sources)


def _without_links(tokens: Sequence[Token]) -> list[Token]:
    kept: list[Token] = []
    addresses: list[str] = []
    for token in tokens:
        if token.type == "link_open":
            addresses.append(str(token.attrs.get("href", "")))
        elif token.type == "link_close":
            address = addresses.pop() if addresses else ""
            if address and not (kept and kept[-1].content == address):
                kept.append(_text(f" ({address})"))
        elif token.type == "image":
            kept.append(_text(f"[picture: {token.content}]" if token.content else ""))
        else:
            kept.append(token)
    return _joined(kept)


def _joined(tokens: Sequence[Token]) -> list[Token]:
    """Join neighbouring texts, so that a citation split by the parser is one again."""
    joined: list[Token] = []
    for token in tokens:
        if token.type == "text" and joined and joined[-1].type == "text":
            joined[-1] = _text(joined[-1].content + token.content)
        else:
            joined.append(token)
    return joined


def _cite(tokens: Sequence[Token], sources: Sequence[Source]) -> list[Token]:
    cited_tokens: list[Token] = []
    for token in tokens:
        if token.type != "text":
            cited_tokens.append(token)
            continue
        position = 0
        for match in _CITATION.finditer(token.content):
            links = _links(match[1], sources)
            if links:
                before = token.content[position : match.start()]
                # A citation stays on the line of the word it belongs to.
                before = before[:-1] + "\N{NARROW NO-BREAK SPACE}" if before[-1:] == " " else before
                cited_tokens.append(_text(before))
                cited_tokens.append(_html(links))
                position = match.end()
        cited_tokens.append(_text(token.content[position:]))
    return cited_tokens


def _links(numbers: str, sources: Sequence[Source]) -> str:
    """Return links for the numbers, or nothing unless every one of them has a source."""
    wanted = [int(number) for number in re.split(r"[,;]", numbers)]
    if not all(1 <= number <= len(sources) for number in wanted):
        return ""
    return "".join(_link(number, sources[number - 1]) for number in wanted)


def _link(number: int, source: Source) -> str:
    title = html.escape(source.title, quote=True)
    return (
        f'<a class="cite" href="{html.escape(source.href, quote=True)}" data-source="{number}" '
        f'title="{title}" aria-label="Source {number}: {title}">{number}</a>'
    )


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _html(content: str) -> Token:
    # Made by `_link` alone, from escaped parts; the model's own HTML never becomes such a token.
    return Token("html_inline", "", 0, content=content)
