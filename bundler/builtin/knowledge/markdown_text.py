"""Markdown documents: front matter and CommonMark with tables and strike-through; HTML stays text."""

from __future__ import annotations

import re

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_KEY = re.compile(r"([A-Za-z_][\w-]*)[ \t]*:[ \t]*(.*)")


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    r"""Take the `key: value` lines between two `---` off the start of a document.

    Only plain one-line values are read; lists and nested tables are passed over.

    >>> split_front_matter("---\ntitle: 'Water'\n---\n# Hi\n")
    ({'title': 'Water'}, '# Hi\n')
    """
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    found = {}
    for line in match[1].splitlines():
        pair = _KEY.fullmatch(line.rstrip())
        if pair and pair[2]:
            value = pair[2].strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[pair[1].lower()] = value
    return found, text[match.end() :]


def markdown_html(text: str) -> str:
    """Return the HTML of a Markdown text; HTML inside it is shown, not obeyed."""
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return str(renderer.render(text))
