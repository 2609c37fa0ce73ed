"""What an EPUB says of itself: metadata, reading order, titles of chapters, pictures."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from bundler_epub.archive import Archive, BookRefused
from bundler_epub.markup import BadMarkup, find_all, local, parse_xml, text_of

# Fonts scrambled against copying are no DRM: the text beside them is plain (EPUB 3.3, OCF 4.4).
_FONT_ONLY = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}
_CHAPTER_TYPES = {"application/xhtml+xml", "text/html", "text/x-oeb1-document"}
_MAX_TITLES = 20_000
_METADATA = {
    "title": "title", "creator": "creators", "publisher": "publishers", "date": "dates",
    "language": "languages", "rights": "rights", "description": "descriptions",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of a book's table of contents."""

    depth: int
    title: str
    path: str
    """Path in the archive."""
    fragment: str


@dataclass(frozen=True)
class Book:
    """A book's structure; paths are those of the archive."""

    metadata: Mapping[str, tuple[str, ...]]
    """`title`, `creators`, `publishers`, `dates`, `languages`, `rights`, `descriptions`."""
    chapters: tuple[str, ...]
    """In reading order."""
    pictures: tuple[str, ...]
    cover: str
    contents: tuple[Entry, ...]
    others: int
    """Files of the book that are neither: styles, fonts, scripts, sound."""

    @property
    def title(self) -> str:
        return next(iter(self.metadata["title"]), "")

    def chapter_titles(self) -> dict[str, str]:
        """Return each chapter's title as the table of contents has it: the first line that leads there."""
        titles: dict[str, str] = {}
        for entry in self.contents:
            titles.setdefault(entry.path, entry.title)
        return titles


def read_book(archive: Archive) -> Book:
    """Return the structure of the book in an archive.

    Raises:
        BookRefused: DRM, or structure that cannot be read.
    """
    _refuse_protection(archive)
    package_path = _package_path(archive)
    package = _xml(archive, package_path)
    items = _manifest(package, package_path, archive)
    chapters = _spine(package, items)
    if not chapters:
        raise BookRefused("has no chapters to read")
    pictures = tuple(sorted({i.path for i in items.values() if i.type.startswith("image/")}))
    nav = next((i.path for i in items.values() if "nav" in i.properties), "")
    known = {*chapters, *pictures, nav}
    return Book(
        metadata=_metadata(package),
        chapters=chapters,
        pictures=pictures,
        cover=_cover(package, items),
        contents=tuple(_contents(archive, package, items, nav, frozenset(chapters))),
        others=len({item.path for item in items.values()} - known),
    )


def _refuse_protection(archive: Archive) -> None:
    if "META-INF/encryption.xml" not in archive.names:
        return
    methods = {
        element.get("Algorithm", "")
        for data in find_all(_xml(archive, "META-INF/encryption.xml"), "encrypteddata")
        for element in data
        if local(element) == "encryptionmethod"
    }
    if not methods <= _FONT_ONLY:
        raise BookRefused("is protected against copying (DRM): only its publisher can open it")


def _xml(archive: Archive, name: str) -> Element:
    data = archive.read(name)
    try:
        return parse_xml(data)
    except BadMarkup as error:
        raise BookRefused(f"{name} {error}") from error


def _package_path(archive: Archive) -> str:
    for rootfile in find_all(_xml(archive, "META-INF/container.xml"), "rootfile"):
        path = rootfile.get("full-path", "")
        if path:
            return path
    raise BookRefused("is no EPUB: container.xml names no package")


@dataclass(frozen=True)
class _Item:
    path: str
    type: str
    properties: frozenset[str]


def _manifest(package: Element, base: str, archive: Archive) -> dict[str, _Item]:
    """Return id → item of everything in the manifest that lies in the archive."""
    items = {}
    for element in find_all(package, "item"):
        path = resolve(base, element.get("href", ""))[0]
        if path in archive.names:
            properties = frozenset(element.get("properties", "").split())
            kind = element.get("media-type", "").lower().strip()
            items[element.get("id", "")] = _Item(path, kind, properties)
    return items


def resolve(base: str, reference: str) -> tuple[str, str]:
    """Return the path in the archive and the fragment that a reference means; ("", "") for none.

    Raises:
        BookRefused: it leaves the archive.
    """
    try:
        split = urlsplit(reference)
    except ValueError:
        return "", ""
    if split.scheme or split.netloc or not (split.path or split.fragment):
        return "", ""
    if not split.path:
        return base, unquote(split.fragment)
    path = unquote(split.path)
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(base), path))
    if joined.startswith(("../", "/")) or joined == ".." or "\\" in joined or "\0" in joined:
        raise BookRefused(f"names a file outside of itself: {reference!a}")
    return joined, unquote(split.fragment)


def _spine(package: Element, items: Mapping[str, _Item]) -> tuple[str, ...]:
    found = [items.get(itemref.get("idref", "")) for itemref in find_all(package, "itemref")]
    paths = [item.path for item in found if item is not None and item.type in _CHAPTER_TYPES]
    return tuple(dict.fromkeys(paths))


def _metadata(package: Element) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {name: [] for name in _METADATA.values()}
    for block in find_all(package, "metadata"):
        for element in block.iter():
            name = _METADATA.get(local(element), "")
            text = text_of(element)[:2000]
            # `<meta property="…">` refines others; only Dublin Core elements count.
            if name and text and text not in found[name]:
                found[name].append(text)
    return {name: tuple(values[:20]) for name, values in found.items()}


def _cover(package: Element, items: Mapping[str, _Item]) -> str:
    for item in items.values():
        if "cover-image" in item.properties:
            return item.path
    for meta in find_all(package, "meta"):
        item_or_none = items.get(meta.get("content", ""))
        if meta.get("name") == "cover" and item_or_none and item_or_none.type.startswith("image/"):
            return item_or_none.path
    return ""


def _contents(
    archive: Archive, package: Element, items: Mapping[str, _Item], nav: str,
    chapters: frozenset[str],
) -> list[Entry]:  # fmt: skip
    """Return the table of contents: of EPUB 3's navigation document, else of EPUB 2's NCX."""
    if nav:
        found = _from_nav(_xml(archive, nav), nav)
    else:
        spine = next(iter(find_all(package, "spine")), None)
        ncx = items.get(spine.get("toc", "")) if spine is not None else None
        found = _from_ncx(_xml(archive, ncx.path), ncx.path) if ncx else []
    return [entry for entry in found if entry.path in chapters and entry.title][:_MAX_TITLES]


def _from_nav(root: Element, base: str) -> list[Entry]:
    """Walk the nested lists of `<nav epub:type="toc">`."""
    navs = find_all(root, "nav")
    is_toc = [n for n in navs if any(k.endswith("}type") and v == "toc" for k, v in n.items())]
    entries: list[Entry] = []

    def walk(element: Element, depth: int) -> None:
        for child in element:
            if local(child) == "a":
                path, fragment = resolve(base, child.get("href", ""))
                entries.append(Entry(depth, text_of(child), path, fragment))
            else:
                walk(child, depth + (local(child) == "ol"))

    for nav in (is_toc or navs)[:1]:
        walk(nav, -1)
    return entries


def _from_ncx(root: Element, base: str) -> list[Entry]:
    entries: list[Entry] = []

    def walk(element: Element, depth: int) -> None:
        for point in (child for child in element if local(child) == "navpoint"):
            label = next((text_of(c) for c in point if local(c) == "navlabel"), "")
            source = next((c.get("src", "") for c in point if local(c) == "content"), "")
            entries.append(Entry(depth, label, *resolve(base, source)))
            walk(point, depth + 1)

    for navigation in find_all(root, "navmap")[:1]:
        walk(navigation, 0)
    return entries
