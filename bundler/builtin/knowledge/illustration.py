"""The 48x48 picture that readers show for a ZIM: a book whose colour comes from its name."""

from __future__ import annotations

import colorsys
import hashlib
import struct
import zlib

SIDE = 48

# One character is 3x3 pixels: `#` the cover, `.` paper, `-` a line of print.
_BOOK = """\
................
................
................
..######..#####.
..#....####....#
..#.--.####.--.#
..#....####....#
..#.--.####.--.#
..#....####....#
..#.--.####.--.#
..#....####....#
..#....####....#
..######..######
................
................
................
"""


def illustration_png(name: str) -> bytes:
    """Return a PNG whose bytes depend on `name` only.

    The pixels are stored uncompressed, because compressors differ between machines.
    """
    hue = hashlib.sha256(name.encode()).digest()[0] / 256
    cover = _rgb(hue, 0.35, 0.55)
    palette = cover + b"\xff\xff\xff" + _rgb(hue, 0.6, 0.25)
    index = {"#": b"\1", ".": b"\0", "-": b"\2"}
    rows = b"".join(
        (b"\0" + b"".join(index[character] * 3 for character in line)) * 3
        for line in _BOOK.splitlines()
    )
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"PLTE", palette)
        + _chunk(b"IDAT", zlib.compress(rows, 0))
        + _chunk(b"IEND", b"")
    )


def _rgb(hue: float, lightness: float, saturation: float) -> bytes:
    return bytes(round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
