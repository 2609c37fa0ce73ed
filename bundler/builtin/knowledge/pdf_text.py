"""The text of a PDF, page by page. Runs only in a child process: PDF readers crash."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

MAX_PAGES = 20_000
MAX_CHARACTERS = 32 * 2**20
_PARAGRAPH_CHARACTERS = 900


def pdf_html(path: Path) -> tuple[str, str, str]:
    """Return (title, HTML, note) of a PDF; every page begins with a heading with id `page-N`.

    Raises:
        ValueError: it is damaged, encrypted or has no text.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise ValueError(_refusal(str(error))) from error
    try:
        return _html_of(document)
    finally:
        document.close()


def _html_of(document: Any) -> tuple[str, str, str]:
    import pypdfium2

    count = len(document)
    if count > MAX_PAGES:
        raise ValueError(f"has {count:,} pages; the limit is {MAX_PAGES:,}")
    parts, total, unreadable = [], 0, []
    for number in range(1, count + 1):
        try:
            text = page_text(document, number)
        except pypdfium2.PdfiumError:
            unreadable.append(number)
            continue
        total += len(text)
        if total > MAX_CHARACTERS:
            raise ValueError(f"has more than {MAX_CHARACTERS:,} characters of text")
        if text.strip():
            parts.append(f'<h2 id="page-{number}">Page {number}</h2>\n{page_html(text)}')
    if not parts:
        raise ValueError("has no text in it (a scan?)")
    title = str(document.get_metadata_dict().get("Title") or "").strip()
    note = f"pages that could not be read: {unreadable}" if unreadable else ""
    return title, "\n".join(parts), note


def _refusal(message: str) -> str:
    if "password" in message.lower() or "security" in message.lower():
        return "is encrypted"
    return "is damaged, or no PDF"


def page_text(document: Any, number: int) -> str:
    """Return the text of page `number`, counted from 1, with words cut at line ends joined."""
    page = document[number - 1]
    try:
        text_page = page.get_textpage()
        try:
            text = str(text_page.get_text_bounded())
        finally:
            text_page.close()
    finally:
        page.close()
    # pdfium writes U+FFFE (or U+0002) for a hyphen that only breaks a word.
    text = re.sub("[\ufffe\x02](?:\r\n|\n)?", "", text)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def page_html(text: str) -> str:
    """Return a page's lines as paragraphs.

    A PDF knows no paragraphs, only lines. One ends at an empty line, after a sentence that ends
    short of the usual line, or, when nothing else tells, after a sentence beyond 900 characters.
    """
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    usual = lengths[len(lengths) * 3 // 4] if lengths else 0
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line:
            paragraphs[-1].append(line)
        if not line or _ends_paragraph(line, paragraphs[-1], usual):
            paragraphs.append([])
    return "\n".join(f"<p>{html.escape(' '.join(lines))}</p>" for lines in paragraphs if lines)


def _ends_paragraph(line: str, paragraph: list[str], usual: int) -> bool:
    ends = line.endswith((".", "!", "?", ":", "。", "”", '"'))
    return ends and (len(line) < 0.8 * usual or sum(map(len, paragraph)) > _PARAGRAPH_CHARACTERS)
