"""A folder of documents becomes a ZIM: complete, searchable, reproducible and harmless."""

from __future__ import annotations

import html.parser
import posixpath
import re
import socket
import subprocess
import time
import urllib.request
import zlib
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.knowledge import bundler_corpora
from bundler.builtin.knowledge.anchors import PASSAGE_WORDS, author_id, give_anchors
from bundler.builtin.knowledge.cleaning import clean_article, take_out
from bundler.builtin.knowledge.documents import read_document
from bundler.builtin.knowledge.drawing import clean_drawing
from bundler.builtin.knowledge.folder import FolderCorpus
from bundler.builtin.knowledge.illustration import illustration_png
from bundler.builtin.knowledge.library import Links, main_document, sort_files
from bundler.builtin.knowledge.markdown_text import markdown_html, split_front_matter
from bundler.builtin.knowledge.pdf_text import page_html
from bundler.builtin.knowledge.plain_text import decode
from bundler.builtin.knowledge.reading import read_documents
from bundler.errors import DoesNotFit, StepFailed, UnsafeInput
from bundler.proof import Coverage
from bundler.store import Store
from bundler.world import World
from tests.knowledge_made import (
    PARAMETERS,
    article,
    body,
    build,
    entries,
    folder_inputs,
    make_task,
    oracle,
    pdf,
    pdf_file,
    pdf_stream,
    playwright_api,
    png,
    search,
    write_files,
)

HANDBOOK = Path(__file__).parent.parent / "examples" / "handbook"

MIXED: dict[str, str | bytes] = {
    "index.md": "---\ntitle: Clinic\n---\n# Clinic\n\nStart with [boiling](water/boiling.md#when).\n",
    "water/boiling.md": (
        "# Boiling\n\nBoil water for one minute.\n\n## When\n\nAlways when turbid.\n\n"
        "![A kettle](kettle.png)\n\nSee [the report](../report.pdf#page=2), [site](https://x.org/a)"
        " and [the list](../lists/drugs.html#dose).\n"
    ),
    "water/kettle.png": png(),
    "lists/drugs.html": (
        "<!DOCTYPE html><html><head><title>Drugs</title><meta name=description content='What is"
        " in the cupboard'></head><body><h1>Drugs</h1><p id=dose>Paracetamol, 500 mg.</p>"
        "<table><tr><th>Name</th><td>Amoxicillin</td></tr></table></body></html>"
    ),
    "notes.txt": "Night shift\n\nThe generator\nstarts by hand.\n\nname     dose\nzinc     20 mg\n",
    "report.pdf": pdf(
        [["Annual report.", "Staff: seven."], ["Cholera cases: none."]], title="Report"
    ),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Coverage]:
    return build(tmp_path_factory.mktemp("mixed"), MIXED)


# -- what becomes of the documents ----------------------------------------------------------------


def test_every_kind_of_document_is_indexed_and_counted(mixed) -> None:
    zim, coverage = mixed
    assert (coverage.articles_found, coverage.articles_indexed) == (5, 5)
    assert coverage.skipped == ()
    assert coverage.full_text
    assert coverage.media == 2
    assert coverage.words_indexed > 40
    for words, path in {
        "turbid": "water/boiling.html",
        "paracetamol": "lists/drugs.html",
        "generator": "notes.html",
        "cholera": "report.pdf.html",
    }.items():
        assert search(zim, words) == [path]


def test_metadata_are_complete_and_come_from_the_recipe(mixed) -> None:
    from libzim.reader import Archive

    archive = Archive(mixed[0])
    meta = {name: bytes(archive.get_metadata(name)) for name in archive.metadata_keys}
    assert meta["Title"].decode() == PARAMETERS["title"]
    assert meta["Description"].decode() == PARAMETERS["description"]
    assert meta["Language"] == b"eng"
    assert meta["Creator"].decode() == PARAMETERS["creator"]
    assert meta["Publisher"] == b"bundler"
    assert meta["Date"] == b"2026-11-22"
    assert meta["License"] == b"CC0-1.0"
    assert b"text/html=" in meta["Counter"]
    assert bytes(archive.get_illustration_item(48).content) == illustration_png("clinic")
    assert archive.main_entry.get_item().path == "index.html"


def test_links_between_documents_lead_to_articles_and_anchors(mixed) -> None:
    boiling = body(mixed[0], "water/boiling.html")
    assert 'href="../report.pdf.html#page-2"' in boiling
    assert 'href="../lists/drugs.html#dose"' in boiling
    assert 'src="kettle.png"' in boiling
    assert '<a href="https://x.org/a" rel="noopener noreferrer">' in boiling
    assert 'href="water/boiling.html#when"' in body(mixed[0], "index.html")


class _References(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.found.append(value)
            if name == "id" and value:
                assert value not in self.ids, f"id {value} twice"
                self.ids.add(value)


def assert_all_links_resolve(zim: Path) -> int:
    pages = {path: _References() for path, mime in entries(zim).items() if mime == "text/html"}
    known = set(entries(zim))
    for path, references in pages.items():
        references.feed(article(zim, path))
    count = 0
    for path, references in pages.items():
        for reference in references.found:
            parts = urlsplit(reference)
            if parts.scheme:
                continue
            target = path
            if parts.path:
                target = posixpath.normpath(
                    posixpath.join(posixpath.dirname(path), unquote(parts.path))
                )
            assert target in known, f"{path}: {reference}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path}: {reference}"
            count += 1
    return count


def test_all_links_of_the_finished_zim_resolve(mixed) -> None:
    assert assert_all_links_resolve(mixed[0]) > 15


def test_links_that_lead_nowhere_are_reported_and_become_text(tmp_path) -> None:
    zim, coverage = build(
        tmp_path,
        {
            "a.md": "# A\n\n[gone](gone.md) [bad](b.md#nowhere) [up](../../etc/passwd)"
            " ![x](no.png) [ok](b.md) [self](#a) [folder](sub/)\n",
            "b.md": "# B\n\ntext\n",
            "sub/c.md": "# C\n\ntext\n",
        },
    )
    (note,) = coverage.notes
    assert note.startswith("4 links lead nowhere")
    for reference in ("gone.md", "b.md#nowhere", "../../etc/passwd", "no.png"):
        assert reference in note
    page = body(zim, "a.html")
    assert '<a rel="noopener noreferrer">gone</a>' in page
    assert 'href="b.html"' in page
    assert 'href="#a"' in page
    assert 'href="_bundler/contents.html"' in page
    assert "passwd" not in page
    assert_all_links_resolve(zim)


def test_without_an_index_the_table_of_contents_opens_first(tmp_path) -> None:
    from libzim.reader import Archive

    zim, _ = build(tmp_path, {"x/b.md": "# Bees\n\nhum\n", "x/a.md": "# Ants\n\nwalk\n"})
    assert Archive(zim).main_entry.get_item().path == "_bundler/contents.html"
    contents = article(zim, "_bundler/contents.html")
    assert contents.index("Ants") < contents.index("Bees")
    assert search(zim, "ants") == ["x/a.html"], "the contents page must not be in the index"


def test_two_documents_of_one_name_both_get_in(tmp_path) -> None:
    zim, coverage = build(
        tmp_path,
        {
            "a.html": "<p>html bees",
            "a.md": "md ants",
            "a.txt": "txt wasps",
            "a.pdf": pdf([["pdf"]]),
        },
    )
    assert coverage.articles_indexed == 4
    assert {"a.html", "a.md.html", "a.txt.html", "a.pdf.html", "a.pdf"} <= set(entries(zim))
    assert "html bees" in body(zim, "a.html")
    assert "md ants" in body(zim, "a.md.html")


def test_a_pdf_has_an_anchor_for_every_page_and_its_original(mixed) -> None:
    page = article(mixed[0], "report.pdf.html")
    assert '<h2 id="page-1">' in page
    assert '<h2 id="page-2">' in page
    assert '<a href="report.pdf">Original PDF</a>' in page
    assert entries(mixed[0])["report.pdf"] == "application/pdf"


def test_lines_of_a_pdf_become_paragraphs() -> None:
    line = "A line that is as long as the usual line of this page is"
    assert page_html(f"{line}\n{line}\nends here.\n{line}\nand here.").count("<p>") == 2
    assert page_html("cut <b>\n\nnext") == "<p>cut &lt;b&gt;</p>\n<p>next</p>"


def test_plain_text_keeps_paragraphs_and_columns(mixed) -> None:
    page = body(mixed[0], "notes.html")
    assert '<h1 id="title">Night shift</h1>' in page
    assert '<p id="p2">The generator\nstarts by hand.</p>' in page
    assert '<pre id="p3">name     dose' in page


def test_texts_in_other_encodings_are_read(tmp_path) -> None:
    zim, coverage = build(
        tmp_path,
        {
            "bom.txt": "\ufeffschön".encode(),
            "sixteen.txt": "größe".encode("utf-16"),
            "old.txt": "café noir".encode("cp1252"),
            "kyrillisch.html": b"<meta charset=koi8-r><p>" + "вода".encode("koi8-r"),
        },
    )
    assert coverage.articles_indexed == 4
    assert search(zim, "вода") == ["kyrillisch.html"]
    assert search(zim, "café") == ["old.html"]
    assert [note for note in coverage.notes if "Windows-1252" in note] == [
        "old.txt is not UTF-8; read as Windows-1252"
    ]


def test_chinese_is_indexed_and_found(tmp_path) -> None:
    zim, coverage = build(tmp_path, {"a.md": "# 水\n\n水必须煮沸才能安全饮用。\n"}, language="zho")
    assert coverage.articles_indexed == 1
    assert search(zim, "煮沸") == ["a.html"]
    assert '<html lang="zh">' in article(zim, "a.html")


def test_front_matter_is_taken_off() -> None:
    assert split_front_matter("---\nno end\n") == ({}, "---\nno end\n")
    found, rest = split_front_matter("---\ntitle: A: b\ntags:\n  - x\n---\ntext")
    assert found == {"title": "A: b"}
    assert rest == "text"


def test_odd_names_survive(tmp_path) -> None:
    names = [
        "a b/c d.md",
        "ünï/日本語.md",
        "100%/50% off.md",
        "a#b.md",
        "semi;colon&amp.md",
        "q'uote.md",
    ]
    files = {
        name: f"# T{number}\n\nword{'xyzuvw'[number]}ish\n" for number, name in enumerate(names)
    }
    files["index.md"] = "\n".join(
        f"- [l]({'<' + name.replace('%', '%25').replace('#', '%23').replace('&', '%26') + '>'})"
        for name in names
    )
    zim, coverage = build(tmp_path, files)
    assert coverage.articles_indexed == len(names) + 1
    assert coverage.notes == ()
    assert_all_links_resolve(zim)


# -- what is left out, and why --------------------------------------------------------------------


def encrypted_pdf() -> bytes:
    secret = "<" + "ab" * 32 + ">"
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [] /Count 0 >>",
        3: f"<< /Filter /Standard /V 2 /R 3 /Length 128 /O {secret} /U {secret} /P -44 >>".encode(),
    }
    return pdf_file(objects, "/Encrypt 3 0 R /ID [<00112233> <00112233>]")


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path) -> None:
    deep = "<div>" * 5000 + "deep"
    zim, coverage = build(
        tmp_path,
        {
            "good.md": "# Good\n\nenough\n",
            "empty.md": "",
            "blank.txt": "  \n \n",
            "only-script.html": "<script>alert(1)</script>",
            "binary.txt": b"MZ\x00\x01\x02",
            "broken.pdf": b"%PDF-1.7\nnothing",
            "fake.pdf": b"hello",
            "locked.pdf": encrypted_pdf(),
            "scan.pdf": pdf([[]]),
            "deep.html": deep,
            "tool.exe": b"MZ",
            "fake.png": b"<script>alert(1)</script>",
            "bad.svg": b"<svg",
            ".DS_Store": b"x",
        },
    )
    reasons = {skipped.path: skipped.reason for skipped in coverage.skipped}
    assert coverage.skipped_total == len(reasons)
    assert reasons == {
        "empty.md": "is empty",
        "blank.txt": "has no text in it",
        "only-script.html": "has no text in it",
        "binary.txt": "holds binary data, no text",
        "broken.pdf": "is damaged, or no PDF",
        "fake.pdf": "is damaged, or no PDF",
        "locked.pdf": "is encrypted",
        "scan.pdf": "has no text in it (a scan?)",
        "deep.html": "is nested deeper than 256 elements",
        "tool.exe": "is of a type that is not read",
        "fake.png": "is named like image/png but is something else",
        "bad.svg": reasons["bad.svg"],
    }
    assert "not well-formed" in reasons["bad.svg"]
    assert (coverage.articles_found, coverage.articles_indexed) == (11, 1)
    assert "1 hidden files were left out" in coverage.notes
    assert set(entries(zim)) == {
        "_bundler/contents.html",
        "_bundler/style.css",
        "good.html",
        "scan.pdf",
    }


def test_a_folder_without_a_readable_document_is_an_error(tmp_path) -> None:
    with pytest.raises(StepFailed) as caught:
        build(tmp_path, {"empty.md": "", "x.bin": b"1"})
    messages = [str(problem) for problem in caught.value.problems]
    assert messages == ["no document could be read", "empty.md: is empty"]


def test_unsafe_names_are_refused_all_at_once(tmp_path) -> None:
    file = write_files(tmp_path / "in", {"a.md": "x"})["a.md"]
    names = ["../up.md", "/abs.md", "con.md", "new\nline.md", "ok.md"]
    with pytest.raises(UnsafeInput) as caught:
        FolderCorpus().run(make_task(tmp_path, dict.fromkeys(names, file)))
    assert len(caught.value.problems) == 4
    assert list((tmp_path / "output").iterdir()) == []


def test_nothing_but_the_zim_is_left_behind(tmp_path) -> None:
    task = make_task(tmp_path, write_files(tmp_path / "in", MIXED))
    FolderCorpus().run(task)
    assert [path.name for path in task.output.iterdir()] == ["corpus.zim"]
    assert list((tmp_path / "store" / "work").iterdir()) == []


@pytest.mark.fault("E8")
def test_a_pdf_bomb_is_stopped_by_its_memory_limit_and_the_next_document_is_read(tmp_path) -> None:
    # 1.5 MB that become 1.5 GB of page content: one compressed MiB, again and again.
    squeeze = zlib.compressobj(9)
    start = squeeze.compress(b" " * (1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    again = squeeze.compress(b" " * (1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    bomb = start + again * 1535 + squeeze.flush()
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
        4: pdf_stream(bomb, "/Filter /FlateDecode"),
    }
    inputs = write_files(tmp_path, {"a.pdf": pdf_file(objects), "b.md": "fine\n"})
    shelf = sort_files(inputs)
    reading = read_documents(
        shelf.documents, inputs, tmp_path, lambda: None, seconds=60, memory_bytes=400 << 20
    )
    (skipped,) = reading.skipped
    assert skipped.path == "a.pdf"
    assert re.match(
        "the process working on it was stopped by SIG|needs more than 400 MiB", skipped.reason
    )
    assert [page.document.source for page in reading.pages] == ["b.md"]


@pytest.mark.fault("E8")
def test_a_document_that_takes_for_ever_is_skipped(tmp_path) -> None:
    # Nested emphasis that CommonMark parsers take quadratic time for.
    inputs = write_files(tmp_path, {"a.md": "*a **b " * 200_000, "b.md": "fine\n"})
    started = time.monotonic()
    reading = read_documents(
        sort_files(inputs).documents, inputs, tmp_path, lambda: None, seconds=3
    )
    assert time.monotonic() - started < 30
    assert [(one.path, one.reason) for one in reading.skipped] == [("a.md", "took more than 3 s")]
    assert [page.document.source for page in reading.pages] == ["b.md"]


HTML_BOMBS = {
    "deep": "<div>" * 500_000 + "x",
    "wide": "<p>x</p>" * 1_000_000,
    "attributes": "<p " + "a=1 " * 1_000_000 + ">x</p>",
    "tables in tables": "<table>" * 100_000 + "x",
    "ampersands": "&" * 3_000_000,
    "a link that never ends": "<a href='" * 300_000,
}
ALWAYS = ("deep", "a link that never ends")


@pytest.mark.fault("E8")
@pytest.mark.parametrize(
    "name",
    [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow_sweep) for name in HTML_BOMBS],
)  # fmt: skip
def test_an_html_bomb_is_read_or_skipped_in_bounded_time_and_memory(tmp_path, name) -> None:
    inputs = write_files(tmp_path, {"a.html": HTML_BOMBS[name], "b.md": "fine\n"})
    started = time.monotonic()
    reading = read_documents(
        sort_files(inputs).documents, inputs, tmp_path, lambda: None, seconds=5,
        memory_bytes=400 << 20,
    )  # fmt: skip
    assert time.monotonic() - started < 60
    there = [page.document.source for page in reading.pages]
    assert sorted([*there, *(one.path for one in reading.skipped)]) == ["a.html", "b.md"]
    assert there[-1] == "b.md"
    assert all(one.reason for one in reading.skipped)


@pytest.mark.root
@pytest.mark.parametrize("full", ["output", "store"])
@pytest.mark.fault("A4")
def test_a_full_disk_is_named_as_such(tmp_path, full) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)],
        capture_output=True,
        text=True,
    )
    if mount.returncode != 0:
        pytest.skip(f"needs root to mount a small disk: {mount.stderr.strip()}")
    try:
        text = " ".join(f"word{number}" for number in range(40_000))
        inputs = write_files(tmp_path / "in", {f"{n}.md": f"{text} {n}" for n in range(8)})
        task = make_task(tmp_path / "step", inputs)
        (small / "folder").mkdir()
        if full == "output":
            task = replace(task, output=small / "folder")
        else:
            task = replace(task, world=World(Store(small / "folder")))
        with pytest.raises(DoesNotFit, match="disk is full"):
            FolderCorpus().run(task)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# -- the same folder, the same bytes --------------------------------------------------------------


def test_two_builds_are_byte_identical_whatever_the_order_and_time(tmp_path, mixed) -> None:
    inputs = write_files(tmp_path / "again", dict(reversed(MIXED.items())))
    for path in inputs.values():
        path.touch()
    task = make_task(tmp_path, inputs)
    FolderCorpus().run(task)
    assert (task.output / "corpus.zim").read_bytes() == mixed[0].read_bytes()


def test_another_date_gives_another_file_with_another_uuid(tmp_path, mixed) -> None:
    from libzim.reader import Archive

    zim, _ = build(tmp_path, MIXED, date="2026-11-23")
    assert Archive(zim).uuid != Archive(mixed[0]).uuid
    assert Archive(zim).uuid.version == 8
    assert Archive(zim).check()


def test_a_medium_that_looks_like_an_index_is_not_changed(tmp_path) -> None:
    trap = b"OggS" + b"\x0f\x0dXapian Glass" + bytes(range(64))
    zim, _ = build(tmp_path, {"a.md": "text\n", "trap.ogg": trap})
    from libzim.reader import Archive

    assert bytes(Archive(zim).get_entry_by_path("trap.ogg").get_item().content) == trap


def test_progress_grows_to_its_total(tmp_path) -> None:
    seen: list[tuple[float, float, str]] = []
    task = make_task(
        tmp_path, write_files(tmp_path / "in", MIXED), lambda *given: seen.append(given)
    )
    FolderCorpus().run(task)
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert seen[0] == (0, 5, "articles")
    assert seen[-1] == (5, 5, "articles")


def test_the_tool_fingerprint_names_what_shapes_the_bytes() -> None:
    kinds = {kind.name: kind for kind in bundler_corpora()}
    assert set(kinds) == {"folder", "zim"}
    for package in ("libzim", "nh3", "selectolax", "markdown-it-py", "pypdfium2"):
        assert re.search(rf"{package} \d", kinds["folder"].tool())
    assert re.search(r"libzim \d", kinds["zim"].tool())


# -- the embedded handbook, and foreign readers ---------------------------------------------------


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Coverage]:
    task = make_task(tmp_path_factory.mktemp("handbook"), folder_inputs(HANDBOOK), name="handbook")
    facts = FolderCorpus().run(task)
    return task.output / "corpus.zim", Coverage.model_validate(facts)


def test_the_handbook_is_covered_whole(handbook) -> None:
    zim, coverage = handbook
    assert coverage.articles_found >= 41
    assert coverage.articles_indexed == coverage.articles_found
    assert coverage.skipped == ()
    assert coverage.notes == ()
    assert assert_all_links_resolve(zim) > 100


def test_a_passage_of_the_handbook_can_be_cited(handbook) -> None:
    assert "water/boiling.html" in search(handbook[0], "boiling water")
    page = body(handbook[0], "water/boiling.html")
    first = re.search(r'<p id="p1">(.+?)</p>', page)
    assert first is not None
    assert len(first[1].split()) > 5


@pytest.mark.parametrize("which", ["mixed", "handbook"])
def test_zimcheck_passes_our_files(which, request) -> None:
    program = oracle("zimcheck")
    zim = request.getfixturevalue(which)[0]
    # Not -I: Debian's zimcheck (libzim 8) takes a ZIM without the old title list for a broken one.
    flags = ["-0", "-C", "-M", "-F", "-P", "-R", "-U", "-X", "-L", "-D"]
    done = subprocess.run([program, *flags, str(zim)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[INFO] Overall Test Status: Pass" in done.stdout
    assert "[ERROR]" not in done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


def test_kiwix_serves_our_file(handbook, tmp_path) -> None:
    program = oracle("kiwix-serve")
    zim = tmp_path / "handbook.zim"
    zim.hardlink_to(handbook[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [program, "--address", "127.0.0.1", "--port", str(port), str(zim)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        base = f"http://127.0.0.1:{port}"
        assert b"Boiling" in _get_patiently(f"{base}/handbook/water/boiling.html")
        assert b"--paper" in _get_patiently(f"{base}/handbook/_bundler/style.css")
        found = _get_patiently(f"{base}/search?content=handbook&pattern=turbidity")
        assert b"water/turbidity.html" in found
        titles = _get_patiently(f"{base}/suggest?content=handbook&term=turbid")
        assert b"Turbidity" in titles
    finally:
        server.kill()
        server.wait()


def _get_patiently(url: str) -> bytes:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except ConnectionError:
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# -- anchors --------------------------------------------------------------------------------------


def anchored(markup: str) -> str:
    from selectolax.lexbor import LexborHTMLParser

    parser = LexborHTMLParser(markup)
    take_out(parser)
    give_anchors(parser)
    return str(parser.body.inner_html)


def test_passages_are_numbered_in_reading_order() -> None:
    assert anchored("<h1>T</h1><p>a<ul><li>b</ul><div>c<p>d</div>e<blockquote>f</blockquote>") == (
        '<h1 id="t">T</h1><p id="p1">a</p><ul id="p2"><li>b</li></ul><div><p id="p3">c</p>'
        '<p id="p4">d</p></div><p id="p5">e</p><blockquote id="p6">f</blockquote>'
    )


def test_text_in_a_box_becomes_a_paragraph() -> None:
    assert anchored("<div>a <b>b</b></div><section>c</section>") == (
        '<div><p id="p1">a <b>b</b></p></div><section><p id="p2">c</p></section>'
    )


def test_a_long_list_is_cut_into_its_items_and_a_long_table_into_rows() -> None:
    words = "w " * PASSAGE_WORDS
    assert anchored(f"<ul><li>a</li><li>{words}</li></ul>").startswith(
        '<ul><li id="p1">a</li><li id="p2">'
    )
    rows = anchored(f"<table><tr><td>a</td></tr><tr><td>{words}</td></tr></table>")
    assert '<tr id="p1"><td>a' in rows
    assert '<tr id="p2"><td>w' in rows


def test_authors_ids_stay_where_they_were_and_never_look_like_ours() -> None:
    page = anchored(
        '<p id="intro">a</p><h2 id="p1">b</h2><table id="t"><tr><td>x</table><a name="old">z</a>'
    )
    assert '<p id="p1"><span id="intro"></span>a</p>' in page
    assert '<h2 id="author-p1">b</h2>' in page
    assert '<td><span id="t"></span>x</td>' in page
    assert '<a id="old">z</a>' in page
    assert author_id("p12") == "author-p12"


def test_equal_headings_get_different_ids() -> None:
    assert re.findall(r'id="([^"]+)"', anchored("<h2>A b</h2><h2>A b</h2><h3>!</h3><h3>P1</h3>")) == [
        "a-b", "a-b-1", "section", "author-p1",
    ]  # fmt: skip


_TAG_NAMES = (
    "p div ul ol li table tr td th h1 h2 h3 b i a span blockquote dl dt dd pre section figure "
    "figcaption details summary br img form fieldset font center code"
)
_TAG = st.sampled_from(_TAG_NAMES.split())
_TREE = st.recursive(
    st.text("abc xyz", min_size=1, max_size=12),
    lambda inner: st.tuples(_TAG, st.lists(inner, max_size=4)).map(
        lambda pair: f"<{pair[0]}>{''.join(pair[1])}</{pair[0]}>"
    ),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_TREE, max_size=5).map("".join))
def test_every_word_is_in_exactly_one_passage_or_heading(markup: str) -> None:
    from selectolax.lexbor import LexborHTMLParser

    page = clean_article(anchored(markup), lambda reference, _: reference)
    parser = LexborHTMLParser(page)
    numbers, covered = [], []
    for node in parser.css("[id]"):
        if re.fullmatch(r"p\d+", node.id):
            inside = [one.id for one in node.css("[id]") if re.fullmatch(r"p\d+", one.id)]
            assert inside == [node.id], f"nested passage in {page}"
            numbers.append(int(node.id[1:]))
        if re.fullmatch(r"p\d+", node.id) or re.fullmatch("h[1-6]", node.tag):
            covered += node.text(separator=" ").split()
    assert numbers == list(range(1, len(numbers) + 1)), page
    assert sorted(covered) == sorted(parser.body.text(separator=" ").split()), page


# -- nothing that acts gets in --------------------------------------------------------------------

HTML_VECTORS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<img src=x onerror\x0c=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><a xlink:href=javascript:alert(1)><text>x</text></a></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><foreignObject><iframe onload=alert(1)>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<math><annotation-xml encoding=text/html><script>alert(1)</script>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<a href=javascript:alert(1)>x</a>",
    "<a href=' &#1; java&#9;script&#58;alert(1)'>x</a>",
    "<a href='JaVaScRiPt:alert(1)'>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<a href='vbscript:msgbox(1)'>x</a>",
    "<a href='blob:https://x/1'>x</a>",
    "<a href='file:///etc/passwd'>x</a>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=x.swf></object><embed src=x.swf>",
    "<base href=//evil.example/><p>x",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';</style>",
    "<p style='background:url(//evil.example/x)'>x",
    "<form action=//evil.example><input name=q><button formaction=javascript:alert(1)>go</button></form>",
    "<img src=//evil.example/pixel.gif>",
    "<img src=https://evil.example/pixel.gif srcset='https://evil.example/2x.gif 2x'>",
    "<img src='data:image/svg+xml,<svg onload=alert(1)>'>",
    "<img src='data:text/html;base64,PHNjcmlwdD4='>",
    "<video poster=//evil.example/x><source src=//evil.example/x onerror=alert(1)></video>",
    "<audio src=https://evil.example/a.mp3 autoplay onplay=alert(1)>",
    "<table background=//evil.example/x><td background=//evil.example/x>x",
    "<body onload=alert(1)><p>x",
    "<details open ontoggle=alert(1)>x</details>",
    "<marquee onstart=alert(1)>x</marquee>",
    "<p onmouseover=alert(1) tabindex=0 autofocus onfocus=alert(1)>x",
    "<select><style></select><img src=x onerror=alert(1)></style>",
    "<xmp><p title='</xmp><img src=x onerror=alert(1)>'>",
    "<textarea></textarea><script>alert(1)</script></textarea>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<!--[if IE]><script>alert(1)</script><![endif]-->",
    "<?xml-stylesheet href=javascript:alert(1)?><p>x",
    "<title></title><img src=x onerror=alert(1)></title>",
    "<a href=x id=__proto__ name=cookie ping=//evil.example target=_top download>x</a>",
    "<div is=x-y slot=z><slot></slot><portal src=//evil.example></portal></div>",
    "<p title=\"' onclick=alert(1) x='\">x",
    "<b id=\"x' onclick='alert(1)\">x",
]  # fmt: skip
MARKDOWN_VECTORS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JAVASCRIPT:alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.gif)",
    "![x](data:image/svg+xml;base64,PHN2Zy8+)",
    '![x" onerror="alert(1)](x.png)',
    '[x](x "\\" onclick=\\"alert(1)")',
    "[x]\n\n[x]: javascript:alert(1)",
    "```html onclick=alert(1)\n<script>alert(1)</script>\n```",
    "# <svg onload=alert(1)>",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<a href='javascript:alert(1)'>x</a>",
    '---\ntitle: <script>alert(1)</script>\ndescription: "><img src=x onerror=alert(1)>\n---\nx',
]

_ALLOWED_TAG_NAMES = (
    "html head meta title link body nav main a abbr address article aside audio b bdi bdo blockquote"
    " br caption center cite code col colgroup data dd del details dfn div dl dt em figcaption figure"
    " footer h1 h2 h3 h4 h5 h6 header hgroup hr i img ins kbd li mark ol p pre q rp rt ruby s samp"
    " section small source span strike strong sub summary sup table tbody td tfoot th thead time tr"
    " tt u ul var video wbr"
)
_ALLOWED_TAGS = set(_ALLOWED_TAG_NAMES.split())


def assert_inert(page: str) -> None:
    """Parse a page as a browser does and look at everything that could act or fetch."""
    from selectolax.lexbor import LexborHTMLParser

    parser = LexborHTMLParser(page)
    for node in parser.root.traverse():
        if node.is_comment_node:
            assert node.comment_content.strip("/") == "htdig_noindex"
            continue
        assert node.tag in _ALLOWED_TAGS, f"{node.tag} in {page}"
        for name, value in node.attributes.items():
            value = (value or "").strip().lower()
            assert not name.startswith("on"), f"{name} in {page}"
            assert name not in (
                "style",
                "srcset",
                "ping",
                "target",
                "background",
                "poster",
                "action",
            )
            if name == "href" and ":" in value.split("/")[0]:
                assert value.startswith(("http:", "https:", "mailto:", "tel:")), page
            if name == "src":
                assert not re.match(r"[a-z+.-]+:|//|\\", value) or value.startswith(
                    "data:image/png"
                )
        if node.tag == "meta" and node.attributes.get("http-equiv"):
            assert node.attributes["http-equiv"] == "Content-Security-Policy"
        if node.tag == "link":
            assert node.attributes["href"] in ("_bundler/style.css", "style.css")


def test_hostile_documents_come_out_inert(tmp_path) -> None:
    files: dict[str, str | bytes] = {"good.md": "good\n"}
    for number, vector in enumerate(HTML_VECTORS):
        files[f"h{number}.html"] = f"<p>before {vector} after</p>"
        files[f"bare{number}.html"] = vector
    for number, vector in enumerate(MARKDOWN_VECTORS):
        files[f"m{number}.md"] = vector
        files[f"t{number}.txt"] = vector
    zim, coverage = build(tmp_path, files)
    pages = [path for path, mime in entries(zim).items() if mime == "text/html"]
    assert len(pages) == coverage.articles_indexed + 1
    assert len(pages) > 100
    for path in pages:
        assert_inert(article(zim, path))


@pytest.fixture(scope="module")
def browser():
    program = oracle("chromium")
    with playwright_api().sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


def watched(browser, markup: str) -> list[str]:
    """Open a page without any policy, touch everything, and return what it tried to do."""
    page = browser.new_page()
    tried: list[str] = []

    def answer(route) -> None:
        if route.request.url == "http://reader.example/":
            route.fulfill(body=f"<!DOCTYPE html><body>{markup}", content_type="text/html")
            return
        tried.append(route.request.url)
        route.abort()

    def dismiss(dialog) -> None:
        tried.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.route("**/*", answer)
    page.on("dialog", dismiss)
    page.goto("http://reader.example/")
    page.evaluate(
        "document.querySelectorAll('body *').forEach(e => { e.dispatchEvent(new Event('mouseover'));"
        " if (!/^(https?|mailto|tel):/.test(e.href || '')) e.click?.(); e.focus?.() })"
    )
    page.wait_for_timeout(300)
    page.close()
    return tried


@pytest.mark.browser
def test_a_browser_without_any_policy_finds_nothing_to_run_or_fetch(browser) -> None:
    vectors = [*HTML_VECTORS, *(markdown_html(vector) for vector in MARKDOWN_VECTORS)]
    inert = [clean_article(anchored(vector), lambda *_: None) for vector in vectors]
    assert watched(browser, "<hr>".join(inert)) == []


@pytest.mark.browser
@pytest.mark.parametrize(
    ("vector", "seen"),
    [
        ("<img src=x onerror=alert(1)>", "dialog 1"),
        ("<img src=//evil.example/x.gif>", "http://evil.example/x.gif"),
        ("<a href=javascript:alert(2)>x</a>", "dialog 2"),
    ],
)
def test_the_watching_browser_notices_what_acts(browser, vector, seen) -> None:
    assert seen in watched(browser, vector)


def test_the_test_for_inertness_notices_what_it_looks_for() -> None:
    for vector in ("<p onclick=x>", "<script>", "<a href=javascript:x>", "<img src=//x>", "<svg>"):
        with pytest.raises(AssertionError):
            assert_inert(vector)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*HTML_VECTORS, "<p>", "</p>", "<table>", "</table>", "<b a=1>", "-->", "]]>"]
        ),
        max_size=6,
    ).map("".join)
)
def test_mixtures_of_hostile_markup_come_out_inert(markup: str) -> None:
    assert_inert(clean_article(anchored(markup), lambda reference, _: reference))


SVG_VECTORS = [
    '<script>alert(1)</script>',
    '<g onload="alert(1)"/>',
    '<a href="javascript:alert(1)"><text>x</text></a>',
    '<a xlink:href="https://evil.example"><text>x</text></a>',
    '<image href="https://evil.example/x.png"/>',
    '<image xlink:href="data:image/svg+xml;base64,PHN2Zy8+"/>',
    '<use href="https://evil.example/x.svg#a"/>',
    '<foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><script>1</script></body></foreignObject>',
    '<animate attributeName="href" values="javascript:alert(1)"/>',
    '<set attributeName="onclick" to="alert(1)"/>',
    '<style>@import "https://evil.example/x.css";</style>',
    '<style>rect{fill:url(https://evil.example/x)}</style>',
    '<rect style="fill:url(//evil.example/x)"/>',
    '<rect fill="url( https://evil.example/x )"/>',
    '<rect style="fill:u\\72l(//evil.example/x)"/>',
    '<html:script xmlns:html="http://www.w3.org/1999/xhtml">alert(1)</html:script>',
    '<x:script xmlns:x="http://www.w3.org/2000/svg">alert(1)</x:script>',
    '<handler xmlns:ev="http://www.w3.org/2001/xml-events" ev:event="load">alert(1)</handler>',
]  # fmt: skip


@pytest.mark.parametrize("vector", SVG_VECTORS)
def test_hostile_drawings_come_out_inert(vector: str) -> None:
    drawing = (
        '<?xml version="1.0"?><?xml-stylesheet href="https://evil.example/x.css"?>'
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'{vector}<rect id="kept" fill="url(#g)"/></svg>'
    )
    clean = clean_drawing(drawing.encode()).decode()
    assert 'id="kept" fill="url(#g)"' in clean
    for bad in ("evil", "alert", "script", "<set", "<animate", "data:image/svg", "foreign"):
        assert bad not in clean


def test_drawings_with_entities_or_endless_nesting_are_refused() -> None:
    laughs = b'<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><svg>&b;</svg>'
    with pytest.raises(ValueError, match="entities"):
        clean_drawing(laughs)
    nested = b'<svg xmlns="http://www.w3.org/2000/svg">' + b"<g>" * 100_000
    with pytest.raises(ValueError, match="nested deeper"):
        clean_drawing(nested)
    with pytest.raises(ValueError, match="not an SVG"):
        clean_drawing(b"<html/>")


def test_a_title_cannot_play_with_a_terminal(tmp_path) -> None:
    file = write_files(tmp_path, {"a.html": "<title>a&#27;[31mred&#x202e;b</title><p>x"})["a.html"]
    assert read_document(file, "html")["title"] == "a [31mred b"


# -- small parts ----------------------------------------------------------------------------------


def test_the_main_document_is_the_index_at_the_top() -> None:
    shelf = sort_files(["sub/index.md", "README.md", "Index.html", "z.md"])
    main = main_document(shelf.documents)
    assert main is not None
    assert main.source == "Index.html"
    assert main_document(sort_files(["sub/index.md"]).documents) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_reference_leads_out_of_the_zim(reference: str) -> None:
    document = sort_files(["a/b.md"]).documents[0]
    links = Links({"a/b.md": "a/b.html"}, frozenset({"m.png"}), {"a/b.html": frozenset({"p1"})})
    for is_resource in (False, True):
        rewritten = links.rewrite(document, reference, is_resource=is_resource)
        assert rewritten is None or not rewritten.startswith("/")
        if rewritten is not None and ":" in rewritten:
            pytest.fail(rewritten)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        text, _ = decode(data)
    except ValueError:
        return
    assert "\r" not in text
    assert "\0" not in text


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=20))
def test_the_picture_of_a_zim_depends_on_its_name_only(name: str) -> None:
    picture = illustration_png(name)
    assert picture == illustration_png(name)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) < 4000
