"""Articles cut into passages: short stretches of text under one heading, with their place.

An article's blocks are counted the same way here and when the reader marks a passage
(`blocks_of` is used by both), so a citation opens exactly where its text was taken from. Blocks
that carry an id (`p7` in bundler's own corpora) can be linked to by it as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser, LexborNode

PASSAGE_CHARACTERS = 600
"""Blocks are joined up to about this: some hundred words, enough for one fact and its limits."""
LONGEST_PASSAGE_CHARACTERS = 1400
LARGEST_ARTICLE_BYTES = 8 * 2**20
"""Longer pages (lists of everything) are read up to here: a stranger's page must not stop us."""
ONLY_LINKS_SHARE = 0.8
"""Of a block's characters; a paragraph with many links has perhaps a third."""
# Sections that name where something is said, not what: English, German, French, Spanish.
_APPARATUS = frozenset({
    "sources", "references", "notes", "footnotes", "bibliography", "see also", "external links",
    "further reading", "quellen", "literatur", "weblinks", "einzelnachweise", "siehe auch",
    "références", "notes et références", "bibliographie", "voir aussi", "liens externes",
    "referencias", "fuentes", "bibliografía", "véase también", "enlaces externos",
})  # fmt: skip
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_TEXT_BLOCKS = ("p", "li", "dd", "dt", "pre", "blockquote", "figcaption", "tr", "caption")
# A whole list or table can be a passage of bundler's own corpora; its id tells.
_SELECTOR = ", ".join((*_HEADINGS, *_TEXT_BLOCKS, '[id^="p"]'))
_BEFORE_SIGN = re.compile(r" ([,.;:!?)\]])")
_AFTER_BRACKET = re.compile(r"([(\[]) ")
_WITHIN = ", ".join(_TEXT_BLOCKS)
# Navigation and apparatus of common encyclopedia pages: never an answer to anything.
_SKIPPED = "nav, script, style, noscript, template, head, sup.reference, .mw-editsection, .navbox, .reflist, .mw-references-wrap"


@dataclass(frozen=True)
class Passage:
    """A stretch of an article that can be quoted and opened."""

    corpus: str
    path: str
    title: str
    section: str
    text: str
    first_block: int
    last_block: int
    anchor: str = ""
    """Id of its first block, if it has one."""
    score: float = 0.0

    @property
    def heading(self) -> str:
        """Title as shown and given to the model: `Article – Section`, or the article alone."""
        return f"{self.title} – {self.section}" if self.section else self.title


@dataclass(frozen=True)
class Block:
    """One paragraph, list item, row or heading."""

    number: int
    text: str
    anchor: str
    heading_level: int = 0
    """1 to 6 for a heading, 0 for text."""


def blocks_of(tree: LexborHTMLParser) -> Iterator[tuple[LexborNode, int]]:
    """Yield the nodes that count as blocks, in document order, with heading level or 0.

    An element holding other text blocks is not one itself, unless it has an id of the form `p7`:
    then it is one, and what is inside belongs to it.
    """
    inside_of: set[int] = set()
    for node in tree.css(_SELECTOR):
        if node.mem_id in inside_of:
            continue
        if is_passage_anchor(node.attributes.get("id")):
            inside_of.update(child.mem_id for child in node.css(_SELECTOR))
            yield node, 0
        elif node.tag in _HEADINGS:
            yield node, int(node.tag[1])
        elif node.tag in _TEXT_BLOCKS and not _holds_blocks(node):
            yield node, 0


def _holds_blocks(node: LexborNode) -> bool:
    return any(child.mem_id != node.mem_id for child in node.css(_WITHIN))


def is_passage_anchor(identity: str | None) -> bool:
    """Whether an id is one that bundler's own corpora give to a block of text: `p1`, `p2`…"""
    return bool(identity) and identity[0] == "p" and identity[1:].isdigit()  # type: ignore[index]


def parse(html: bytes) -> LexborHTMLParser:
    """Parse a page, however broken it is."""
    return LexborHTMLParser(html[:LARGEST_ARTICLE_BYTES].decode("utf-8", "replace"))


def read_blocks(html: bytes) -> list[Block]:
    """Return an article's blocks with their text; empty ones keep their number but are left out."""
    tree = parse(html)
    skipped = {node.mem_id for part in tree.css(_SKIPPED) for node in part.css(_SELECTOR)}
    for part in tree.css("sup.reference, .mw-editsection, script, style"):
        part.decompose()
    for line_break in tree.css("br"):
        line_break.insert_before(" ")
    blocks = []
    for number, (node, level) in enumerate(blocks_of(tree)):
        text = _text(node)
        if text and node.mem_id not in skipped and (level or not _is_only_links(node, text)):
            blocks.append(Block(number, text, node.attributes.get("id") or "", level))
    return blocks


def _is_only_links(node: LexborNode, text: str) -> bool:
    """Whether a block is a table of contents or the like: has all words and answers nothing."""
    linked = sum(len(link.text(deep=True)) for link in node.css("a"))
    return linked >= ONLY_LINKS_SHARE * len(text)


def _text(node: LexborNode) -> str:
    """Return a block's text on one line; items and cells of a list or table are set apart."""
    apart = node.tag in _TEXT_BLOCKS[:2] or node.tag in _HEADINGS
    text = " ".join(node.text(deep=True, separator="" if apart else " ").split())
    return text if apart else _BEFORE_SIGN.sub(r"\1", _AFTER_BRACKET.sub(r"\1", text))


def passages_of(corpus: str, path: str, title: str, blocks: Iterable[Block]) -> list[Passage]:
    """Join an article's blocks into passages: never across a heading, at most about 600 characters."""
    passages: list[Passage] = []
    section = ""
    waiting: list[Block] = []

    def close() -> None:
        if waiting:
            text = " ".join(block.text for block in waiting)[:LONGEST_PASSAGE_CHARACTERS]
            passages.append(
                Passage(
                    corpus, path, title, section, text,
                    waiting[0].number, waiting[-1].number, waiting[0].anchor,
                )
            )  # fmt: skip
            waiting.clear()

    for block in blocks:
        if block.heading_level:
            close()
            section = "" if block.heading_level == 1 else block.text[:120]
            continue
        if section.casefold() in _APPARATUS:
            continue
        if sum(len(one.text) for one in waiting) + len(block.text) > PASSAGE_CHARACTERS:
            close()
        waiting.append(block)
    close()
    return passages
