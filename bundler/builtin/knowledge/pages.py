"""How an article looks: one frame for all pages, one small style sheet, the table of contents."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from bundler.builtin.knowledge.anchors import slug
from bundler.builtin.knowledge.languages import html_language
from bundler.builtin.knowledge.library import CONTENTS_PATH, STYLE_PATH, relative, title_from_name

# Readers that obey it run nothing even if the sanitiser ever failed. Styles and pictures are not
# restricted: some readers serve them from blob: addresses.
_POLICY = (
    "script-src 'none'; object-src 'none'; frame-src 'none'; base-uri 'none'; form-action 'none'"
)

STYLE = """\
:root { color-scheme: light dark; --ink: #1c1c1a; --paper: #fdfdfb; --line: #d4d4cc;
  --soft: #f1f1ec; --link: #0b57a4; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4de; --paper: #161715; --line: #3d3e3a; --soft: #232421;
    --link: #8ab8ee; --mark: #4a4010; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.1rem 4rem; max-width: 42rem; color: var(--ink);
  background: var(--paper); font: 1.0625rem/1.6 system-ui, sans-serif; overflow-wrap: anywhere; }
nav.bundler { font-size: 0.875rem; padding-bottom: 0.5rem; border-bottom: 1px solid var(--line); }
nav.bundler a + a { margin-left: 1rem; }
h1, h2, h3, h4 { line-height: 1.25; margin: 1.8em 0 0.5em; }
h1 { font-size: 1.75rem; margin-top: 1rem; }
h2 { font-size: 1.3rem; }
h3 { font-size: 1.1rem; }
a { color: var(--link); }
img, video { max-width: 100%; height: auto; }
img[src$=".svg"] { background: #fff; }
audio { width: 100%; }
figure { margin: 1.2em 0; }
figcaption, .description { opacity: 0.8; font-size: 0.95em; }
table { border-collapse: collapse; display: block; overflow-x: auto; max-width: 100%; }
th, td { border: 1px solid var(--line); padding: 0.35em 0.6em; text-align: left;
  vertical-align: top; overflow-wrap: normal; }
th { background: var(--soft); }
pre { background: var(--soft); padding: 0.8em; overflow-x: auto; line-height: 1.4;
  overflow-wrap: normal; border-radius: 4px; }
code, pre, kbd, samp { font-family: ui-monospace, monospace; font-size: 0.92em; }
blockquote { margin: 1em 0; padding: 0 1em; border-left: 3px solid var(--line); }
hr { border: 0; border-top: 1px solid var(--line); }
li { margin: 0.2em 0; }
:target { background: var(--mark); box-shadow: 0 0 0 0.4rem var(--mark); scroll-margin-top: 4rem;
  border-radius: 2px; }
@media print { nav.bundler { display: none; } body { max-width: none; } }
"""


def article_page(
    *,
    path: str,
    title: str,
    description: str,
    body: str,
    has_heading: bool,
    language: str,
    original: str = "",
) -> str:
    """Return a whole page around a sanitised `body`; `original` is the path of a PDF it is from."""
    heading = "" if has_heading else f'<h1 id="title">{escape(title)}</h1>\n'
    home = (
        "" if path == CONTENTS_PATH else f'<a href="{relative(CONTENTS_PATH, path)}">Contents</a>'
    )
    if original:
        home += f' <a href="{relative(original, path)}">Original PDF</a>'
    # libzim leaves what is between these comments out of the full-text index.
    nav = (
        f'<!--htdig_noindex--><nav class="bundler">{home}</nav><!--/htdig_noindex-->'
        if home
        else ""
    )
    summary = f'<meta name="description" content="{escape(description)}">\n' if description else ""
    return (
        f'<!DOCTYPE html>\n<html lang="{escape(html_language(language))}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n{summary}"
        f'<link rel="stylesheet" href="{relative(STYLE_PATH, path)}">\n</head>\n<body>\n{nav}\n'
        f"<main>\n{heading}{body.strip()}\n</main>\n</body>\n</html>\n"
    )


def contents_body(title: str, articles: Iterable[tuple[str, str]]) -> str:
    """Return the body of the page that lists all (path, title), folder by folder."""
    ordered = sorted(articles, key=lambda entry: (posixpath.dirname(entry[0]), entry[1], entry[0]))
    parts = [f'<h1 id="title">{escape(title)}</h1>']
    for folder, group in groupby(ordered, key=lambda entry: posixpath.dirname(entry[0])):
        if folder:
            heading = " / ".join(title_from_name(part) for part in folder.split("/"))
            parts.append(f'<h2 id="{escape(slug(folder))}">{escape(heading)}</h2>')
        parts.append(_links(list(group)))
    return "\n".join(parts)


def _links(entries: Sequence[tuple[str, str]]) -> str:
    lines = (
        f'<li><a href="{relative(path, CONTENTS_PATH)}">{escape(title)}</a></li>'
        for path, title in entries
    )
    return "<ul>\n" + "\n".join(lines) + "\n</ul>"
