"""What may be in an SVG drawing: shapes, text, gradients; nothing that acts or fetches."""

from __future__ import annotations

import re
from xml.etree import ElementTree

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_XML = "http://www.w3.org/XML/1998/namespace"
_ELEMENT_NAMES = (
    "svg g defs symbol use title desc path rect circle ellipse line polyline polygon text tspan "
    "textPath image marker pattern mask clipPath linearGradient radialGradient stop filter "
    "feBlend feColorMatrix feComponentTransfer feComposite feConvolveMatrix feDiffuseLighting "
    "feDisplacementMap feDistantLight feDropShadow feFlood feFuncA feFuncB feFuncG feFuncR "
    "feGaussianBlur feMerge feMergeNode feMorphology feOffset fePointLight feSpecularLighting "
    "feSpotLight feTile feTurbulence a switch style"
)
_ELEMENTS = frozenset(_ELEMENT_NAMES.split())
_FETCHES = re.compile(
    r"url\s*\(\s*['\"]?\s*(?!#)|@import|javascript:|expression\s*\(|\\|image-set|</", re.I
)
_RASTER = re.compile(r"\s*data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+", re.I)
_DOCTYPE = re.compile(rb"<!DOCTYPE[^\[>]*>", re.IGNORECASE)
_MAX_DEPTH = 200


def clean_drawing(data: bytes) -> bytes:
    """Return an SVG without scripts, handlers, foreign content and references outwards.

    Raises:
        ValueError: it is not SVG, or has entities (which can blow up) or is nested too deep.
    """
    data = _DOCTYPE.sub(b"", data, count=1)
    if b"<!DOCTYPE" in data.upper() or b"<!ENTITY" in data.upper():
        raise ValueError("has its own document type with entities")
    if b"\0" in data:
        raise ValueError("is not UTF-8 text")
    builder = _DepthLimit()
    try:
        # Safe without defusedxml: no DOCTYPE reaches the parser, so there are no entities.
        parser = ElementTree.XMLParser(target=builder)  # noqa: S314
        parser.feed(data)
        root = parser.close()
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"is not well-formed XML: {error}") from error
    if root.tag != f"{{{_SVG}}}svg":
        raise ValueError("is not an SVG drawing")
    _clean(root)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


class _DepthLimit(ElementTree.TreeBuilder):
    """Builds the tree and refuses one that is nested too deep for recursion."""

    _depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"is nested deeper than {_MAX_DEPTH} elements")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def _clean(element: ElementTree.Element) -> None:
    for name, value in list(element.attrib.items()):
        if not _harmless(element, name, value):
            del element.attrib[name]
    for child in list(element):
        local = _local(child.tag)
        allowed = isinstance(child.tag, str) and child.tag.startswith(f"{{{_SVG}}}")
        if not allowed or local not in _ELEMENTS or _bad_style(child, local):
            _drop(element, child)
        else:
            _clean(child)


def _bad_style(element: ElementTree.Element, local: str) -> bool:
    return local == "style" and (len(element) > 0 or bool(_FETCHES.search(element.text or "")))


def _drop(parent: ElementTree.Element, child: ElementTree.Element) -> None:
    """Remove `child` with all it holds, but keep the text that follows it."""
    index = list(parent).index(child)
    if child.tail:
        if index:
            parent[index - 1].tail = (parent[index - 1].tail or "") + child.tail
        else:
            parent.text = (parent.text or "") + child.tail
    parent.remove(child)


def _local(name: object) -> str:
    return name.rpartition("}")[2] if isinstance(name, str) else ""


def _harmless(element: ElementTree.Element, name: str, value: str) -> bool:
    local = _local(name)
    if local.lower().startswith("on"):
        return False
    if local == "href" and name in ("href", f"{{{_XLINK}}}href"):
        return value.strip().startswith("#") or (
            _local(element.tag) == "image" and _RASTER.fullmatch(value) is not None
        )
    if name.startswith("{") and name not in (f"{{{_XML}}}lang", f"{{{_XML}}}space"):
        return False
    return not _FETCHES.search(value)
