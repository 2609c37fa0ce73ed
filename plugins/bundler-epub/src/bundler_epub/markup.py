"""XML read safely, and XHTML turned into HTML. Nothing is fetched and no entity is declared."""

from __future__ import annotations

import re
from html.entities import html5
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder, tostring
from xml.parsers import expat

MAX_XML_BYTES = 32 * 2**20
MAX_DEPTH = 256
MAX_ELEMENTS = 500_000
XHTML = "{http://www.w3.org/1999/xhtml}"
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,31});")
_XML_ENTITIES = {"amp", "lt", "gt", "quot", "apos"}
_DROPPED = {"script", "style", "link", "meta", "base", "template", "iframe", "object", "embed"}


class BadMarkup(ValueError):
    """XML that cannot or must not be read; the message says why."""


def parse_xml(data: bytes) -> Element:
    """Return the root of an XML document; names are `{namespace}local`, as ElementTree has them.

    A DOCTYPE is passed over, since every EPUB 2 has one; one that declares anything is refused.

    Raises:
        BadMarkup: not well-formed, too large or too deep, or with declarations.
    """
    if len(data) > MAX_XML_BYTES:
        raise BadMarkup(f"is larger than {MAX_XML_BYTES >> 20} MiB")
    builder = _Builder()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_subset
    parser.EntityDeclHandler = _refuse_entity
    try:
        parser.Parse(_text(data).encode(), True)
    except expat.ExpatError as error:
        raise BadMarkup(f"is not well-formed XML: {error}") from error
    return builder.tree.close()


class _Builder:
    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._depth = self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise BadMarkup("has more elements, or deeper ones, than any page of a book")
        self.tree.start(_named(name), {_named(k): v for k, v in attributes.items()})

    def end(self, name: str) -> None:
        self._depth -= 1
        self.tree.end(_named(name))

    def data(self, text: str) -> None:
        self.tree.data(text)


def _named(name: str) -> str:
    return "{" + name if "}" in name else name


def _refuse_subset(_name: str, _system: Any, _public: Any, has_subset: int) -> None:
    if has_subset:
        raise BadMarkup("has a DOCTYPE with declarations of its own")


def _refuse_entity(*_: Any) -> None:
    raise BadMarkup("declares entities")


def _text(data: bytes) -> str:
    """Decode (EPUB allows UTF-8 and UTF-16) and write HTML's named characters as themselves."""
    is_wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadMarkup("is neither UTF-8 nor UTF-16") from error
    # The declaration may still say UTF-16; what the parser gets is UTF-8.
    text = re.sub(r"\A\s*<\?xml[^>]{0,200}\?>", "", text)
    return _ENTITY.sub(_character, text)


def _character(match: re.Match[str]) -> str:
    name = match[1]
    return match[0] if name in _XML_ENTITIES else html5.get(f"{name};", match[0])


def local(element: Element) -> str:
    """Return an element's name without its namespace, in lower case."""
    return str(element.tag).rpartition("}")[2].lower()


def text_of(element: Element) -> str:
    """Return all text in an element as one line."""
    return " ".join("".join(element.itertext()).split())


def find_all(root: Element, name: str) -> list[Element]:
    """Return all elements below `root` with a local name, in document order."""
    return [element for element in root.iter() if local(element) == name]


def chapter_html(root: Element, footer: str) -> str:
    """Return an XHTML document as HTML that a parser of HTML reads as it was meant.

    Empty elements lose their short form, which HTML knows for a few only; an SVG that only wraps
    a picture (covers do) becomes that picture. `footer` is put at the end of the body.
    """
    page = Element("html")
    _copy(root, page)
    body = page.find(".//body")
    written = tostring(page if body is None else body, encoding="unicode", method="html")
    return f"<!DOCTYPE html>{written}{footer}"


def _copy(source: Element, target: Element) -> None:
    """Copy the children of `source` without namespaces; the depth was limited when it was read."""
    target.text = source.text
    last: Element | None = None
    for child in source:
        made = _made(child)
        if made is not None:
            if local(child) != "svg":
                _copy(child, made)
            target.append(made)
            made.tail = child.tail
            last = made
        elif last is None:
            target.text = (target.text or "") + (child.tail or "")
        else:
            last.tail = (last.tail or "") + (child.tail or "")


def _made(element: Element) -> Element | None:
    name = local(element)
    if name == "svg":
        return _picture(element)
    if name in _DROPPED:
        return None
    plain = {key: value for key, value in element.attrib.items() if "}" not in key}
    return Element(name, plain)


def _picture(svg: Element) -> Element | None:
    images = find_all(svg, "image")
    for image in images[:1]:
        for key, value in image.attrib.items():
            if key.rpartition("}")[2] == "href":
                return Element("img", {"src": value, "alt": ""})
    return None
