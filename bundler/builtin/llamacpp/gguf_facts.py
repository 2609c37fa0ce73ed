"""Facts of a ready GGUF model: one file, or the parts of a split one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from bundler.builtin.llamacpp.sharding import model_names
from bundler.errors import Problem, UnsafeInput
from bundler.lock import LockedFile, ModelFacts, TensorFact
from bundler.weights import GgufArray, GgufHeader, GgufTensor, read_gguf_header
from bundler.weights.gguf import STRING, VALUE_TYPES
from bundler.weights.shards import check_shards

MAX_COUNT = 1 << 31
MAX_LAYERS = 1 << 12
_ALSO_KEPT = ("tokenizer.ggml.token_type_count",)
MAX_TEXT = 1 << 12
"""Longer texts (chat templates) are left out of the facts."""

WINDOW_PATTERNS: dict[str, tuple[int, bool]] = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone4": (4, False),
    "exaone-moe": (4, False), "gemma-embedding": (6, False), "gemma2": (2, False),
    "gemma3": (6, False), "gemma3n": (5, False), "gpt-oss": (2, False), "laguna": (4, True),
    "llama4": (4, False), "mellum": (4, False), "modern-bert": (3, True),
    "muse-glimmer": (4, False), "olmo2": (4, False), "plamo3": (8, False), "smallthinker": (4, True),
}  # fmt: skip
"""Architecture → every how many layers one attends to everything, and whether the first of them
does rather than the last (`load_swa_pattern` in `src/models/*.cpp` of llama.cpp). Others that
have a window tell each layer in an array, or are given a full cache whatever their window."""


def gguf_facts(
    files: Mapping[str, LockedFile], read: Callable[[LockedFile, int, int], bytes]
) -> ModelFacts:
    """Read the headers of a GGUF model. Raises UnsafeInput."""
    parts = [files[name] for name in model_names(files)]
    headers = [_header(part, read) for part in parts]
    keys = _Keys(headers[0], parts[0].path)
    check_shards(headers, keys.where)
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not tensors:
        raise UnsafeInput("it holds a vocabulary but no weights", where=keys.where)
    return _facts(keys, tensors)


def _header(file: LockedFile, read: Callable[[LockedFile, int, int], bytes]) -> GgufHeader:
    def read_part(start: int, length: int) -> bytes:
        return read(file, start, length)

    return read_gguf_header(read_part, file.size_bytes, where=file.path)


class _Keys:
    """Typed access to the fields of a header: a field of another type is refused, not believed."""

    def __init__(self, header: GgufHeader, where: str) -> None:
        self.header = header
        self.where = where
        self.architecture = self.text("general.architecture")

    def fail(self, key: str, wanted: str) -> UnsafeInput:
        """Make the error for a field that is missing or of the wrong kind."""
        value = self.header.metadata.get(key)
        found = "missing" if value is None else f"the {type(value).__name__} {str(value)[:60]!r}"
        if isinstance(value, GgufArray):
            found = f"an array of {len(value)} {VALUE_TYPES[value.element_type]}"
        return UnsafeInput(f"{key} should be {wanted}, it is {found}", where=self.where)

    def text(self, key: str) -> str:
        """Return a short text."""
        value = self.header.metadata.get(key)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
            raise self.fail(key, "a short text")
        return value

    def count(self, key: str, default: int | None = None, *, most: int = MAX_COUNT) -> int:
        """Return a count."""
        value = self.header.metadata.get(key, default)
        if type(value) is not int or not 0 <= value <= most:
            raise self.fail(key, f"a number from 0 to {most}")
        return value

    def own(self, name: str, default: int | None = None) -> int:
        """Return a count under the architecture's name."""
        return self.count(f"{self.architecture}.{name}", default)

    def each(self, name: str, layers: int, default: int | None = None) -> tuple[int, ...]:
        """Return a count of each layer: a field that is one number, or an array of them."""
        key = f"{self.architecture}.{name}"
        value = self.header.metadata.get(key)
        if not isinstance(value, GgufArray):
            return (self.own(name, default),) * layers
        numbers = tuple(value) if value.element_type != STRING and len(value) == layers else ()
        result = tuple(int(n) for n in numbers if isinstance(n, int) and 0 <= n <= MAX_COUNT)
        if len(result) != layers:
            raise self.fail(key, f"{layers} numbers")
        return result

    def array(self, key: str) -> GgufArray | None:
        """Return an array, or None when there is none."""
        value = self.header.metadata.get(key)
        if value is not None and not isinstance(value, GgufArray):
            raise self.fail(key, "an array")
        return value


def _facts(keys: _Keys, tensors: list[GgufTensor]) -> ModelFacts:
    layers = keys.own("block_count")
    if not 1 <= layers <= MAX_LAYERS:
        raise keys.fail(f"{keys.architecture}.block_count", f"from 1 to {MAX_LAYERS}")
    hidden = keys.own("embedding_length")
    heads = max(keys.each("attention.head_count", layers, 0))
    head_dim = hidden // heads if heads else 0
    window, pattern, slides = _window(keys, layers)
    extra = _extra(keys, tensors) | ({"sliding_layers": slides} if slides else {})
    _check_sizes(keys, tensors, hidden)
    return ModelFacts(
        format="gguf",
        architecture=keys.architecture,
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        context_tokens=keys.own("context_length"),
        layers=layers,
        hidden=hidden,
        feed_forward=max(keys.each("feed_forward_length", layers, 0)),
        heads=heads,
        kv_heads=keys.each("attention.head_count_kv", layers, heads),
        head_dim_key=keys.own("attention.key_length", head_dim),
        head_dim_value=keys.own("attention.value_length", head_dim),
        vocabulary=_vocabulary(keys, tensors),
        tied_embeddings=all(t.name not in ("output.weight", "cls.output.weight") for t in tensors)
        and keys.header.metadata.get(f"{keys.architecture}.attention.causal", True) is True,
        sliding_window_tokens=window,
        sliding_window_pattern=pattern,
        experts=keys.own("expert_count", 0),
        experts_used=keys.own("expert_used_count", 0),
        tensors=tuple(TensorFact(name=t.name, type=t.type, shape=t.shape) for t in tensors),
        extra=extra,
    )


def _check_sizes(keys: _Keys, tensors: list[GgufTensor], hidden: int) -> None:
    """Hold what the header says of sizes to the tensors: llama.cpp would not load it otherwise."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    problems = []
    table = shapes.get("token_embd.weight")
    if table and table[-1] != hidden:
        problems.append(f"embedding_length is {hidden}, but token_embd.weight has {table[-1]}")
    experts, used = keys.own("expert_count", 0), keys.own("expert_used_count", 0)
    if used > experts:
        problems.append(f"expert_used_count is {used} of {experts} experts")
    held = {shape[0] for name, shape in shapes.items() if name.endswith("_exps.weight")}
    if held and held != {experts}:
        problems.append(f"expert_count is {experts}, but tensors hold {sorted(held)} experts")
    if problems:
        raise UnsafeInput(
            [
                Problem(f"the header contradicts the tensors: {problem}", keys.where)
                for problem in problems
            ]
        )


def _vocabulary(keys: _Keys, tensors: list[GgufTensor]) -> int:
    """Return the number of tokens; the arrays that describe them must agree (and have the types
    the loader takes for granted).
    """
    tokens = keys.array("tokenizer.ggml.tokens")
    if tokens is None:
        embeddings = next((t for t in tensors if t.name == "token_embd.weight"), None)
        return embeddings.shape[0] if embeddings else keys.own("vocab_size", 0)
    if tokens.element_type != STRING or not len(tokens):
        raise keys.fail("tokenizer.ggml.tokens", "an array of strings")
    for key, wanted in (("scores", (6,)), ("token_type", (4, 5))):
        array = keys.array(f"tokenizer.ggml.{key}")
        if array is not None and (array.element_type not in wanted or len(array) != len(tokens)):
            raise keys.fail(f"tokenizer.ggml.{key}", f"{len(tokens)} numbers, one for each token")
    return len(tokens)


def _window(keys: _Keys, layers: int) -> tuple[int, int, list[bool]]:
    """Return the sliding window, its period, and (where layers differ freely) which slide."""
    known = WINDOW_PATTERNS.get(keys.architecture)
    tokens = keys.own("attention.sliding_window", 8192 if keys.architecture == "llama4" else 0)
    name = f"{keys.architecture}.attention.sliding_window_pattern"
    if isinstance(keys.header.metadata.get(name), GgufArray):
        slides = [bool(flag) for flag in keys.each("attention.sliding_window_pattern", layers)]
        return (tokens, 0, slides) if any(slides) and tokens else (0, 0, [])
    if known is None or not tokens:
        return 0, 0, []
    period, first = keys.own("attention.sliding_window_pattern", known[0]), known[1]
    if not first:
        return tokens, period, []
    return tokens, period, [not period or layer % period != 0 for layer in range(layers)]


def _extra(keys: _Keys, tensors: list[GgufTensor]) -> dict[str, Any]:
    prefix = keys.architecture + "."
    hyperparameters: dict[str, Any] = {}
    for key, value in keys.header.metadata.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise keys.fail(key, "a finite number")
        small = not isinstance(value, str) or len(value) <= MAX_TEXT
        if key.startswith(prefix) and not isinstance(value, GgufArray) and small:
            hyperparameters[key.removeprefix(prefix)] = value
    kept = _header_fields(keys)
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type] = types.get(tensor.type, 0) + 1
    return {
        "hyperparameters": hyperparameters,
        "types": types,
        "file_type": keys.count("general.file_type", 0),
        "tokenizer": keys.header.metadata.get("tokenizer.ggml.model", "none"),
        "has_chat_template": "tokenizer.chat_template" in keys.header.metadata,
        "parts": keys.count("split.count", 1),
        "header_fields": kept,
    }


def _header_fields(keys: _Keys) -> dict[str, Any]:
    """Return the architecture's own fields with their types: where a model's memory cannot be
    computed, llama.cpp is asked with these.
    """
    found: dict[str, Any] = {}
    for key, value in keys.header.metadata.items():
        if not key.startswith(f"{keys.architecture}.") and key not in _ALSO_KEPT:
            continue
        if key == f"{keys.architecture}.vocab_size":
            continue
        number = keys.header.value_types[key]
        if not isinstance(value, GgufArray):
            found[key] = [VALUE_TYPES[number], value]
        elif value.element_type != STRING and len(value) <= MAX_LAYERS:
            numbers = list(value)
            if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
                raise keys.fail(key, "finite numbers")
            found[key] = [VALUE_TYPES[value.element_type], numbers]
    return found
