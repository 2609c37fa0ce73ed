"""Memory of models whose graph is not described here, by asking llama.cpp where it is installed.

A file with the model's headers and a hole for its weights is opened in a child process without
allocating anything, and llama.cpp says what it would allocate. Nothing is ever guessed: without
llama.cpp, or when it does not know the architecture either, the answer is a refusal.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.graph.families import FAMILIES
from bundler.builtin.llamacpp.graph.shape import Run, Same
from bundler.errors import BundlerError, RecipeError
from bundler.lock import ModelFacts
from bundler.weights.gguf_writer import GgufField, TensorPlan, encode_header, field

_JOB = "bundler.builtin.llamacpp.measured_memory:breakdown_job"
_SECONDS = 120.0
_SHOWN = ", ".join(sorted(FAMILIES))
SOURCE = "llama.cpp's own account of the model's headers, not allocated"


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Bytes llama.cpp would allocate with everything on the CPU."""

    weights: int
    cache: int
    """Keys and values, and recurrent states."""
    compute: int


def measured_buffers(facts: ModelFacts, run: Run, reason: str) -> Buffers:
    """Ask llama.cpp; `reason` is why it cannot be computed.

    Raises:
        RecipeError: llama.cpp is not installed here, or does not know the architecture either.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise RecipeError(
            f"how much memory the model takes cannot be computed: {reason} (described are: "
            f"{_SHOWN}), and llama.cpp is not installed here to ask",
            hint="pip install llama-cpp-python on this machine, or take a model of one of these "
            "architectures",
        )
    return _ask(Same(facts), run)


@functools.lru_cache(maxsize=256)
def _ask(known: Same[ModelFacts], run: Run) -> Buffers:
    facts = known.value
    with tempfile.TemporaryDirectory(prefix="bundler-") as folder:
        path = Path(folder) / "headers.gguf"
        write_headers(path, facts)
        arguments = {"path": str(path), **dataclasses.asdict(run)}
        try:
            found = run_child(_JOB, arguments, environment=os.environ, timeout_seconds=_SECONDS)
        except BundlerError as error:
            raise RecipeError(
                f"llama.cpp cannot say how much memory the architecture {facts.architecture!r} "
                f"takes: {error}",
                hint=f"take a model of one of these architectures: {_SHOWN}",
            ) from error
    return Buffers(**found)


def write_headers(path: Path, facts: ModelFacts) -> None:
    """Write a GGUF file with a model's headers and, as a hole, all its data; no vocabulary."""
    plans = [TensorPlan(tensor.name, tensor.type, tensor.shape) for tensor in facts.tensors]
    header = encode_header(header_fields(facts), plans)
    path.write_bytes(header)
    os.truncate(path, len(header) + sum((plan.size_bytes + 31) // 32 * 32 for plan in plans))


def header_fields(facts: ModelFacts) -> dict[str, GgufField]:
    """Return the fields the model's own header has for its architecture, but no vocabulary.

    Raises RecipeError for facts that were locked before these fields were kept.
    """
    kept: Mapping[str, Any] = facts.extra.get("header_fields", {})
    if not kept:
        raise RecipeError(
            f"the lock does not hold what llama.cpp needs to size a {facts.architecture!r} model",
            hint="run bundler lock again; only GGUF files of unknown architectures can be sized",
        )
    fields = {key: field(str(type_), value) for key, (type_, value) in kept.items()}
    return {
        "general.architecture": field("STRING", facts.architecture),
        **fields,
        f"{facts.architecture}.vocab_size": field("UINT32", facts.vocabulary),
        "tokenizer.ggml.model": field("STRING", "no_vocab"),
    }


def breakdown_job(arguments: Mapping[str, Any], report: Any) -> dict[str, int]:
    """Child job: open the headers without allocating and return what would be allocated."""
    from bundler.builtin.llamacpp.breakdown import memory_by_backend
    from bundler.builtin.llamacpp.session import open_context, open_model

    path, users = Path(arguments["path"]), int(arguments["parallel"])
    with (
        open_model(path, gpu=False, title=path.name, no_alloc=True, load_mode=0) as model,
        open_context(
            model,
            context_tokens=int(arguments["context_tokens"]) * users,
            sequences=users,
            batch_tokens=int(arguments["batch_tokens"]),
            micro_batch_tokens=int(arguments["batch_tokens"]),
            kv_cache=str(arguments["kv_cache"]),
            flash_attention="on" if arguments["flash_attention"] else "off",
            embeddings=bool(arguments["embeddings"]),
        ) as context,
    ):
        buffers, _ = memory_by_backend(context, not_allocated=True)
    weights, cache, compute = (sum(kind) for kind in zip(*buffers.values(), strict=True))
    return {"weights": weights, "cache": cache, "compute": compute}
