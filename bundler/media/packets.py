"""Reads and writes PAR2 files as the packets they are. What it reads is hostile until checked.

A PAR2 file is a row of packets, each with a magic word, its length, an MD5 over its body and the id
of its set; their order says nothing. So what is intact of a damaged file can be used, and a file
can be written in an order of ours. Format: PAR 2.0 specification (parchive.sourceforge.net).

We keep a set in one file: what describes it, the recovery blocks, and what describes it once more.
MD5 finds accidents here; what a repair yields is held against SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bundler.errors import UnsafeInput
from bundler.segments import open_plain

MAGIC = b"PAR2\0PKT"
MAIN = b"PAR 2.0\0Main\0\0\0\0"
DESCRIPTION = b"PAR 2.0\0FileDesc"
CHECKSUMS = b"PAR 2.0\0IFSC\0\0\0\0"
RECOVERY = b"PAR 2.0\0RecvSlic"
CREATOR = b"PAR 2.0\0Creator\0"
_KINDS = (MAIN, DESCRIPTION, CHECKSUMS, RECOVERY, CREATOR)
_HEADER = struct.Struct("<8sQ16s16s16s")
_MOST_DESCRIBING_BYTES = 4 << 20
"""A packet that describes: at most 32768 checksums of 20 bytes, or as many ids."""
_MOST_DESCRIBED_BYTES = 64 << 20
"""All of them in one file: ours hold at most 2000 pieces' names and checksums, twice."""
_MOST_PACKETS = 80_000
"""In one file: 32768 recovery blocks, and twice what describes some thousand files, and to spare."""
_CHUNK = 1 << 20
_MOST_READINGS = 8
"""A damaged file is read again from each magic word in it; a crafted one has a great many."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet whose MD5 is right."""

    offset: int
    length: int
    set_id: bytes
    kind: bytes
    body: bytes
    """Of a recovery block, only its number: the block stays in the file."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a set says of one of its files."""

    name: str
    size_bytes: int
    md5: bytes
    packet: Packet
    """The one that says so: no other packet is used for it, whatever id it has."""


@dataclass
class Scan:
    """What was found in a PAR2 file."""

    packets: list[Packet] = field(default_factory=list)
    damaged_bytes: int = 0
    """Bytes that belong to no intact packet."""

    def of(self, kind: bytes, set_id: bytes | None = None) -> Iterator[Packet]:
        """Yield the packets of a kind, of one set or of all."""
        for packet in self.packets:
            if packet.kind == kind and set_id in (None, packet.set_id):
                yield packet


def scan(path: Path, block_bytes: int, *, most_packets: int = _MOST_PACKETS) -> Scan:
    """Return every intact packet of a file, in memory that does not grow with its blocks.

    Args:
        path: the PAR2 file.
        block_bytes: the size that its recovery blocks have.
        most_packets: how many it may have.

    Raises:
        UnsafeInput: it is made to be read for ever, or is no file at all.
        OSError: it cannot be read.
    """
    found = Scan()
    with open_plain(path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
        size = stream.seek(0, 2)
        budget = _MOST_READINGS * size + (64 << 20)
        offset = described = 0
        while offset < size:
            packet, cost = _packet_at(stream, offset, size, block_bytes)
            budget -= cost
            crowded = len(found.packets) >= most_packets
            if budget < 0 or described > _MOST_DESCRIBED_BYTES or crowded:
                raise UnsafeInput("this is no parity file but a maze of packets", where=str(path))
            if packet is not None:
                described += len(packet.body)
                found.packets.append(packet)
                offset += packet.length
            else:
                following = _next_magic(stream, offset + 1, size)
                found.damaged_bytes += following - offset
                offset = following
    return found


def _packet_at(
    stream: BinaryIO, offset: int, size: int, block_bytes: int
) -> tuple[Packet | None, int]:
    """Return the packet at `offset` if it is intact, and how many bytes were read for that."""
    stream.seek(offset)
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None, len(header)
    magic, length, md5, set_id, kind = _HEADER.unpack(header)
    most = block_bytes + 68 if kind == RECOVERY else _MOST_DESCRIBING_BYTES
    if (
        magic != MAGIC or kind not in _KINDS or length % 4 or offset + length > size
        or not _HEADER.size < length <= most
    ):  # fmt: skip
        return None, len(header)
    body = stream.read(length - _HEADER.size)
    if hashlib.md5(header[32:] + body, usedforsecurity=False).digest() != md5:
        return None, length
    kept = body[:4] if kind == RECOVERY else body
    return Packet(offset, length, set_id, kind, kept), length


def _next_magic(stream: BinaryIO, offset: int, size: int) -> int:
    while offset < size:
        stream.seek(offset)
        chunk = stream.read(_CHUNK + len(MAGIC) - 1)
        at = chunk.find(MAGIC)
        if at >= 0:
            return offset + at
        offset += _CHUNK
    return size


def descriptions(found: Scan, set_id: bytes) -> dict[bytes, Description]:
    """Return what a set says of its files, by PAR2's id; ids that do not fit are left out."""
    said: dict[bytes, Description] = {}
    for packet in found.of(DESCRIPTION, set_id):
        described = _described(packet)
        if described is not None:
            said.setdefault(packet.body[:16], described)
    return said


def _described(packet: Packet) -> Description | None:
    """Return what a packet says of a file, None unless its id is that of just these bytes."""
    if len(packet.body) < 60:
        return None
    file_id, md5, first, size = struct.unpack_from("<16s16s16sQ", packet.body)
    name = packet.body[56:].rstrip(b"\0")
    made = hashlib.md5(first + packet.body[48:56] + name, usedforsecurity=False).digest()
    if made != file_id or len(packet.body) != 56 + (len(name) + 3 & ~3):
        return None
    try:
        return Description(name.decode(), size, md5, packet)
    except UnicodeDecodeError:
        return None  # no name of ours


def set_ids(found: Scan) -> set[bytes]:
    """Return the ids of all sets whose packets are in a file."""
    return {packet.set_id for packet in found.packets}


@dataclass(frozen=True, slots=True)
class Usable:
    """The packets of a set that may be given to a program, and how much they can repair."""

    describing: tuple[Packet, ...]
    recovery: tuple[Packet, ...]


def usable(
    found: Scan, set_id: bytes, block_bytes: int, expected: Mapping[str, int]
) -> Usable | None:
    """Return the packets of one set if they describe exactly the files expected, else None.

    Args:
        found: the packets that are intact.
        set_id: the set they must belong to; others are left aside.
        block_bytes: the size of a block that it must have.
        expected: name → bytes of every file it must protect.
    """
    main = next(found.of(MAIN, set_id), None)
    if main is None or hashlib.md5(main.body, usedforsecurity=False).digest() != set_id:
        return None
    if main.body[:12] != struct.pack("<QI", block_bytes, len(expected)):
        return None
    ids = {main.body[at : at + 16] for at in range(12, len(main.body), 16)}
    said = {i: d for i, d in descriptions(found, set_id).items() if i in ids}
    if ids != set(said) or {d.name: d.size_bytes for d in said.values()} != dict(expected):
        return None
    describing = [main, *(said[file_id].packet for file_id in sorted(said))]
    describing += _checksums(found, set_id, block_bytes, said)
    recovery: dict[bytes, Packet] = {}
    for packet in found.of(RECOVERY, set_id):
        if packet.length == block_bytes + 68:
            recovery.setdefault(packet.body, packet)
    return Usable(tuple(describing), tuple(recovery[number] for number in sorted(recovery)))


def _checksums(
    found: Scan, set_id: bytes, block_bytes: int, said: Mapping[bytes, Description]
) -> list[Packet]:
    """Return the checksums of each file's blocks; where packets differ, what most of them say.

    Nothing in a packet proves them, but every set of ours has each of them twice.
    """
    bodies: dict[bytes, Counter[bytes]] = {}
    first: dict[bytes, Packet] = {}
    for packet in found.of(CHECKSUMS, set_id):
        described = said.get(packet.body[:16])
        if described is None:
            continue
        if len(packet.body) == 16 + 20 * -(-described.size_bytes // block_bytes):
            bodies.setdefault(packet.body[:16], Counter())[packet.body] += 1
            first.setdefault(packet.body, packet)
    return [first[bodies[file_id].most_common(1)[0][0]] for file_id in sorted(bodies)]


def write_set(source: Path, kept: Usable, target: Path, extra: tuple[Packet, ...] = ()) -> None:
    """Write a set as one file: description, blocks, description once more.

    Args:
        source: the file in which the packets were found.
        kept: which of them.
        target: the new file.
        extra: packets that describe nothing, as the name of the program that made the set.
    """
    around = (*extra, *kept.describing)
    with (
        open_plain(source) as descriptor,
        os.fdopen(descriptor, "rb", closefd=False) as reader,
        target.open("xb") as writer,
    ):
        for packet in (*around, *kept.recovery, *around):
            reader.seek(packet.offset)
            writer.write(reader.read(packet.length))
