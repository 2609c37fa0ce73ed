"""Read a GGUF header (versions 2 and 3, little-endian), trusting nothing in it.

Layout: `ggml/include/gguf.h` of llama.cpp. What its own loader refuses is refused here, and
beyond that: lengths are held against the bytes that are really there *before* anything is
allocated, alignment is bounded, arrays do not nest, and every tensor must lie inside the file
(CVE-2026-7482: a quantizer that believed the header read past its end).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from bundler.weights.bounded import Cursor, Read, file_reader
from bundler.weights.ggml_types import GGML_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
"""Alignments in use are 32 and 64; a page of 64 KiB is the most a loader could gain from."""
MAX_HEADER_BYTES = 48 << 20
"""The largest real headers (vocabularies of 262,144 tokens with merges) have about 16 MiB."""
MAX_FIELDS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 1 << 10
MAX_STRING_BYTES = 8 << 20
MAX_STRINGS_IN_ARRAYS = 1 << 21
"""Strings of all arrays together: the largest real vocabulary and its merges have 0.8 million."""
MAX_NAME_BYTES = 63
"""`GGML_MAX_NAME` is 64 with the final zero."""
MAX_DIMENSIONS = 4

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS: dict[int, struct.Struct] = {
    number: struct.Struct("<" + letter)
    for number, letter in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
VALUE_TYPES = (
    "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY",
    "UINT64", "INT64", "FLOAT64",
)  # fmt: skip
"""Names of the types of fields, by number."""


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array field, kept as its bytes and decoded when it is iterated over."""

    element_type: int
    count: int
    raw: memoryview

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int | float | bool | str]:
        if self.element_type == STRING:
            for piece in self.pieces():
                yield piece.decode("utf-8", "replace")
            return
        for (number,) in NUMBERS[self.element_type].iter_unpack(self.raw):
            yield bool(number) if self.element_type == BOOL else number

    def pieces(self) -> Iterator[bytes]:
        """The strings of an array of strings, as the bytes in the file."""
        position = 0
        for _ in range(self.count):
            (length,) = _U64.unpack_from(self.raw, position)
            yield bytes(self.raw[position + 8 : position + 8 + length])
            position += 8 + length


GgufValue = int | float | bool | str | GgufArray


class GgufTensor(NamedTuple):
    """One tensor as the header has it."""

    name: str
    type: str
    shape: tuple[int, ...]
    """(rows, columns): the reverse of the order in the file, as numpy and safetensors have it."""
    offset: int
    """First byte, counted from the beginning of the data."""
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A checked header."""

    version: int
    metadata: Mapping[str, GgufValue]
    value_types: Mapping[str, int]
    """Type number of each field; `VALUE_TYPES` names them."""
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_offset: int
    """Where the data begins; equals the file's size when there are no tensors."""
    spans: Mapping[str, tuple[int, int]]
    """Where each field lies in the file, from its key to the end of its value; in the file's order."""


def read_gguf_file(path: Path, *, where: str = "") -> GgufHeader:
    """Read and check the header of a local file. Raises UnsafeInput."""
    with file_reader(path) as (read, size):
        return read_gguf_header(read, size, where=where or path.name)


def read_gguf_header(read: Read, size_bytes: int, *, where: str = "") -> GgufHeader:
    """Read and check a header through `read`, in windows of 1 MiB and more.

    `size_bytes` is the size of the whole file: every tensor must end within it.
    Raises UnsafeInput, and nothing else, for whatever the bytes are.
    """
    cursor = Cursor(read, size_bytes, where=where, limit_bytes=MAX_HEADER_BYTES)
    version = _version(cursor)
    tensor_count = _count(cursor, "tensors", MAX_TENSORS, least_bytes=24)
    field_count = _count(cursor, "fields", MAX_FIELDS, least_bytes=13)
    fields = _fields(cursor, field_count)
    alignment = _alignment(cursor, fields)
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    data_offset = _padded(cursor.position, alignment)
    tensors = _placed(cursor, entries, alignment, data_offset)
    return GgufHeader(
        version=version,
        metadata=_decoded(cursor, fields),
        value_types={key: value.type for key, value in fields.items()},
        tensors=tensors,
        alignment=alignment,
        data_offset=min(data_offset, size_bytes) if not tensors else data_offset,
        spans={key: (value.at, value.after) for key, value in fields.items()},
    )


def _padded(number: int, alignment: int) -> int:
    return (number + alignment - 1) // alignment * alignment


def _version(cursor: Cursor) -> int:
    if cursor.size_bytes < 24 or (magic := cursor.bytes(4, "the magic")) != MAGIC:
        found = "" if cursor.size_bytes < 24 else f" (it begins with {magic!r})"
        raise cursor.fail(f"not a GGUF file{found}", 0)
    version: int = cursor.unpack(_U32, "the version")
    if version and version & 0xFFFF == 0:
        raise cursor.fail(f"big-endian GGUF (version reads {version:#x}) is not supported", 4)
    if version not in VERSIONS:
        raise cursor.fail(f"GGUF version {version} is not one of 2 and 3", 4)
    return version


def _count(cursor: Cursor, what: str, most: int, *, least_bytes: int) -> int:
    at = cursor.position
    count: int = cursor.unpack(_U64, f"the number of {what}")
    if count > most or count * least_bytes > cursor.left():
        raise cursor.fail(f"{count} {what} cannot be in a file of {cursor.size_bytes} bytes", at)
    return count


def _text(cursor: Cursor, what: str, most_bytes: int) -> str:
    at = cursor.position
    length = cursor.unpack(_U64, f"the length of {what}")
    if length > most_bytes:
        raise cursor.fail(f"{what} claims {length} bytes; at most {most_bytes} are allowed", at)
    raw = cursor.bytes(length, what)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise cursor.fail(f"{what} is not UTF-8", at) from None


class _Field(NamedTuple):
    """A field as it was found: its value, or where an array's elements lie."""

    type: int
    value: int | float | bool | str | None
    element_type: int = -1
    length: int = 0
    start: int = 0
    end: int = 0
    at: int = 0
    after: int = 0


def _fields(cursor: Cursor, count: int) -> dict[str, _Field]:
    fields: dict[str, _Field] = {}
    strings_left = MAX_STRINGS_IN_ARRAYS
    for _ in range(count):
        at = cursor.position
        key = _text(cursor, "a key", MAX_KEY_BYTES)
        if not key or key in fields:
            raise cursor.fail(f"the key {key!r} comes twice" if key else "a key is empty", at)
        found = _field(cursor, key, strings_left)
        if found.element_type == STRING:
            strings_left -= found.length
        fields[key] = found._replace(at=at, after=cursor.position)
    return fields


def _field(cursor: Cursor, key: str, strings_left: int) -> _Field:
    at = cursor.position
    type_ = cursor.unpack(_U32, f"the type of {key!r}")
    if type_ == STRING:
        return _Field(type_, _text(cursor, f"the value of {key!r}", MAX_STRING_BYTES))
    if type_ == ARRAY:
        return _array(cursor, key, strings_left)
    if type_ not in NUMBERS:
        raise cursor.fail(f"{key!r} has the unknown type {type_}", at)
    number = cursor.unpack(NUMBERS[type_], f"the value of {key!r}")
    return _Field(type_, bool(number) if type_ == BOOL else number)


def _array(cursor: Cursor, key: str, strings_left: int) -> _Field:
    at = cursor.position
    element_type = cursor.unpack(_U32, f"the element type of {key!r}")
    count = cursor.unpack(_U64, f"the length of {key!r}")
    if element_type != STRING and element_type not in NUMBERS:
        raise cursor.fail(f"{key!r} is an array of the unknown or nested type {element_type}", at)
    least = 8 if element_type == STRING else NUMBERS[element_type].size
    if count * least > cursor.left():
        raise cursor.fail(f"{key!r} claims {count} elements, more than the file can hold", at)
    start = cursor.position
    if element_type != STRING:
        cursor.need(count * least, f"the array {key!r}")
    elif count > strings_left:
        raise cursor.fail(f"more than {MAX_STRINGS_IN_ARRAYS} strings in arrays", at)
    else:
        cursor.skip_strings(count, MAX_STRING_BYTES, f"a string of {key!r}")
    return _Field(ARRAY, None, element_type, count, start, cursor.position)


def _decoded(cursor: Cursor, fields: Mapping[str, _Field]) -> dict[str, GgufValue]:
    held = cursor.held()
    return {
        key: GgufArray(found.element_type, found.length, held[found.start : found.end])
        if found.value is None
        else found.value
        for key, found in fields.items()
    }


def _alignment(cursor: Cursor, fields: Mapping[str, _Field]) -> int:
    found = fields.get("general.alignment")
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value
    if found.type != 4 or not isinstance(value, int):
        raise cursor.fail("general.alignment is not a UINT32")
    if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(
            f"an alignment of {value} is not a power of two from 8 to {MAX_ALIGNMENT}"
        )
    return value


class _Entry(NamedTuple):
    at: int
    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def _tensor_entry(cursor: Cursor) -> _Entry:
    at = cursor.position
    name = _text(cursor, "a tensor's name", MAX_NAME_BYTES)
    if not name or not name.isprintable():
        raise cursor.fail(f"the tensor name {name!r} is empty or not printable", at)
    dimensions = cursor.unpack(_U32, f"the dimensions of {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name!r} has {dimensions} dimensions, not 1 to 4", at)
    sizes = [cursor.unpack(_U64, f"the shape of {name!r}") for _ in range(dimensions)]
    if 0 in sizes or prod(sizes) >= 1 << 63:
        raise cursor.fail(f"tensor {name!r} has the impossible shape {sizes}", at)
    number = cursor.unpack(_U32, f"the type of {name!r}")
    type_ = GGML_TYPES.get(number)
    if type_ is None:
        raise cursor.fail(f"tensor {name!r} has the unknown type {number}", at)
    if sizes[0] % type_.block_values:
        raise cursor.fail(
            f"tensor {name!r} has rows of {sizes[0]}, not a multiple of {type_.name}'s "
            f"{type_.block_values}", at,
        )  # fmt: skip
    size_bytes = prod(sizes) // type_.block_values * type_.block_bytes
    offset = cursor.unpack(_U64, f"the offset of {name!r}")
    return _Entry(at, name, type_.name, tuple(reversed(sizes)), offset, size_bytes)


def _placed(
    cursor: Cursor, entries: list[_Entry], alignment: int, data_offset: int
) -> tuple[GgufTensor, ...]:
    """Check that tensors follow each other as llama.cpp demands, and end within the file."""
    seen: set[str] = set()
    expected = 0
    for entry in entries:
        if entry.name in seen:
            raise cursor.fail(f"the tensor {entry.name!r} comes twice", entry.at)
        if entry.offset != expected:
            raise cursor.fail(
                f"tensor {entry.name!r} begins at {entry.offset}, not at {expected} where the one "
                "before it ends: a gap, an overlap or a wrong alignment", entry.at,
            )  # fmt: skip
        end = data_offset + entry.offset + entry.size_bytes
        if end > cursor.size_bytes:
            raise cursor.fail(
                f"tensor {entry.name!r} would end at byte {end} of a file of {cursor.size_bytes}",
                entry.at,
            )
        seen.add(entry.name)
        expected = _padded(entry.offset + entry.size_bytes, alignment)
    return tuple(
        GgufTensor(entry.name, entry.type, entry.shape, entry.offset, entry.size_bytes)
        for entry in entries
    )
