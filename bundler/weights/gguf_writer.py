"""Encode a GGUF header, version 3: fields, tensor entries and their offsets. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bundler.errors import UnsafeInput
from bundler.weights.ggml_types import BY_NAME, tensor_bytes
from bundler.weights.gguf import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    NUMBERS,
    STRING,
    VALUE_TYPES,
)

_TYPE_NUMBERS = {name: number for number, name in enumerate(VALUE_TYPES)}
_LENGTH = struct.Struct("<Q").pack
Scalar = int | float | bool | str | bytes


@dataclass(frozen=True, slots=True)
class GgufField:
    """A value with the type it is written as."""

    type: str
    """`UINT32`, `STRING`…; of the elements when `value` is a sequence."""
    value: Scalar | Sequence[Scalar]
    is_array: bool = False


class TensorPlan(NamedTuple):
    """A tensor that will be written: its entry in the header."""

    name: str
    type: str
    shape: tuple[int, ...]
    """(rows, columns)"""

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return tensor_bytes(self.type, self.shape)


def field(type_: str, value: Scalar | Sequence[Scalar]) -> GgufField:
    """Make a field; a list or tuple becomes an array of `type_`."""
    return GgufField(type_, value, isinstance(value, (list, tuple)))


def _string(value: Scalar) -> bytes:
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"{value!r} is not text")
    raw = value.encode() if isinstance(value, str) else value
    return _LENGTH(len(raw)) + raw


def _encode_value(given: GgufField) -> bytes:
    number = _TYPE_NUMBERS[given.type]
    if not given.is_array:
        scalar = given.value
        body = _string(scalar) if number == STRING else NUMBERS[number].pack(scalar)  # type: ignore[arg-type]
        return struct.pack("<I", number) + body
    values: Sequence[Scalar] = given.value  # type: ignore[assignment]
    head = struct.pack("<IIQ", ARRAY, number, len(values))
    if number == STRING:
        return head + b"".join(map(_string, values))
    return head + struct.pack(f"<{len(values)}{NUMBERS[number].format[1:]}", *values)


def encode_header(
    fields: Mapping[str, GgufField],
    tensors: Sequence[TensorPlan],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> bytes:
    """Return everything before the data, padded to `alignment`; tensors follow in this order.

    Each tensor's data is padded to `alignment` too, the last one's as well. Raises UnsafeInput
    for a value that is not of its field's type.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(fields))]
    for key, given in fields.items():
        try:
            parts += [_string(key), _encode_value(given)]
        except (struct.error, TypeError, OverflowError, UnicodeEncodeError) as error:
            raise UnsafeInput(
                f"{key} cannot be written as {given.type}: {str(given.value)[:80]!r} ({error})",
                hint="the model's own files give a value that is no such thing",
            ) from None
    offset = 0
    for tensor in tensors:
        parts += [_string(tensor.name), struct.pack("<I", len(tensor.shape))]
        parts += [struct.pack("<Q", size) for size in reversed(tensor.shape)]
        parts.append(struct.pack("<IQ", BY_NAME[tensor.type].number, offset))
        offset += -(-tensor.size_bytes // alignment) * alignment
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment)
