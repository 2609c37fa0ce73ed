"""The importance matrix as a file: the GGUF layout that llama-imatrix writes and llama.cpp reads.

Two tensors per weight: `<weight>.in_sum2`, the sum of squared inputs per channel (one row per
expert), and `<weight>.counts`, how many tokens each row has seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bundler.errors import UnsafeInput
from bundler.store import full_disk_is_an_error
from bundler.weights.gguf import GgufHeader, GgufTensor, read_gguf_file
from bundler.weights.gguf_writer import TensorPlan, encode_header, field

Floats = npt.NDArray[np.float32]
_TITLE = "imatrix.gguf"


class Entry(NamedTuple):
    """What was summed up for one weight."""

    squares: npt.NDArray[np.float64]
    """(experts, channels)"""
    counts: npt.NDArray[np.int64]
    """(experts,): tokens seen by each."""


def write_imatrix(
    path: Path,
    entries: Mapping[str, Entry],
    *,
    datasets: Sequence[str],
    chunks: int,
    chunk_tokens: int,
) -> None:
    """Write an importance matrix; the same sums give the same bytes."""
    fields = {
        "general.type": field("STRING", "imatrix"),
        "imatrix.datasets": field("STRING", list(datasets)),
        "imatrix.chunk_count": field("UINT32", chunks),
        "imatrix.chunk_size": field("UINT32", chunk_tokens),
    }
    arrays: list[tuple[str, Floats]] = []
    for name in sorted(entries):
        entry = entries[name]
        arrays.append((f"{name}.in_sum2", entry.squares.astype("<f4")))
        arrays.append((f"{name}.counts", entry.counts.reshape(-1, 1).astype("<f4")))
    plans = [TensorPlan(name, "F32", array.shape) for name, array in arrays]
    partial = path.with_name(path.name + ".partial")
    with full_disk_is_an_error(path.parent, path.name), partial.open("wb") as stream:
        stream.write(encode_header(fields, plans))
        for _, array in arrays:
            raw = array.tobytes()
            stream.write(raw + bytes(-len(raw) % 32))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def read_imatrix(path: Path) -> dict[str, Floats]:
    """Return each weight's mean squared inputs, flattened as llama.cpp wants them.

    Experts that no token chose get 1.0 everywhere, as llama-quantize does.

    Raises:
        UnsafeInput: not an importance matrix, or one with missing, negative or infinite figures.
    """
    header = read_gguf_file(path, where=_TITLE)
    if header.metadata.get("general.type") != "imatrix":
        raise UnsafeInput(
            "is not an importance matrix (general.type is not 'imatrix')", where=_TITLE
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    means = {}
    for name, tensor in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        weight = name.removesuffix(".in_sum2")
        counts_tensor = tensors.get(f"{weight}.counts")
        if counts_tensor is None:
            raise UnsafeInput(f"has no counts for {weight}", where=_TITLE)
        means[weight] = _means(path, header, weight, tensor, counts_tensor)
    if not means:
        raise UnsafeInput("is an importance matrix without entries", where=_TITLE)
    return means


def _means(
    path: Path,
    header: GgufHeader,
    weight: str,
    squares_tensor: GgufTensor,
    counts_tensor: GgufTensor,
) -> Floats:
    squares = _floats(path, header, squares_tensor)
    counts = _floats(path, header, counts_tensor)
    channels = squares_tensor.shape[-1]
    if squares.size != counts.size * channels:
        raise UnsafeInput(f"{weight}: sums and counts do not fit together", where=_TITLE)
    if not (np.isfinite(squares).all() and np.isfinite(counts).all()):
        raise UnsafeInput(f"{weight}: has figures that are not finite", where=_TITLE)
    if (squares < 0).any() or (counts < 0).any():
        raise UnsafeInput(f"{weight}: has negative sums or counts", where=_TITLE)
    rows, seen = squares.reshape(-1, channels), counts.reshape(-1, 1)
    return np.where(seen > 0, rows / np.maximum(seen, 1), 1.0).astype(np.float32).ravel()


def _floats(path: Path, header: GgufHeader, tensor: GgufTensor) -> Floats:
    if tensor.type != "F32":
        raise UnsafeInput(f"{tensor.name} is {tensor.type}, not F32", where=_TITLE)
    with path.open("rb") as stream:
        stream.seek(header.data_offset + tensor.offset)
        return np.frombuffer(stream.read(tensor.size_bytes), "<f4").astype(np.float32)
