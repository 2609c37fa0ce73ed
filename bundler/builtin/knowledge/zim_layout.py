"""A bounded reader of the ZIM file format (wiki.openzim.org/wiki/ZIM_file_format).

It looks at a file before any library does: magic, version, counts, and that every position lies
inside the file; and it finds where an uncompressed entry's bytes lie. It trusts no number.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler.errors import DamagedError

MAGIC = 0x044D495A
HEADER_BYTES = 80
CHECKSUM_BYTES = 16
UUID_SPAN = (8, 24)
_HEADER = struct.Struct("<IHH16sIIQQQQIIQ")
_NO_PAGE = 0xFFFFFFFF
_NO_POSITION = 0xFFFFFFFFFFFFFFFF
_MAX_ENTRY_BYTES = 4096
_REDIRECT = 0xFFFF
_UNCOMPRESSED = (0, 1)


@dataclass(frozen=True, slots=True)
class ZimHeader:
    """The fixed first 80 bytes, checked against the size of the file."""

    major: int
    minor: int
    uuid: bytes
    entry_count: int
    cluster_count: int
    path_pointers: int
    title_pointers: int | None
    cluster_pointers: int
    mime_list: int
    main_page: int | None
    checksum: int
    """Position of the final MD5: the last 16 bytes of the file."""


def read_header(data: bytes | mmap.mmap, size_bytes: int, where: str) -> ZimHeader:
    """Return the header of a ZIM whose first bytes are `data`.

    Raises:
        DamagedError: no ZIM, cut short, or with positions outside the file.
    """
    if len(data) < HEADER_BYTES:
        raise DamagedError(f"is no ZIM file: it has only {size_bytes} bytes", where=where)
    (magic, major, minor, uuid, entries, clusters, paths, titles, cluster_list, mimes, main, _,
     checksum) = _HEADER.unpack(data[:HEADER_BYTES])  # fmt: skip
    if magic != MAGIC:
        raise DamagedError("is no ZIM file: it does not begin as one", where=where)
    if major not in (5, 6):
        raise DamagedError(f"is of ZIM version {major}, only 5 and 6 are known", where=where)
    header = ZimHeader(
        major, minor, uuid, entries, clusters, paths,
        None if titles == _NO_POSITION else titles, cluster_list, mimes,
        None if main == _NO_PAGE else main, checksum,
    )  # fmt: skip
    problem = _problem(header, size_bytes)
    if problem:
        raise DamagedError(
            f"is damaged or cut short: {problem}",
            where=where,
            hint="fetch it again and compare its SHA-256 with the publisher's",
        )
    return header


def _problem(header: ZimHeader, size: int) -> str:
    """Return what is wrong with the positions of a header, or nothing."""
    if header.mime_list < HEADER_BYTES:
        return "it has no checksum, so damage could not be noticed"
    if header.checksum != size - CHECKSUM_BYTES:
        return f"it should have {header.checksum + CHECKSUM_BYTES:,} bytes and has {size:,}"
    tables = [
        ("list of types", header.mime_list, 1),
        ("table of paths", header.path_pointers, 8 * header.entry_count),
        ("table of clusters", header.cluster_pointers, 8 * header.cluster_count),
    ]
    if header.title_pointers is not None:
        tables.append(("table of titles", header.title_pointers, 4 * header.entry_count))
    for name, start, length in tables:
        if start < HEADER_BYTES or start + length > header.checksum:
            return f"its {name} lies outside the file"
    if header.main_page is not None and header.main_page >= header.entry_count:
        return "its main page does not exist"
    return ""


def check_header(path: Path, where: str = "") -> ZimHeader:
    """Read and check the header of the file at `path`. Raises as `read_header`."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        return read_header(stream.read(HEADER_BYTES), size, where or path.name)


@contextmanager
def mapped(path: Path, *, writable: bool = False) -> Iterator[mmap.mmap]:
    """Map a file into memory, so that 100 GB are touched only where they are looked at."""
    with path.open("r+b" if writable else "rb") as stream:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        with mmap.mmap(stream.fileno(), 0, access=access) as data:
            yield data


def find_uncompressed(data: mmap.mmap, header: ZimHeader, path: str) -> tuple[int, int] | None:
    """Return (start, end) of the bytes of entry `path` (`X/title/xapian`), if it is there.

    Raises:
        DamagedError: the way to it leads outside the file, or its cluster is compressed.
    """
    number = _search(data, header, path.encode())
    if number is None:
        return None
    position = _entry_position(data, header, number)
    kind, cluster, blob = struct.unpack_from("<H6xII", data, position)
    if kind == _REDIRECT or cluster >= header.cluster_count:
        raise DamagedError(f"entry {path} leads nowhere", where="ZIM")
    (start,) = struct.unpack_from("<Q", data, header.cluster_pointers + 8 * cluster)
    if start >= header.checksum or data[start] & 0x0F not in _UNCOMPRESSED:
        raise DamagedError(f"entry {path} lies in a compressed cluster or nowhere", where="ZIM")
    return _blob(data, header, start, blob, path)


def _blob(
    data: mmap.mmap, header: ZimHeader, cluster: int, blob: int, path: str
) -> tuple[int, int]:
    # Bit 4 of a cluster's first byte: offsets are of 8 bytes instead of 4.
    width, form = (8, "<QQ") if data[cluster] & 0x10 else (4, "<II")
    offsets = cluster + 1 + width * blob
    if offsets + 2 * width > header.checksum:
        raise DamagedError(f"entry {path} lies outside the file", where="ZIM")
    first, last = struct.unpack_from(form, data, offsets)
    start, end = cluster + 1 + first, cluster + 1 + last
    if not start <= end <= header.checksum:
        raise DamagedError(f"entry {path} lies outside the file", where="ZIM")
    return start, end


def _search(data: mmap.mmap, header: ZimHeader, path: bytes) -> int | None:
    """Find an entry by namespace and path: the table of paths is sorted."""
    low, high = 0, header.entry_count
    while low < high:
        middle = (low + high) // 2
        found = _entry_path(data, header, middle)
        if found == path:
            return middle
        low, high = (middle + 1, high) if found < path else (low, middle)
    return None


def _entry_position(data: mmap.mmap, header: ZimHeader, number: int) -> int:
    (position,) = struct.unpack_from("<Q", data, header.path_pointers + 8 * number)
    if not HEADER_BYTES <= position <= header.checksum - 16:
        raise DamagedError(f"entry {number} lies outside the file", where="ZIM")
    return int(position)


def _entry_path(data: mmap.mmap, header: ZimHeader, number: int) -> bytes:
    position = _entry_position(data, header, number)
    (kind,) = struct.unpack_from("<H", data, position)
    start = position + (12 if kind == _REDIRECT else 16)
    end = data.find(b"\0", start, min(start + _MAX_ENTRY_BYTES, header.checksum))
    if end < 0:
        raise DamagedError(f"entry {number} has no end", where="ZIM")
    return bytes(data[position + 3 : position + 4]) + b"/" + data[start:end]
