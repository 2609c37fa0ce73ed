"""Plain text: bytes to characters, and characters to paragraphs."""

from __future__ import annotations

import codecs
import html
import re

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_MAX_TITLE = 80


def decode(data: bytes, *, is_html: bool = False) -> tuple[str, str]:
    """Return the text of `data` and the name of its encoding.

    A byte-order mark counts first, then what an HTML page says of itself, then UTF-8; what is
    none of these is read as Windows-1252, and the caller says so.

    Raises:
        ValueError: these bytes are no text.
    """
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "")
    if not encoding and b"\0" in data:
        raise ValueError("holds binary data, no text")
    declared = _CHARSET.search(data[:4096]) if is_html else None
    # A page that has a readable <meta> is not UTF-16, whatever it claims (WHATWG encoding sniffing).
    claim = declared[1].decode() if declared else ""
    for name in (encoding, "utf-8", "" if claim.lower().startswith("utf") else claim):
        if name and (text := _try(data, name)) is not None:
            return _tidy(text), name
    return _tidy(data.decode("cp1252", "replace")), "cp1252"


def _tidy(text: str) -> str:
    return _CONTROLS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def _try(data: bytes, encoding: str) -> str | None:
    try:
        # Only text encodings: `bytes.decode` refuses base64, zlib and the like.
        return data.decode(encoding)
    except (UnicodeError, LookupError):
        return None


def text_title(text: str) -> str:
    """Return the first line if it stands alone and is short enough for a title, else nothing."""
    first, _, rest = text.strip().partition("\n")
    alone = not rest or not rest.partition("\n")[0].strip(" \t=-~#*")
    return first.strip(" \t=-#*") if alone and len(first) <= _MAX_TITLE else ""


def text_html(text: str) -> str:
    """Return plain text as HTML: paragraphs at empty lines, tables and poems in `pre`."""
    blocks = re.split(r"\n[ \t]*\n+", text.strip("\n"))
    return "\n".join(_block(block) for block in blocks if block.strip())


def _block(block: str) -> str:
    # Several spaces or tabs inside a line are layout that a paragraph would lose.
    if re.search(r"\S(?: {3,}|\t)\S", block):
        return f"<pre>{html.escape(block)}</pre>"
    return f"<p>{html.escape(block.strip())}</p>"
