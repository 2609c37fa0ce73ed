r"""Stable ids for headings and passages, so that a citation can open an article at its place.

The contract with whoever splits an article into passages: **a passage is an element whose id
matches `^p\d+$`**, numbered from 1 in reading order and never nested; its heading is the nearest
h1-h3 before it. It is a p, pre, blockquote, li, dd, dt, figcaption, caption, summary or tr, or a
whole ul, ol, dl or table if that is short. An author's own id of that shape becomes `author-p1`,
here and in links.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bundler.builtin.knowledge.cleaning import TAGS

PASSAGE_WORDS = 120
"""A list or table with more words is cut into its items or rows: what is cited should fit a
screen of a phone, and several passages a small model's context."""

_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_CUT = {"ul", "ol", "dl", "table"}
_CONTAINERS = {
    "body", "div", "section", "article", "main", "header", "footer", "aside", "nav", "hgroup",
    "blockquote", "figure", "details", "center", "li", "dd", "dt", "td", "th", "p", "pre",
    "figcaption", "address", "summary", "caption",
}  # fmt: skip
_TEXTS = {"p", "pre", "blockquote", "li", "dd", "dt", "figcaption", "caption", "summary"}
"""Containers that are a passage themselves when they hold text only; in others it gets a `p`."""
_BLOCKS = _HEADINGS | _CUT | _CONTAINERS | {"hr", "tr"}
_HEADING_SELECTOR = ", ".join(sorted(_HEADINGS))
_BLOCK_SELECTOR = ", ".join(sorted(_BLOCKS))
_PASSAGE_ID = re.compile(r"p\d+")
_GOOD_ID = re.compile(r"[^\s\"'<>&`%#]{1,200}")


def author_id(text: str) -> str:
    """Return the id under which an author's own id `text` is found in the finished article."""
    return f"author-{text}" if _PASSAGE_ID.fullmatch(text) else text


def slug(text: str) -> str:
    """Return the id of a heading: as GitHub and most Markdown tools make it.

    >>> slug("When to boil — and why?")
    'when-to-boil--and-why'
    """
    text = unicodedata.normalize("NFC", text).strip().lower()
    kept = "".join(c for c in text if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")[:100] or "section"


def children(node: Any) -> list[Any]:
    """Return the child nodes of `node`, texts too, as a list that survives changes."""
    found, child = [], node.first_child
    while child is not None:
        found.append(child)
        child = child.next
    return found


def elements_with_depth(root: Any) -> Iterator[tuple[Any, int]]:
    """Go through the elements below `root` in document order, without recursion."""
    stack = [(child, 1) for child in reversed(children(root))]
    while stack:
        node, depth = stack.pop()
        if node.is_element_node:
            yield node, depth
            stack.extend((child, depth + 1) for child in reversed(children(node)))


def _text(node: Any) -> str:
    return str(node.text(separator=" "))


@dataclass
class _Anchoring:
    parser: Any
    used: set[str] = field(default_factory=set)
    passages: int = 0

    def author_ids(self, body: Any) -> None:
        """Keep the ids that authors gave, once each; `<a name>` counts as one."""
        for node in body.css("[id], a[name]"):
            given = node.attributes.get("id") or node.attributes.get("name") or ""
            wanted = author_id(given)
            if "name" in node.attributes:
                del node.attrs["name"]
            allowed = node.tag in TAGS and _GOOD_ID.fullmatch(given)
            if allowed and wanted not in self.used:
                self.used.add(wanted)
                node.attrs["id"] = wanted
            elif "id" in node.attributes:
                del node.attrs["id"]

    def heading(self, node: Any) -> None:
        if node.attributes.get("id"):
            return
        wanted = author_id(slug(_text(node)))
        name, count = wanted, 1
        while name in self.used:
            name, count = f"{wanted}-{count}", count + 1
        self.used.add(name)
        node.attrs["id"] = name

    def passage(self, node: Any) -> None:
        if not _text(node).strip():
            return
        old = node.attributes.get("id")
        self.passages += 1
        node.attrs["id"] = f"p{self.passages}"
        if old:
            self._keep_id(node, old)

    def _keep_id(self, node: Any, old: str) -> None:
        """Move an id to an empty span at the place where its element begins."""
        inner = node.css_first("li, dt, dd, caption, td, th") if _is_frame(node) else node
        span = self.parser.create_node("span")
        if inner is None:
            return
        if inner.first_child is not None:
            inner.first_child.insert_before(span)
            inner.first_child.attrs["id"] = old

    def container(self, node: Any) -> None:
        """Give ids to what a container holds; loose text among blocks becomes a paragraph."""
        inside = children(node)
        if not any(_holds_blocks(child) for child in inside):
            if node.tag in _TEXTS:
                self.passage(node)
            else:
                self._wrap(inside)
            return
        run: list[Any] = []
        for child in inside:
            if _holds_blocks(child):
                self._wrap(run)
                run = []
                self.block(child)
            else:
                run.append(child)
        self._wrap(run)

    def block(self, node: Any) -> None:
        """Give ids to one block and to what is in it."""
        if node.tag in _HEADINGS:
            self.heading(node)
        elif node.tag in _CUT and _is_short(node):
            self.passage(node)
        elif node.tag == "table":
            for part in _own_rows(node):
                self._row(part)
        else:
            self.container(node)

    def _row(self, row: Any) -> None:
        if row.css_first(_HEADING_SELECTOR) is None:
            self.passage(row)
            return
        for cell in children(row):
            if cell.is_element_node:
                self.container(cell)

    def _wrap(self, run: list[Any]) -> None:
        if not any(_text(node).strip() if node.is_element_node else _loose(node) for node in run):
            return
        run[0].insert_before(self.parser.create_node("p"))
        paragraph = run[0].prev
        for node in run:
            paragraph.insert_child(node)  # a copy
            node.remove()
        self.passage(paragraph)


def _is_frame(node: Any) -> bool:
    """Tell whether `node` may not hold a span itself."""
    return node.tag in _CUT or node.tag == "tr"


def _loose(node: Any) -> bool:
    return bool(node.is_text_node and (node.text_content or "").strip())


def _holds_blocks(node: Any) -> bool:
    if not node.is_element_node:
        return False
    return node.tag in _BLOCKS or node.css_first(_BLOCK_SELECTOR) is not None


def _is_short(node: Any) -> bool:
    """Tell whether a list or table is one passage."""
    few = len(_text(node).split()) <= PASSAGE_WORDS
    return few and node.css_first(_HEADING_SELECTOR) is None


def _own_rows(table: Any) -> list[Any]:
    """Return the caption and rows of a table, not those of a table in a cell."""
    rows = []
    stack = list(reversed(children(table)))
    while stack:
        child = stack.pop()
        if child.is_element_node and child.tag in ("tr", "caption"):
            rows.append(child)
        elif child.is_element_node:
            stack.extend(reversed(children(child)))
    return rows


def give_anchors(parser: Any) -> set[str]:
    """Give every heading and passage of a parsed page its id; return all ids of the page."""
    anchoring = _Anchoring(parser)
    anchoring.author_ids(parser.body)
    anchoring.container(parser.body)
    return anchoring.used | {f"p{number + 1}" for number in range(anchoring.passages)}
