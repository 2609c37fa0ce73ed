"""What markup may be in an article, and the one sanitiser every article goes through last.

An allow-list: text, headings, lists, tables, links, images, audio and video that lie in the same
ZIM. No scripts, handlers, styles, forms, frames, inline drawings or anything fetched from
elsewhere. Links outwards stay ordinary links; a reader decides whether they open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

_UNWANTED_NAMES = (
    "script, style, noscript, template, iframe, frame, frameset, noframes, object, embed, applet, "
    "svg, math, canvas, input, button, select, textarea, option, datalist, dialog, portal, "
    "link, meta, base, title, param, map, area, marquee, xmp, plaintext, listing, noembed"
)
_UNWANTED = tuple(_UNWANTED_NAMES.split(", "))
"""Elements that are taken out of a page with all they hold."""

_UNWRAPPED = "form, fieldset, menu, dir, search, label, legend, font"
"""Elements that lose their tags and keep what is between them."""

_TAG_NAMES = (
    "a abbr address article aside audio b bdi bdo blockquote br caption center cite code col "
    "colgroup data dd del details dfn div dl dt em figcaption figure footer h1 h2 h3 h4 h5 h6 "
    "header hgroup hr i img ins kbd li main mark nav ol p pre q rp rt ruby s samp section small "
    "source span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var "
    "video wbr"
)
TAGS = frozenset(_TAG_NAMES.split())
"""Elements that an article may have."""
_ATTRIBUTES = {
    "*": {"id", "title", "lang", "dir"},
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "audio": {"src", "controls"},
    "video": {"src", "controls", "width", "height"},
    "source": {"src", "type"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
    "col": {"span"},
    "colgroup": {"span"},
    "ol": {"start", "type", "reversed"},
    "li": {"value"},
    "time": {"datetime"},
    "data": {"value"},
    "details": {"open"},
}
_DROPPED_WITH_CONTENT = {
    "script", "style", "noscript", "template", "iframe", "object", "embed", "svg", "math",
    "title", "textarea", "select", "xmp", "noembed", "noframes",
}  # fmt: skip
_OUTWARD = re.compile(r"(?:https?|mailto|tel):", re.IGNORECASE)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_RASTER_DATA = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")
# What browsers ignore inside or around a URL (WHATWG URL, "C0 control or space", tab, newline).
_IGNORED = re.compile(r"^[\x00-\x20]+|[\x00-\x20]+$|[\t\n\r]")

Rewrite = Callable[[str, bool], str | None]
"""`rewrite(relative reference, is_resource)` gives the reference to write, or None to drop it."""


def clean_article(html: str, rewrite: Rewrite) -> str:
    """Return the safe form of an article's body; relative references go through `rewrite`.

    `html` must not be nested deeper than `documents.MAX_DEPTH`: the sanitiser's time grows with
    the square of the depth.
    """
    import nh3

    def filter_attribute(tag: str, attribute: str, value: str) -> str | None:
        if attribute == "href":
            return _link(value, rewrite)
        if attribute == "src":
            return _resource(tag, value, rewrite)
        return value

    return str(
        nh3.clean(
            html,
            tags=set(TAGS),
            attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
            clean_content_tags=_DROPPED_WITH_CONTENT,
            url_schemes={"http", "https", "mailto", "tel", "data"},
            attribute_filter=filter_attribute,
            link_rel="noopener noreferrer",
        )
    )


def _link(value: str, rewrite: Rewrite) -> str | None:
    value = _IGNORED.sub("", value)
    if value.startswith(("//", "\\\\", "/\\", "\\/")):
        value = "https://" + value[2:]
    if _OUTWARD.match(value):
        return value
    return None if _SCHEME.match(value) else rewrite(value, False)


def _resource(tag: str, value: str, rewrite: Rewrite) -> str | None:
    value = _IGNORED.sub("", value)
    if value[:5].lower() == "data:":
        return value if tag == "img" and _RASTER_DATA.fullmatch(value) else None
    if _SCHEME.match(value) or value.replace("\\", "/").startswith("//"):
        return None
    return rewrite(value, True)


def take_out(parser: Any) -> Counter[str]:
    """Remove unwanted elements from a parsed page; return how many of each kind there were."""
    for node in parser.css(_UNWRAPPED):
        node.unwrap(delete_empty=True)
    counts: Counter[str] = Counter()
    unwanted = [node for node in parser.css(_UNWANTED_NAMES) if not _inside_another(node)]
    for node in unwanted:
        counts[node.tag] += 1
        node.decompose()
    return counts


def _inside_another(node: Any) -> bool:
    """Tell whether an unwanted element goes away with one around it (it must not be freed twice)."""
    while (node := node.parent) is not None:
        if node.tag in _UNWANTED:
            return True
    return False
