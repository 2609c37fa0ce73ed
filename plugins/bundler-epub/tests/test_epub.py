"""Books become articles; what is damaged, protected or hostile is left out with its reason."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

import bundler_epub
import pytest
from bundler_epub import EpubCorpus
from bundler_epub.archive import BookRefused, open_archive
from bundler_epub.markup import BadMarkup, chapter_html, parse_xml
from bundler_epub.package import read_book, resolve
from hypothesis import given
from hypothesis import strategies as st
from libzim.reader import Archive as Zim
from libzim.search import Query, Searcher

from bundler.errors import StepFailed
from bundler.testing.contract import check_corpus_kind, check_plugin
from bundler.testing.contract_steps import run_once

CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" '
    'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/>'
    "</rootfiles></container>"
)
PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>Water &amp; fire</dc:title><dc:creator>A. Author</dc:creator><dc:language>en</dc:language>
<dc:rights>CC0</dc:rights></metadata>
<manifest>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="cover" href="Text/cover.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="Text/one.xhtml" media-type="application/xhtml+xml"/>
<item id="two" href="Text/two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="picture" href="Images/kettle.png" media-type="image/png" properties="cover-image"/>
<item id="style" href="style.css" media-type="text/css"/>
</manifest>
<spine><itemref idref="cover"/><itemref idref="one"/><itemref idref="two"/></spine>
</package>"""
NAV = """<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>
<nav epub:type="toc"><ol><li><a href="Text/one.xhtml">Boiling water</a>
<ol><li><a href="Text/one.xhtml#when">When to boil</a></li></ol></li>
<li><a href="Text/two%20b.xhtml">Fire</a></li></ol></nav></body></html>"""
COVER = """<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
<image xlink:href="../Images/kettle.png"/></svg></body></html>"""
ONE = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x.js"/></head><body>
<h1>Boiling</h1><p>Boil&nbsp;the water for one minute.<a id="x"/> Then cool it.</p>
<h2 id="when">When</h2><p>Always, see <a href="two%20b.xhtml#light">lighting</a>.</p>
<img src="../Images/kettle.png" alt="A kettle"/><script>alert(1)</script></body></html>"""
TWO = """<html xmlns="http://www.w3.org/1999/xhtml"><body><h1>Fire</h1>
<p id="light">Birch bark lights when wet.</p></body></html>"""


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\xff")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


FILES: dict[str, str | bytes] = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": PACKAGE,
    "OEBPS/nav.xhtml": NAV,
    "OEBPS/Text/cover.xhtml": COVER,
    "OEBPS/Text/one.xhtml": ONE,
    "OEBPS/Text/two b.xhtml": TWO,
    "OEBPS/Images/kettle.png": png(),
    "OEBPS/style.css": "p { color: red }",
}


def epub(**changes: str | bytes | None) -> bytes:
    """Return the book above with files changed, added or (None) left out."""
    names = {
        name.replace("__", "/").replace("_dot_", "."): given for name, given in changes.items()
    }
    return packed({**FILES, **names})


def packed(files: dict[str, str | bytes | None], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as book:
        for name, content in files.items():
            if content is not None:
                book.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content, method)
    return buffer.getvalue()


def encryption(algorithm: str) -> str:
    return (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><EncryptedData '
        'xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="'
        f'{algorithm}"/></EncryptedData></encryption>'
    )


def article(zim: Path, path: str) -> str:
    return bytes(Zim(zim).get_entry_by_path(path).get_item().content).decode()


def search(zim: Path, words: str) -> list[str]:
    return list(Searcher(Zim(zim)).search(Query().set_query(words)).getResults(0, 20))


def reason(tmp_path: Path, data: bytes) -> str:
    """Return why a book is refused."""
    path = tmp_path / "book.epub"
    path.write_bytes(data)
    with pytest.raises(BookRefused) as caught, open_archive(path) as archive:
        read_book(archive)
    return str(caught.value)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    folder = tmp_path_factory.mktemp("library")
    books = {
        "water.epub": epub(),
        "sea/old one.epub": epub(),
        "locked.epub": epub(**{"META-INF__encryption_dot_xml": encryption("x:aes")}),
        "torn.epub": epub()[:500],
        "notes.txt": b"not a book",
    }
    coverage = check_corpus_kind(EpubCorpus(), books, {"title": "Library"}, folder / "run")
    return folder / "run/first/output/corpus.zim", coverage


def test_the_package_registers_one_corpus_kind_that_keeps_the_contract():
    assert "epub" in check_plugin(bundler_epub).corpora


def test_chapters_are_articles_under_their_book_with_the_titles_of_its_contents(library):
    zim, _ = library
    assert Zim(zim).get_entry_by_path("water/Text/one.html").title == "Boiling water"
    found = {"sea/old one/Text/two b.html", "water/Text/two b.html"}
    assert set(search(zim, "birch bark")) == found


def test_links_pictures_and_named_characters_survive_and_scripts_do_not(library):
    text = article(library[0], "water/Text/one.html")
    assert 'href="two%20b.html#light"' in text
    assert 'src="../Images/kettle.png"' in text
    assert "Boil\xa0the water for one minute." in text.replace("&nbsp;", "\xa0")
    assert "Then cool it." in text
    assert "alert" not in text
    assert bytes(
        Zim(library[0]).get_entry_by_path("water/Images/kettle.png").get_item().content
    ).startswith(b"\x89PNG")


def test_a_book_has_a_page_and_all_books_are_listed(library):
    page = article(library[0], "water.html")
    for piece in ("Water &amp; fire", "A. Author", "CC0", "When to boil", "kettle.png", "#when"):
        assert piece in page
    listed = article(library[0], "index.html")
    assert 'href="water.html"' in listed
    assert 'href="sea/old%20one.html"' in listed


def test_what_is_left_out_is_named_with_its_reason(library):
    coverage = library[1]
    told = {one.path: one.reason for one in coverage.skipped}
    assert "DRM" in told["locked.epub"]
    assert "no EPUB" in told["torn.epub"]
    assert "notes.txt" in told
    assert coverage.skipped_total == 3
    assert coverage.articles_indexed == 7  # two books of two chapters and a page, and the list
    notes = " ".join(coverage.notes)
    assert "1 pages without text" in notes
    assert "no reading matter" in notes


def test_scrambled_fonts_are_no_drm(tmp_path):
    path = tmp_path / "book.epub"
    scrambled = encryption("http://www.idpf.org/2008/embedding")
    path.write_bytes(epub(**{"META-INF__encryption_dot_xml": scrambled}))
    with open_archive(path) as archive:
        assert read_book(archive).title == "Water & fire"


def test_a_book_of_the_second_edition_takes_its_titles_from_the_ncx(tmp_path):
    ncx = (
        '<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "ncx.dtd">'
        '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>First'
        '</text></navLabel><content src="Text/one.xhtml"/></navPoint></navMap></ncx>'
    )
    package = (
        PACKAGE.replace(' properties="nav"', "")
        .replace("<spine>", '<spine toc="ncx">')
        .replace("</manifest>", '<item id="ncx" href="t.ncx" media-type="x/ncx"/></manifest>')
    )
    path = tmp_path / "book.epub"
    path.write_bytes(epub(OEBPS__book_dot_opf=package, OEBPS__t_dot_ncx=ncx))
    with open_archive(path) as archive:
        assert read_book(archive).chapter_titles() == {"OEBPS/Text/one.xhtml": "First"}


def test_without_any_book_the_step_fails_with_all_reasons(tmp_path):
    books = {"a.epub": b"no zip", "b.epub": epub(mimetype="text/plain")}
    with pytest.raises(StepFailed) as caught:
        run_once(EpubCorpus(), "build", books, {"name": "x", "date": "2026-01-01"}, tmp_path)
    assert {problem.where for problem in caught.value.problems} == {"", "a.epub", "b.epub"}


HOSTILE = {
    "leaves the archive": (packed({**FILES, "../evil.xhtml": "x"}), "unsafe name"),
    "absolute": (packed({**FILES, "/etc/x": "x"}), "unsafe name"),
    "bomb": (packed({**FILES, "OEBPS/a.bin": bytes(8 << 20)}), "grows more than"),
    "lzma": (packed(FILES, zipfile.ZIP_LZMA), "EPUB does not know"),
    "outside": (epub(OEBPS__book_dot_opf=PACKAGE.replace("nav.xhtml", "../../x")), "outside of itself"),
    "entities": (
        epub(OEBPS__book_dot_opf='<!DOCTYPE p [<!ENTITY a "aa">]><package>&a;</package>'),
        "declarations of its own",
    ),
    "external entity": (
        epub(OEBPS__book_dot_opf='<!DOCTYPE p [<!ENTITY a SYSTEM "file:///x">]><p>&a;</p>'),
        "declarations of its own",
    ),
    "deep": (epub(OEBPS__book_dot_opf="<a>" * 300 + "</a>" * 300), "deeper"),
    "no container": (epub(**{"META-INF__container_dot_xml": None}), "lacks 'META-INF/container.xml'"),
    "no package": (epub(OEBPS__book_dot_opf=None), r"lacks 'OEBPS/book\.opf'"),
    "no spine": (epub(OEBPS__book_dot_opf=PACKAGE.replace("itemref", "ref")), "no chapters"),
    "not xml": (epub(OEBPS__book_dot_opf="<package"), "not well-formed"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_broken_book_is_refused_with_its_reason(tmp_path, case):
    data, words = HOSTILE[case]
    assert re.search(words, reason(tmp_path, data))


def test_a_changed_byte_of_a_chapter_is_noticed(tmp_path):
    data = bytearray(packed(FILES, zipfile.ZIP_STORED))
    data[data.index(b"Birch bark")] ^= 1
    path = tmp_path / "book.epub"
    path.write_bytes(data)
    with open_archive(path) as archive, pytest.raises(BookRefused, match="damaged"):
        archive.read("OEBPS/Text/two b.xhtml")


def test_a_chapter_that_declares_entities_is_refused():
    with pytest.raises(BadMarkup, match="declarations"):
        parse_xml(b'<!DOCTYPE html [<!ENTITY x "y">]><html>&x;</html>')


def test_the_short_form_of_empty_elements_does_not_swallow_what_follows():
    html = chapter_html(
        parse_xml(b"<html><body><p><a id='x'/>after</p><p/><i/>end</body></html>"), ""
    )
    assert html == '<!DOCTYPE html><body><p><a id="x"></a>after</p><p></p><i></i>end</body>'


@given(st.text(max_size=60))
def test_no_reference_leads_out_of_the_archive(text):
    try:
        path, _ = resolve("OEBPS/Text/one.xhtml", text)
    except BookRefused:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@given(st.binary(max_size=400))
def test_any_bytes_are_xml_or_are_refused(data):
    try:
        parse_xml(data)
    except BadMarkup:
        return
