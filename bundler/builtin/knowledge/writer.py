"""The reproducible ZIM writer: the same entries give the same bytes.

libzim with one worker differs between two runs only in random UUIDs (the file's own and those of
its Xapian indexes) and hence in the final MD5. They are replaced by values derived from all other
bytes. Runs in a child process, since libzim prints to standard output.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge.limited_child import ChildFailed, answer_requests
from bundler.builtin.knowledge.zim_layout import (
    CHECKSUM_BYTES,
    UUID_SPAN,
    find_uncompressed,
    mapped,
    read_header,
)
from bundler.errors import DamagedError

INDEX_PATHS = ("X/fulltext/xapian", "X/title/xapian")
_GLASS = b"\x0f\x0dXapian Glass"
_GLASS_UUID = len(_GLASS) + 2  # after the magic, two bytes of version
_BLOCK = 1 << 24


class ZimWriter:
    """Writes entries, in the order they are given, into a new ZIM file.

    An entry is a dict: `path`, `title`, `mime_type`, `front` (an article, found by search and
    title) and either `text` or `file`.
    """

    def __init__(self, path: Path, *, language: str, main_path: str) -> None:
        from libzim.writer import Creator

        self._path = path
        self._creator = Creator(path).config_indexing(True, language).config_nbworkers(1)
        self._creator.set_mainpath(main_path)
        self._creator.__enter__()

    def metadata(self, values: dict[str, str], illustration: bytes) -> None:
        """Add what a reader shows about the whole: Title, Language, Date…"""
        for name, value in sorted(values.items()):
            self._creator.add_metadata(name, value)
        self._creator.add_illustration(48, illustration)

    def add(self, entry: dict[str, Any]) -> None:
        """Add one entry."""
        self._creator.add_item(_item_type()(entry))

    def finish(self) -> None:
        """Finish the indexes and the file, and make its bytes reproducible."""
        self._creator.__exit__(None, None, None)
        make_reproducible(self._path)


_made: list[Any] = []


def _item_type() -> Any:
    """Return our class of libzim items; made late, since importing libzim takes a while."""
    if _made:
        return _made[0]
    from libzim.writer import FileProvider, Hint, IndexData, Item, StringProvider

    class NotIndexed(IndexData):  # type: ignore[misc]
        def has_indexdata(self) -> bool:
            return False

        def get_title(self) -> str:
            return ""

        def get_content(self) -> str:
            return ""

        def get_keywords(self) -> str:
            return ""

        def get_wordcount(self) -> int:
            return 0

        def get_geoposition(self) -> None:
            return None

    class Entry(Item):  # type: ignore[misc]
        def __init__(self, entry: dict[str, Any]) -> None:
            super().__init__()
            self._entry = entry

        def get_path(self) -> str:
            return str(self._entry["path"])

        def get_title(self) -> str:
            return str(self._entry["title"])

        def get_mimetype(self) -> str:
            return str(self._entry["mime_type"])

        def get_hints(self) -> dict[Any, int]:
            compress = self._entry["mime_type"].startswith(("text/", "image/svg"))
            return {Hint.FRONT_ARTICLE: self._entry["front"], Hint.COMPRESS: compress}

        def get_contentprovider(self) -> Any:
            if "file" in self._entry:
                return FileProvider(self._entry["file"])
            return StringProvider(self._entry["text"])

    class Aside(Entry):
        """A page that is no article: in no index."""

        def get_indexdata(self) -> IndexData:
            return NotIndexed()

    def make(entry: dict[str, Any]) -> Item:
        return (Entry if entry["front"] else Aside)(entry)

    _made.append(make)
    return make


def make_reproducible(path: Path) -> None:
    """Replace the random parts of a ZIM by values derived from the rest; write its MD5 anew."""
    with mapped(path, writable=True) as data:
        header = read_header(data, len(data), path.name)
        spans = [UUID_SPAN]
        for name in INDEX_PATHS:
            found = find_uncompressed(data, header, name)
            if found is not None:
                spans.append(_glass_uuid(data, found, name))
        for start, end in spans:
            data[start:end] = bytes(end - start)
        derived = bytearray(_hash(data, header.checksum, hashlib.sha256())[:16])
        derived[6] = derived[6] & 0x0F | 0x80  # RFC 9562: version 8, made in our own way
        derived[8] = derived[8] & 0x3F | 0x80
        for start, end in spans:
            data[start:end] = bytes(derived)
        # The format demands MD5; it detects accidents only, our manifest does the rest.
        checksum = _hash(data, header.checksum, hashlib.md5(usedforsecurity=False))
        data[header.checksum : header.checksum + CHECKSUM_BYTES] = checksum
        data.flush()


def _glass_uuid(data: mmap.mmap, span: tuple[int, int], name: str) -> tuple[int, int]:
    start, end = span
    if data[start : start + len(_GLASS)] != _GLASS or end - start < _GLASS_UUID + 16:
        raise DamagedError(
            f"{name} is no Xapian Glass index: unknown version of libzim", where="ZIM"
        )
    return start + _GLASS_UUID, start + _GLASS_UUID + 16


def _hash(data: mmap.mmap, end: int, state: Any) -> bytes:
    for position in range(0, end, _BLOCK):
        state.update(data[position : min(position + _BLOCK, end)])
    return bytes(state.digest())


class _Writing:
    """The child's side: begin, add…, finish."""

    def __init__(self) -> None:
        self._writer: ZimWriter | None = None

    def __call__(self, request: dict[str, Any]) -> int:
        try:
            return self._do(request)
        except (RuntimeError, OSError, DamagedError) as error:
            raise ChildFailed(str(error)) from error

    def _do(self, request: dict[str, Any]) -> int:
        if "begin" in request:
            self._writer = ZimWriter(
                Path(request["begin"]), language=request["language"], main_path=request["main"]
            )
            self._writer.metadata(request["metadata"], bytes.fromhex(request["illustration"]))
            return 0
        assert self._writer is not None
        for entry in request.get("add", ()):
            self._writer.add(entry)
        if request.get("finish"):
            self._writer.finish()
        return len(request.get("add", ()))


if __name__ == "__main__":
    answer_requests(_Writing())
