"""The ZIP container of an EPUB (OCF 3.3), read with limits and nothing ever extracted by name."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler.value import check_relative_path

MAX_ENTRIES = 20_000
MAX_TOTAL_BYTES = 2**30
MAX_ENTRY_BYTES = 64 * 2**20
"""No chapter or picture of a book is larger; what is, is refused rather than read."""
MAX_RATIO = 200
"""Deflate reaches about 1000; text reaches 3 to 10 and an empty page perhaps 50."""
_SMALL_BYTES = 1 << 20
"""Under this a high ratio does no harm."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MIMETYPE = b"application/epub+zip"


class BookRefused(Exception):
    """A book that cannot or must not be read; the message is the reason for the report."""


@dataclass(frozen=True)
class Archive:
    """An open EPUB whose directory has been checked."""

    _zip: zipfile.ZipFile
    names: frozenset[str]

    def read(self, name: str) -> bytes:
        """Return an entry's bytes.

        Raises:
            BookRefused: it is not there, damaged, or larger than it says.
        """
        if name not in self.names:
            raise BookRefused(f"lacks {name!r}, which it names")
        try:
            entry = self._zip.getinfo(name)
            with self._zip.open(entry) as stream:
                data = stream.read(MAX_ENTRY_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise BookRefused(f"is damaged: {name}: {error}") from error
        if len(data) != entry.file_size:
            raise BookRefused(f"is damaged: {name} is not as long as it says")
        return data


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an EPUB after looking at its whole directory.

    Raises:
        BookRefused: it is no EPUB, damaged, or built to do harm.
    """
    try:
        book = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise BookRefused(f"is no EPUB: {error}") from error
    with book:
        entries = [entry for entry in book.infolist() if not entry.is_dir()]
        _check_sizes(entries)
        for entry in entries:
            _check_entry(entry)
        names = frozenset(entry.filename for entry in entries)
        if len(names) != len(entries):
            raise BookRefused("has two entries of one name")
        archive = Archive(book, names)
        if "mimetype" not in names or archive.read("mimetype").strip() != _MIMETYPE:
            raise BookRefused("is no EPUB: its mimetype is not application/epub+zip")
        yield archive


def _check_sizes(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise BookRefused(f"has {len(entries):,} entries, the limit is {MAX_ENTRIES:,}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise BookRefused(f"unpacks to {total >> 20:,} MiB, the limit is {MAX_TOTAL_BYTES >> 20:,}")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    try:
        check_relative_path(name)
    except ValueError as error:
        raise BookRefused(f"holds an unsafe name: {error}") from error
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise BookRefused(f"holds a symbolic link: {name}")
    if entry.flag_bits & 0x1:
        raise BookRefused("is encrypted")
    if entry.compress_type not in _METHODS:
        raise BookRefused(f"packs {name} in a way that EPUB does not know")
    if entry.file_size > MAX_ENTRY_BYTES:
        raise BookRefused(f"holds {name} of {entry.file_size >> 20} MiB")
    if entry.file_size > max(_SMALL_BYTES, entry.compress_size * MAX_RATIO):
        raise BookRefused(f"holds {name}, which grows more than {MAX_RATIO} times")
