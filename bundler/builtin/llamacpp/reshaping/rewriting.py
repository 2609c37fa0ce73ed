"""Write a model anew with its tensors changed: one matrix at a time, in single precision.

What is made is an intermediate file that will be quantized, so it is F32: a change folded into half
precision would be rounded once more, and could not be told from a wrong one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bundler.builtin.llamacpp.allocation.matrices import Floats, Matrix, Weights
from bundler.builtin.llamacpp.reshaping.changes import Change, Reshaping
from bundler.errors import DoesNotFit
from bundler.store import full_disk_is_an_error
from bundler.value import format_size
from bundler.weights.gguf import ARRAY, STRING, VALUE_TYPES, GgufArray, GgufHeader
from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field

TYPE = "F32"
_ALIGNMENT = 32
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
UNCHANGED = Reshaping({})
MARK = "bundler.reshaped"
"""Field of the header that says what was done; loaders read past what they do not know."""


def rewrite(
    weights: Weights, reshaping: Reshaping, output: Path, report: Callable[..., None]
) -> int:
    """Write the changed model to `output`; return its size in bytes.

    The file gets its name when it is whole. `report(done, total, "bytes")` is told.

    Raises:
        DoesNotFit: the disk has no room for it.
    """
    plans = _plans(weights.header, reshaping)
    header = encode_header(_fields(weights.header, reshaping), plans, alignment=_ALIGNMENT)
    total = len(header) + sum(_padded(plan.size_bytes) for plan in plans)
    _check_space(output.parent, total)
    partial = output.with_name(output.name + ".partial")
    done = len(header)
    with full_disk_is_an_error(output.parent, output.name):
        try:
            with partial.open("wb") as stream:
                stream.write(header)
                for plan in plans:
                    for block in _blocks(weights, reshaping, plan.name):
                        stream.write(np.ascontiguousarray(block, "<f4").data)
                        done += block.nbytes
                        report(done, total, "bytes")
                    stream.write(bytes(_padded(plan.size_bytes) - plan.size_bytes))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, output)
        finally:
            partial.unlink(missing_ok=True)
    return total


def _check_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DoesNotFit(
            f"the model in single precision takes {format_size(wanted)}, the disk has "
            f"{format_size(free)}", where=str(folder),
            hint="free some space, or work on another disk",
        )  # fmt: skip


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _plans(header: GgufHeader, reshaping: Reshaping) -> list[TensorPlan]:
    plans = [TensorPlan(tensor.name, TYPE, tensor.shape) for tensor in header.tensors]
    if reshaping.untied is not None:
        shape = next(tensor.shape for tensor in header.tensors if tensor.name == _EMBEDDING)
        plans.append(TensorPlan(_OUTPUT, TYPE, shape))
    return plans


def _fields(header: GgufHeader, reshaping: Reshaping) -> Mapping[str, GgufField]:
    """Return the header's fields as they were, but for what the file is made of."""
    kept = {
        key: _field(header.value_types[key], value)
        for key, value in header.metadata.items()
        if key not in ("general.alignment", "general.file_type", MARK)
    }
    before = header.metadata.get(MARK)
    titles = [text for text in (before, reshaping.title) if isinstance(text, str) and text]
    if titles:
        kept[MARK] = field("STRING", "; ".join(titles))
    return kept | {"general.file_type": field("UINT32", 0)}


def _field(type_: int, value: object) -> GgufField:
    if not isinstance(value, GgufArray):
        return GgufField(VALUE_TYPES[type_], value)  # type: ignore[arg-type]
    assert type_ == ARRAY
    # Strings go over as their bytes: those of a vocabulary need not be UTF-8.
    values = list(value.pieces()) if value.element_type == STRING else list(value)
    return GgufField(VALUE_TYPES[value.element_type], values, is_array=True)


def _blocks(weights: Weights, reshaping: Reshaping, name: str) -> Iterator[Floats]:
    """Give a tensor's changed rows in order, as many at once as its change must see."""
    change = reshaping.changes.get(name, Change())
    source = name
    if name == _OUTPUT and reshaping.untied is not None:
        change, source = reshaping.untied, _EMBEDDING
    matrix = weights.matrix(source)
    if len(matrix.shape) == 1:
        yield _vector(matrix, change)
    elif change.row_by_row:
        for rows in matrix.blocks():
            expert = matrix.expert_of(rows.start)
            first = rows.start - expert * (matrix.rows // matrix.experts)
            yield change.of(matrix.read(rows), expert, first)
    else:
        yield from _whole_matrices(matrix, change)


def _vector(matrix: Matrix, change: Change) -> Floats:
    values = matrix.read(slice(None)).reshape(-1)
    shape = (-1, 1) if change.upright else (1, -1)
    return change.of(values.reshape(shape)).reshape(-1)


def _whole_matrices(matrix: Matrix, change: Change) -> Iterator[Floats]:
    per_expert = matrix.rows // matrix.experts
    for expert in range(matrix.experts):
        yield change.of(matrix.read(slice(expert * per_expert, (expert + 1) * per_expert)), expert)
