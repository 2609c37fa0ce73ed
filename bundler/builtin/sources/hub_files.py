"""Which files of a repository on the Hub are taken: only safe ones, and each weight once.

Safe are formats that hold data and nothing else: safetensors, GGUF, JSON and plain text. Pickles
(`.bin`, `.pt`, `.pkl`…) can run programs when they are read and are never even asked for, and
neither is code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bundler.builtin.sources.naming import included
from bundler.errors import SourceError, UnsafeInput

SAFE_ENDINGS = (".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja", ".md")
TABLE_ENDINGS = (".csv", ".jsonl", ".parquet")
"""Of questions, for instance: data too, but taken only where a recipe asks for them."""
_SAFE_NAMES = frozenset({"LICENSE", "LICENCE", "NOTICE", "COPYING", "README"})
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".h5", ".msgpack")
# Second sets of the same weights, in other shapes or for other programs.
_OTHER_FOLDERS = ("original/", "onnx/", "openvino/", "coreml/", "metal/", "gguf/")
INDEX = "model.safetensors.index.json"


def is_safe(name: str) -> bool:
    """Tell whether a file is of a kind that is ever asked for."""
    return name.lower().endswith(SAFE_ENDINGS) or name.rpartition("/")[2] in _SAFE_NAMES


def choose(names: Sequence[str], patterns: Sequence[str], where: str) -> list[str]:
    """Return the files to take, sorted: those the recipe asks for, or one whole set of weights.

    Raises:
        UnsafeInput: there are weights, but none in a safe format, or a pattern asks for others.
        SourceError: a pattern matches nothing.
    """
    if patterns:
        return _asked_for(names, patterns, where)
    safe = [name for name in names if is_safe(name)]
    weights = [name for name in safe if name.lower().endswith((".safetensors", ".gguf"))]
    if not weights and any(name.lower().endswith(_PICKLES) for name in names):
        raise _no_safe_weights(where)
    kept = _one_set(weights)
    return sorted(
        name
        for name in safe
        if name in kept or (name not in weights and not name.lower().startswith(_OTHER_FOLDERS))
    )


def _asked_for(names: Sequence[str], patterns: Sequence[str], where: str) -> list[str]:
    found = included(names, patterns, where)
    safe = [name for name in found if is_safe(name) or name.lower().endswith(TABLE_ENDINGS)]
    if not safe:
        raise _no_safe_weights(where)
    return safe


def _no_safe_weights(where: str) -> UnsafeInput:
    return UnsafeInput(
        "has no safe weights: only formats that can run programs when they are read",
        where=where,
        hint="look for a repository with .safetensors or .gguf files",
    )


def _one_set(weights: Sequence[str]) -> frozenset[str]:
    """Return one complete set among the weights: `model*.safetensors` before any other.

    Several GGUF files are several quantizations of one model: which one is the recipe's choice,
    so they are all kept and the engine asks.
    """
    tensors = [name for name in weights if name.lower().endswith(".safetensors")]
    tensors = [
        name
        for name in tensors
        if not name.startswith(_OTHER_FOLDERS)
        and not name.rpartition("/")[2].startswith("consolidated")
    ] or tensors
    if not tensors:
        return frozenset(weights)
    if "model.safetensors" in tensors:
        beside = [n for n in tensors if n.rpartition("/")[0]]
        return frozenset(["model.safetensors", *_parts_of_embedders(beside)])
    shards = [name for name in tensors if name.startswith("model-") and "-of-" in name]
    return frozenset(shards or tensors)


def _parts_of_embedders(names: Sequence[str]) -> list[str]:
    """Sentence-transformers keep small layers in folders of their own: `2_Dense/model.safetensors`."""
    return [name for name in names if name[:1].isdigit() and name.count("/") == 1]


def check_shards(shards: Iterable[str], names: Sequence[str], where: str) -> None:
    """Refuse a repository whose index names shards which it does not have.

    Raises:
        SourceError: names the missing shards.
    """
    missing = sorted(set(shards) - set(names))
    if missing:
        raise SourceError(
            f"its index names {len(missing)} files which it does not have: {', '.join(missing[:5])}",
            where=where,
            hint="the repository is incomplete at this revision: choose another one",
        )
