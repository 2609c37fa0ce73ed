"""From spans to bytes: ranges of old files, and pieces that zstd unpacks within what was said."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from bundler.descriptors import read_at
from bundler.errors import DamagedError, DoesNotFit, UnsafeInput
from bundler.segments import open_plain
from bundler.update.delta import NEAR_BYTES, SPAN_BYTES, Near, New, Old, Repacked, Spanned
from bundler.update.reading import Pieces

WINDOW_LOG = 26
"""zstd reaches back this far (64 MiB): an old range and a piece together, and no more is allocated."""
_BLOCK = 1 << 20

assert NEAR_BYTES + SPAN_BYTES <= 1 << WINDOW_LOG


def read_old(root: Path, path: str, offset: int, size_bytes: int) -> bytes:
    """Return a range of a file of the old version.

    Raises:
        DamagedError: the file ends before it does.
    """
    with open_plain(root / path) as descriptor:
        data = read_at(descriptor, size_bytes, offset)
        while 0 < len(data) < size_bytes:
            more = read_at(descriptor, size_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
    if len(data) != size_bytes:
        raise DamagedError("ends before it should", where=str(root / path))
    return data


def span_bytes(
    spans: Iterable[Spanned], start: int, old_root: Path, pieces: Pieces
) -> Iterator[bytes]:
    """Yield the bytes that spans stand for, from `start` on, in blocks of bounded size.

    Raises:
        DamagedError: an old file or a piece is not what it should be.
        UnsafeInput: a piece would unpack to more or less than was said.
    """
    position = 0
    for span in spans:
        skip = max(0, start - position)
        position += span.size_bytes
        if skip >= span.size_bytes:
            continue
        if isinstance(span, Old):
            yield from _old_blocks(span, skip, old_root)
        elif isinstance(span, Repacked):
            yield repacked(span, old_root, pieces)[skip:]
        else:
            yield unpacked(span, _near_bytes(span.near, old_root), pieces)[skip:]


def _old_blocks(span: Old, skip: int, old_root: Path) -> Iterator[bytes]:
    offset, end = span.offset + skip, span.offset + span.size_bytes
    while offset < end:
        count = min(_BLOCK, end - offset)
        yield read_old(old_root, span.path, offset, count)
        offset += count


def unpacked(span: New, near: bytes, pieces: Pieces) -> bytes:
    """Return what a piece stands for.

    Args:
        span: which piece, and how many bytes it stands for.
        near: old bytes that it may refer to.
        pieces: the pieces of the delta.

    Raises:
        UnsafeInput: it would unpack to more or less than was said.
    """
    stored = pieces.read(span.pack, span.piece)
    if not span.packed:
        return stored
    dictionary = zstandard.ZstdCompressionDict(near, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        said = zstandard.get_frame_parameters(stored)
        if said.content_size != span.size_bytes or said.window_size > 1 << WINDOW_LOG:
            raise _lie(span)
        made = zstandard.ZstdDecompressor(
            dict_data=dictionary if near else None, max_window_size=1 << WINDOW_LOG
        ).decompress(stored, max_output_size=span.size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise UnsafeInput(
            f"a piece of the update cannot be unpacked: {error}",
            hint="if the bundle it is applied to is whole (bundler verify), get the update anew",
        ) from error
    if len(made) != span.size_bytes:
        raise _lie(span)
    return made


def _lie(span: New) -> UnsafeInput:
    return UnsafeInput(
        f"a piece of the update says that it holds {span.size_bytes} bytes, and does not",
        hint="get the update anew from its maker",
    )


def _near_bytes(near: Near | None, old_root: Path) -> bytes:
    return b"" if near is None else read_old(old_root, near.path, near.offset, near.size_bytes)


# -- clusters of ZIM files -----------------------------------------------------------------------------

_LIBZIM_LEVEL = 19
_FED_BYTES = 1 << 17


def zstd_version() -> str:
    """Return the version of zstd that packs here."""
    return ".".join(map(str, zstandard.ZSTD_VERSION))


def check_zstd(needed: str) -> None:
    """Refuse an update whose clusters would not come out here.

    Raises:
        DoesNotFit: another version of zstd packs here than the one it was made with.
    """
    if needed and needed != zstd_version():
        raise DoesNotFit(
            f"the update packs articles again with zstd {needed}; here is {zstd_version()}",
            hint="have it made without --smallest",
        )


def packed_as_libzim(plain: bytes) -> bytes:
    """Return the one frame that libzim writes for what a cluster holds.

    The same bytes come out of the same version of zstd; whoever relies on it has tried.
    """
    packer = zstandard.ZstdCompressor(level=_LIBZIM_LEVEL, write_content_size=False).compressobj()
    fed = range(0, len(plain), _FED_BYTES)
    return b"".join([*(packer.compress(plain[i : i + _FED_BYTES]) for i in fed), packer.flush()])


def unpacked_cluster(data: bytes) -> bytes | None:
    """Return what a frame holds; None when it is none, or holds more than a span may."""
    try:
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG)
        with unpacker.stream_reader(io.BytesIO(data)) as reader:
            plain: bytes = reader.read(SPAN_BYTES + 1)
    except zstandard.ZstdError:
        return None
    return plain if 0 < len(plain) <= SPAN_BYTES else None


def old_clusters(near: Iterable[Near], old_root: Path) -> bytes:
    """Return what clusters of old files hold, one after the other.

    Raises:
        DamagedError: one is not a cluster: the old file is damaged.
    """
    parts = []
    for one in near:
        plain = unpacked_cluster(_near_bytes(one, old_root))
        if plain is None:
            where = str(old_root / one.path)
            raise DamagedError("is damaged where the update needs it", where=where)
        parts.append(plain)
    return b"".join(parts)


def repacked(span: Repacked, old_root: Path, pieces: Pieces) -> bytes:
    """Return a cluster, packed as it was where the update was made.

    Raises:
        DamagedError: it comes out otherwise.
    """
    made = packed_as_libzim(unpacked(span.plain, old_clusters(span.near, old_root), pieces))
    if len(made) != span.size_bytes:
        raise DamagedError(
            f"a cluster of {span.size_bytes} bytes came out with {len(made)}",
            hint="is the bundle that lies there whole? bundler verify",
        )
    return made
