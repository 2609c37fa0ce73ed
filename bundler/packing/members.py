"""What a pack holds and in which order, and the tar header of each: no byte of it is free.

The manifest comes first and its signature next, so whoever reads knows all else before it arrives.
A reader does not interpret headers: it makes the one that must stand there and compares bytes. So
links, devices, other names, other sizes and doubled members cannot be expressed at all.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass

from bundler.errors import UnsafeInput
from bundler.manifest import (
    COPY_NAME,
    HEAD_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    STATEMENTS_NAME,
    SUMS_NAME,
    Manifest,
)

BLOCK = 512
"""tar's unit (POSIX.1-2001, pax interchange format)."""
END = bytes(2 * BLOCK)
MAX_BESIDE_BYTES = {
    SIGNATURE_NAME: 16 << 10, STATEMENTS_NAME: 1 << 20, SUMS_NAME: 256 << 20,
    COPY_NAME: 256 << 20, HEAD_NAME: 1 << 30,
}  # fmt: skip
"""Bounds on what no manifest lists, as its readers have them."""
OPTIONAL = (SIGNATURE_NAME, STATEMENTS_NAME, HEAD_NAME)
FIRST = (SIGNATURE_NAME, STATEMENTS_NAME)
"""What follows the manifest before anything is written: who vouches for it."""
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device",
    b"4": "a block device", b"5": "a folder", b"6": "a pipe", b"x": "an extended header",
    b"g": "a global header", b"L": "a GNU long name", b"K": "a GNU long link", b"S": "a sparse file",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a pack."""

    path: str
    size_bytes: int
    executable: bool = False


def header(top: str, member: Member, created: int) -> bytes:
    """Return the only tar header that `member` can have: owner 0, mode 644 or 755, the lock's clock."""
    info = tarfile.TarInfo(f"{top}/{member.path}")
    info.size, info.mtime = member.size_bytes, created
    info.mode = 0o755 if member.executable else 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size_bytes: int) -> bytes:
    """Return the zeros behind a member's content."""
    return bytes(-size_bytes % BLOCK)


def listed(manifest: Manifest) -> list[Member]:
    """Return what the manifest lists, in its order."""
    return [Member(f.path, f.size_bytes, f.executable) for f in manifest.files]


def last_beside(manifest: Manifest) -> tuple[str, ...]:
    """Return what must follow the signature and comes before the listed files."""
    return (SUMS_NAME, COPY_NAME, *((HEAD_NAME,) if manifest.parity is not None else ()))


def read_first(block: bytes) -> tuple[str, int, int]:
    """Return (folder, size, mtime) of the manifest's header, which alone is not known beforehand.

    Raises:
        UnsafeInput: it is not the header of a bundle's manifest.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        top, _, name = info.name.partition("/")
        right = name == MANIFEST_NAME and info.size > 0 and info.mtime >= 0
        if right and header(top, Member(name, info.size), int(info.mtime)) == block:
            return top, info.size, int(info.mtime)
    except (tarfile.HeaderError, UnicodeError, ValueError) as error:
        raise _no_pack() from error
    raise _no_pack()


def _no_pack() -> UnsafeInput:
    return UnsafeInput(
        f"is not a packed bundle: it does not begin with a {MANIFEST_NAME}",
        hint="give a file that `bundler pack` wrote",
    )


def size_in(block: bytes) -> int:
    """Return the size that a plain header says, to be proved by making the header again."""
    try:
        return tarfile.TarInfo.frombuf(block[:BLOCK], "utf-8", "surrogateescape").size
    except (tarfile.HeaderError, UnicodeError, ValueError) as error:
        raise UnsafeInput("a tar header cannot be read", hint="get the file anew") from error


def describe(block: bytes) -> str:
    """Say what a header that should not be there is about, for the error alone."""
    if not any(block):
        return "the end of the archive"
    try:
        info = tarfile.TarInfo.frombuf(block[:BLOCK], "utf-8", "backslashreplace")
    except (tarfile.HeaderError, UnicodeError, ValueError):
        return "something that is no tar header"
    kind = _KINDS.get(info.type, "a file")
    to = f" to {info.linkname!r:.80}" if info.linkname else ""
    return f"{kind} {info.name!r:.120}{to} of {info.size} bytes"
