"""Read a safetensors header, trusting nothing in it.

Format: eight bytes little-endian length, that many bytes of JSON, then the data. As the
reference implementation does, headers over 100 MB are refused and the tensors must cover the
data without gaps or overlaps; beyond it, doubled names are refused and depth is bounded.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from bundler.errors import UnsafeInput
from bundler.value import check_relative_path
from bundler.weights.bounded import Cursor, Read, file_reader, unsafe

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation (`MAX_HEADER_SIZE` in safetensors/src/tensor.rs)."""
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 8
MAX_INDEX_BYTES = 64 << 20

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per value (`Dtype` in safetensors/src/tensor.rs, 0.8)."""


class SafetensorsTensor(NamedTuple):
    """One tensor as the header has it."""

    name: str
    type: str
    """`BF16`, `F32`…"""
    shape: tuple[int, ...]
    offset: int
    """First byte, counted from the beginning of the file."""
    size_bytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A checked header; tensors are sorted by name, as the reference implementation lists them."""

    tensors: tuple[SafetensorsTensor, ...]
    metadata: Mapping[str, str]
    data_offset: int


def read_safetensors_file(path: Path, *, where: str = "") -> SafetensorsHeader:
    """Read and check the header of a local file. Raises UnsafeInput."""
    with file_reader(path) as (read, size):
        return read_safetensors_header(read, size, where=where or path.name)


def read_safetensors_header(read: Read, size_bytes: int, *, where: str = "") -> SafetensorsHeader:
    """Read and check a header through `read`; the file has `size_bytes` in all.

    Raises UnsafeInput, and nothing else, for whatever the bytes are.
    """
    cursor = Cursor(read, size_bytes, where=where, limit_bytes=MAX_HEADER_BYTES + 8)
    if size_bytes < 10:
        raise cursor.fail("not a safetensors file: too short")
    length = cursor.unpack(struct.Struct("<Q"), "the length of the header")
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise cursor.fail(f"not a safetensors file: its header would have {length} bytes", 0)
    raw = cursor.bytes(length, "the header")
    if raw[:1] != b"{":
        raise cursor.fail("not a safetensors file: its header is not a JSON object", 8)
    entries = parse_object(raw, where=where, offset=8)
    metadata = _metadata(cursor, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise cursor.fail(f"{len(entries)} tensors; at most {MAX_TENSORS} are allowed", 8)
    data_offset = 8 + length
    tensors = [_tensor(cursor, name, entry, data_offset) for name, entry in entries.items()]
    _check_cover(cursor, tensors, data_offset)
    return SafetensorsHeader(tuple(sorted(tensors)), metadata, data_offset)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {double!r} comes twice")
    return result


def parse_json(raw: bytes, *, where: str, offset: int = 0) -> Any:
    """Parse JSON from a stranger: no doubled names, no NaN, bounded depth.

    Raises UnsafeInput.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value: Any = json.loads(raw, object_pairs_hook=_no_doubles, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise unsafe(where, offset, f"not the JSON it should be: {reason}") from None
    return value


def parse_object(raw: bytes, *, where: str, offset: int = 0) -> dict[str, Any]:
    """Parse a JSON object from a stranger, as `parse_json` does. Raises UnsafeInput."""
    value = parse_json(raw, where=where, offset=offset)
    if not isinstance(value, dict):
        raise unsafe(where, offset, "not a JSON object")
    return value


def _metadata(cursor: Cursor, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise cursor.fail("__metadata__ is not an object of strings", 8)
    return found


def _naturals(value: Any, most: int) -> tuple[int, ...] | None:
    """Return a list of non-negative 63-bit integers as a tuple; None for anything else."""
    if not isinstance(value, list) or len(value) > most:
        return None
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)


def _tensor(cursor: Cursor, name: str, entry: Any, data_offset: int) -> SafetensorsTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise cursor.fail(f"the entry of tensor {name!r} is not dtype, shape, data_offsets", 8)
    type_ = entry["dtype"]
    if not isinstance(type_, str) or type_ not in ITEM_BITS:
        raise cursor.fail(f"tensor {name!r} has the unknown type {type_!r}", 8)
    shape = _naturals(entry["shape"], MAX_DIMENSIONS)
    offsets = _naturals(entry["data_offsets"], 2)
    if shape is None or offsets is None or len(offsets) != 2:
        raise cursor.fail(f"tensor {name!r} has an impossible shape or position", 8)
    begin, end = offsets
    bits = prod(shape) * ITEM_BITS[type_]
    if bits % 8 or bits // 8 != end - begin:
        raise cursor.fail(
            f"tensor {name!r} ({type_} {list(shape)}) cannot have the {end - begin} bytes "
            f"from {begin} to {end}", 8,
        )  # fmt: skip
    return SafetensorsTensor(name, type_, shape, data_offset + begin, end - begin)


def _check_cover(cursor: Cursor, tensors: list[SafetensorsTensor], data_offset: int) -> None:
    """The tensors must cover the data exactly: nothing hidden, nothing shared."""
    expected = data_offset
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != expected:
            raise cursor.fail(
                f"tensor {tensor.name!r} begins at byte {tensor.offset}, not at {expected}: a gap "
                "or an overlap", 8,
            )  # fmt: skip
        expected = tensor.offset + tensor.size_bytes
    if expected != cursor.size_bytes:
        raise cursor.fail(f"the tensors end at byte {expected} of {cursor.size_bytes}", 8)


def read_shard_index(raw: bytes, *, where: str = "") -> dict[str, str]:
    """Read a `*.safetensors.index.json`: tensor name → shard file.

    Raises UnsafeInput, also for a shard name that is not a plain file name ending in
    `.safetensors`.
    """
    if len(raw) > MAX_INDEX_BYTES:
        raise UnsafeInput(f"an index of {len(raw)} bytes", where=where)
    weight_map = parse_object(raw, where=where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise unsafe(where, 0, "the index has no weight_map")
    for shard in weight_map.values():
        _check_shard_name(shard, where)
    return weight_map


def _check_shard_name(shard: Any, where: str) -> None:
    try:
        plain = isinstance(shard, str) and check_relative_path(shard) == shard and "/" not in shard
    except ValueError:
        plain = False
    if not plain or not shard.endswith(".safetensors"):
        raise unsafe(where, 0, f"the index names {shard!r}, which is no safetensors file beside it")
