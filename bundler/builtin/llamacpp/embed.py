"""Embedders and rerankers against the unquantized model, on held-out text.

Runs only in a child process. An embedder is judged by the worst cosine between its vectors and the
reference's for the same passages; a reranker by how far its order of passages agrees.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.session import (
    Context,
    Model,
    adapters_of,
    open_context,
    open_model,
)
from bundler.builtin.llamacpp.texts import read_text
from bundler.errors import RecipeError, StepFailed

Vectors = npt.NDArray[np.float32]
_POOLING_RANK = 4  # enum llama_pooling_type
_PASSAGES = 128
_PASSAGE_CHARACTERS = 1200
_MOST_BYTES = 1 << 20
_QUERIES = 8
_REPEATS = 3


def embed_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: compare vectors. Arguments: model, reference (or none), text, gpu, window_tokens.

    Returns the number of passages and dimensions, and the worst and mean cosine.
    """
    passages = _passages(Path(arguments["text"]))
    own = _vectors(_side(arguments, "model"), passages, arguments, report)
    out: dict[str, Any] = {"passages": len(passages), "dimensions": int(own.shape[1])}
    if arguments.get("reference"):
        reference = _vectors(_side(arguments, "reference"), passages, arguments, report)
        if reference.shape != own.shape:
            raise RecipeError("the model and its reference make vectors of different lengths")
        cosines = (own * reference).sum(axis=1)
        out |= {"cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}
    return out


def rerank_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: compare orders. Takes the arguments of `embed_job`.

    Returns Spearman's rank correlation of the scores of all passages for a few queries.
    """
    passages = _passages(Path(arguments["text"]))
    own = _scores(_side(arguments, "model"), passages, arguments, report)
    out: dict[str, Any] = {"pairs": int(own.size)}
    if arguments.get("reference"):
        reference = _scores(_side(arguments, "reference"), passages, arguments, report)
        each = [_rank_correlation(a, b) for a, b in zip(own, reference, strict=True)]
        out |= {
            "rank_correlation_min": min(each),
            "best_agreement": float((own.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        }
    return out


def time_embedding(
    model: Model, context: Context, prompt: str, context_tokens: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time one text as long as the context (nothing is generated); return speed and a sample."""
    room = min(context_tokens, model.trained_context())
    words = np.random.default_rng(0).integers(0, model.vocabulary, room)
    rates = []
    for _ in range(_REPEATS + 1):  # the first warms up
        context.clear()
        begun = time.perf_counter()
        _pooled(context, [int(word) for word in words])
        rates.append(room / (time.perf_counter() - begun))
    context.clear()
    vector = _pooled(context, model.tokens(prompt, start=True)[:room])
    speed = {
        "prompt_tokens_per_second": round(statistics.median(rates[1:]), 3),
        "generation_tokens_per_second": 0.0,
        "prompt_tokens": room,
        "generated_tokens": 0,
        "repeats": _REPEATS,
    }
    shown = ", ".join(f"{float(number):.4f}" for number in vector[:4])
    sample = {
        "sample_prompt": prompt,
        "sample_text": f"{vector.size} numbers: {shown}, …",
        "chat_template": False,
        "selftest": _selftest(prompt, vector),
    }
    return speed, sample


def _selftest(prompt: str, vector: npt.NDArray[np.float32]) -> dict[str, Any] | None:
    """Return what is asked again at the far end; nothing for a reranker, which gives one number."""
    length = float(np.linalg.norm(vector))
    if vector.size < 2 or not length:
        return None
    return {"text": prompt, "vector": [round(float(number) / length, 5) for number in vector]}


def _passages(text: Path) -> list[str]:
    """Cut the held-out text into passages at blank lines; lines where there are none."""
    whole, _ = read_text({text.name: text}, most_bytes=_MOST_BYTES)
    blocks = whole.split("\n\n") if "\n\n" in whole else whole.splitlines()
    found = [" ".join(block.split())[:_PASSAGE_CHARACTERS] for block in blocks]
    found = list(dict.fromkeys(p for p in found if len(p) >= 16))[:_PASSAGES]
    if len(found) < 2:
        raise RecipeError(
            "the held-out text has fewer than two passages", where=text.name,
            hint="separate passages by blank lines",
        )  # fmt: skip
    return found


class _Side(NamedTuple):
    """One of the two models of a comparison."""

    path: Path
    title: str
    progress: tuple[int, int]
    """Which part of how many of the whole work it is."""


def _side(arguments: Mapping[str, Any], name: str) -> _Side:
    parts = 2 if arguments.get("reference") else 1
    return _Side(Path(arguments[name]), f"{name}.gguf", (int(name == "reference"), parts))


def _vectors(
    side: _Side, passages: Sequence[str], arguments: Mapping[str, Any], report: Any
) -> Vectors:
    """Return one vector of length 1 per passage."""

    def one(model: Model, context: Context, passage: str, room: int) -> Vectors:
        return _pooled(context, model.tokens(passage, start=True)[:room])

    rows = np.stack(_each(side, passages, arguments, one, report))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or (lengths == 0).any():
        raise StepFailed("the model made vectors that are empty or not finite", where=side.title)
    vectors: Vectors = (rows / lengths).astype(np.float32)
    return vectors


def _scores(
    side: _Side, passages: Sequence[str], arguments: Mapping[str, Any], report: Any
) -> npt.NDArray[np.float64]:
    """Return (queries, passages): the first words of some passages are the queries."""
    queries = [" ".join(passage.split()[:8]) for passage in passages[:_QUERIES]]
    pairs = [f"{query}\0{passage}" for query in queries for passage in passages]

    def one(model: Model, context: Context, pair: str, room: int) -> Vectors:
        query, passage = pair.split("\0", maxsplit=1)
        return _pooled(context, _pair_tokens(model, query, passage)[:room])[:1]

    rows = _each(side, pairs, arguments, one, report, ranks=True)
    return np.stack(rows).astype(np.float64).reshape(len(queries), len(passages))


def _pair_tokens(model: Model, query: str, passage: str) -> list[int]:
    """Lay a query and a passage out as llama-server does: [BOS] query [EOS][SEP] passage [EOS]."""
    library, vocabulary = native.llama(), model.vocab_pointer
    bos, eos = library.llama_vocab_bos(vocabulary), library.llama_vocab_eos(vocabulary)
    separator = library.llama_vocab_sep(vocabulary)
    eos = separator if eos < 0 else eos
    between = [eos, separator] if library.llama_vocab_get_add_sep(vocabulary) else [eos]
    laid = [bos, *model.tokens(query), *between, *model.tokens(passage), eos]
    return [token for token in laid if token >= 0]


def _each(
    side: _Side, passages: Sequence[str], arguments: Mapping[str, Any],
    one: Callable[[Model, Context, str, int], Vectors], report: Any, *, ranks: bool = False,
) -> list[Vectors]:  # fmt: skip
    gpu = bool(arguments["gpu"])
    part, parts = side.progress
    with open_model(
        side.path, gpu=gpu, title=side.title, gpu_layers=int(arguments.get("gpu_layers", -1)),
        adapters=adapters_of(arguments),
    ) as model:  # fmt: skip
        room = min(int(arguments["window_tokens"]), model.trained_context())
        with open_context(
            model, context_tokens=room, batch_tokens=room, micro_batch_tokens=room,
            embeddings=True,
        ) as context:  # fmt: skip
            if ranks and not _ranks(context):
                raise RecipeError(
                    "the model is no reranker: its header does not say that it ranks",
                    where=side.title,
                    hint="give it the role embed, or use a reranker's GGUF file",
                )
            out = []
            for number, passage in enumerate(passages):
                context.clear()
                out.append(one(model, context, passage, room))
                report(part * len(passages) + number + 1, parts * len(passages), "articles")
    return out


def _pooled(context: Context, tokens: Sequence[int]) -> Vectors:
    """Decode one passage and return its vector: the model's own pooling, else the mean."""
    library = native.llama()
    context.decode(tokens, logits_from=0)
    size = library.llama_model_n_embd(context.model.pointer)
    pooled = library.llama_get_embeddings_seq(context.pointer, 0)
    if pooled:
        count = library.llama_model_n_cls_out(context.model.pointer) if _ranks(context) else size
        return np.ctypeslib.as_array(pooled, shape=(count,)).copy()
    rows = library.llama_get_embeddings(context.pointer)
    if not rows:
        raise StepFailed("llama.cpp gave no embeddings", where=context.model.title)
    mean: Vectors = np.ctypeslib.as_array(rows, shape=(len(tokens), size)).mean(axis=0)
    return mean


def _ranks(context: Context) -> bool:
    return bool(native.llama().llama_pooling_type(context.pointer) == _POOLING_RANK)


def _rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return Spearman's correlation; ties (equal scores to the bit) keep their order."""
    ranks_a, ranks_b = (np.argsort(np.argsort(side, kind="stable")) for side in (a, b))
    n = len(a)
    squares = float(((ranks_a - ranks_b) ** 2).sum())
    return 1.0 if n < 2 else 1.0 - 6.0 * squares / (n * (math.pow(n, 2) - 1.0))
