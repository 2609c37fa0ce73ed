"""The types in which ggml stores weights: values per block and bytes per block.

Source: `GGML_QUANT_SIZES` and `GGMLQuantizationType` in `gguf-py/gguf/constants.py`, and
`enum ggml_type` in `ggml/include/ggml.h`, of the llama.cpp source inside the llama-cpp-python
0.3.36 sdist. Numbers that are missing (4, 5, 31-33, 36-38) were removed from the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One storage type."""

    number: int
    name: str
    block_values: int
    """Values that are stored together; rows are a multiple of it."""
    block_bytes: int


_TABLE = (
    (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2),
    (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8), (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18),
)  # fmt: skip

GGML_TYPES: dict[int, GgmlType] = {row[0]: GgmlType(*row) for row in _TABLE}
"""Every type by its number in a file."""

BY_NAME: dict[str, GgmlType] = {type_.name: type_ for type_ in GGML_TYPES.values()}
"""Every type by its name, such as `Q4_K`."""


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of `shape` (row length last) stored as `type_name`.

    Raises ValueError when the row length is not a multiple of the type's block.
    """
    type_ = BY_NAME[type_name]
    if shape and shape[-1] % type_.block_values:
        raise ValueError(
            f"rows of {shape[-1]} cannot be {type_name} (blocks of {type_.block_values})"
        )
    return prod(shape) // type_.block_values * type_.block_bytes
