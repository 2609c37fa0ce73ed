"""Shapes to hold the memory model to, and how to ask llama.cpp about them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.caches import NO_CACHE
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.types import tensor_types
from bundler.builtin.targets import CATALOGUE
from bundler.hardware import Target
from bundler.lock import ModelFacts
from tests.odd_shapes import ODD
from tests.published_shapes import CELLS, ENCODER_CELLS, PUBLISHED, Cell
from tests.shapes import facts_of, write_header_gguf

MIB = 1 << 20
CPU = Target(name="cpu", ram_bytes=16 << 30)
CARD = next(target for target in CATALOGUE if target.name == "rtx-4090")
SHAPES: dict[str, ModelFacts] = {**{n: facts_of(c) for n, c in PUBLISHED.items()}, **ODD}


def types_of(facts: ModelFacts, quant: str = "Q4_K_M") -> dict[str, str]:
    if facts.format == "gguf":
        return {tensor.name: tensor.type for tensor in facts.tensors}
    return tensor_types(facts, quant, has_imatrix=True)


def cells_of(facts: ModelFacts) -> tuple[Cell, ...]:
    return ENCODER_CELLS if facts.architecture in NO_CACHE else CELLS


def ask(job: str, folder: Path, facts: ModelFacts, types: dict[str, str], cells: Iterable[Cell],
        **more: Any) -> list[Any]:  # fmt: skip
    """Let llama.cpp answer for a file that has headers and a hole for its weights."""
    path = folder / "model.gguf"
    write_header_gguf(path, facts, types)
    return run_child(
        f"tests.sizing_jobs:{job}", {"path": str(path), "cells": list(cells), **more},
        environment=os.environ,
    )  # fmt: skip
