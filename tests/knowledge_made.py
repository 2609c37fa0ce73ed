"""Folders, PDFs and ZIMs for the tests of `bundler.builtin.knowledge`, made on the spot."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from bundler.builtin.knowledge.folder import FolderCorpus
from bundler.hookspecs import Task
from bundler.proof import Coverage
from bundler.store import Store
from bundler.world import World

PARAMETERS = {
    "name": "clinic",
    "title": "Clinic notes",
    "language": "eng",
    "date": "2026-11-22",
    "creator": "The bundler authors",
    "description": "Notes for a small clinic",
    "licence": "CC0-1.0",
}


def write_files(folder: Path, files: dict[str, str | bytes]) -> dict[str, Path]:
    """Write `files` below `folder` and return them as the inputs of a step."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {name: folder / name for name in files}


def folder_inputs(folder: Path) -> dict[str, Path]:
    """Return all files below `folder` as the inputs of a step."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def make_task(place: Path, inputs: dict[str, Path], progress=lambda *_: None, **parameters) -> Task:
    """Return a step to do whose output folder lies in `place`."""
    output = place / "output"
    output.mkdir(parents=True)
    world = World(Store(place / "store"))
    return Task("build", inputs, PARAMETERS | parameters, output, progress, world)


def build(place: Path, files: dict[str, str | bytes], **parameters) -> tuple[Path, Coverage]:
    """Make a ZIM of `files`; return where it is and its coverage."""
    task = make_task(place, write_files(place / "input", files), **parameters)
    facts = FolderCorpus().run(task)
    return task.output / "corpus.zim", Coverage.model_validate(facts)


def article(zim: Path, path: str) -> str:
    """Return an entry of a ZIM as text."""
    from libzim.reader import Archive

    return bytes(Archive(zim).get_entry_by_path(path).get_item().content).decode()


def body(zim: Path, path: str) -> str:
    """Return what lies between `<main>` and `</main>` of an article."""
    return article(zim, path).partition("<main>\n")[2].partition("\n</main>")[0]


def entries(zim: Path) -> dict[str, str]:
    """Return path → MIME type of all entries a reader can open."""
    from libzim.reader import Archive

    archive = Archive(zim)
    found = [archive._get_entry_by_id(number) for number in range(archive.entry_count)]
    return {entry.path: entry.get_item().mimetype for entry in found}


def search(zim: Path, words: str) -> list[str]:
    """Return the paths that a full-text search finds."""
    from libzim.reader import Archive
    from libzim.search import Query, Searcher

    return list(Searcher(Archive(zim)).search(Query().set_query(words)).getResults(0, 50))


def png(side: int = 2) -> bytes:
    """Return a small white PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    rows = (b"\0" + b"\xff" * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def pdf(pages: list[list[str]], *, title: str = "", trailer: str = "") -> bytes:
    """Return a PDF with these lines of text on its pages, written by hand (ISO 32000-1, 7.5)."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(count))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        4 + 2 * count: f"<< /Title ({title}) >>".encode(),
    }
    for number, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode()
        objects[4 + 2 * number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>"
        ).encode()
        objects[5 + 2 * number] = pdf_stream(stream)
    return pdf_file(objects, f"/Info {4 + 2 * count} 0 R {trailer}")


def pdf_stream(data: bytes, filters: str = "") -> bytes:
    """Return a stream object of a PDF."""
    return f"<< /Length {len(data)} {filters} >>\nstream\n".encode() + data + b"\nendstream"


def pdf_file(objects: dict[int, bytes], trailer: str = "") -> bytes:
    """Return a PDF of numbered objects with a right cross-reference table."""
    out = bytearray(b"%PDF-1.7\n")
    offsets = {}
    for number in sorted(objects):
        offsets[number] = len(out)
        out += f"{number} 0 obj\n".encode() + objects[number] + b"\nendobj\n"
    start, size = len(out), max(objects) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{offsets[number]:010d} 00000 n \n".encode() for number in range(1, size))
    out += f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n".encode()
    return bytes(out) + f"startxref\n{start}\n%%EOF\n".encode()


def playwright_api() -> Any:
    """Return Playwright's synchronous API, or skip (loud where required)."""
    try:
        from playwright import sync_api
    except ImportError:
        reason = "playwright is not installed"
        if os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return sync_api


def oracle(program: str) -> str:
    """Return the path of a foreign program that judges our files, or skip (loud where required)."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed (Debian: zim-tools, kiwix-tools, chromium)"
        if os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
