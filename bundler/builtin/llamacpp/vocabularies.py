"""Whether a draft speaks the language of its model: llama.cpp's own rule, from headers. Pure.

`common_speculative_are_compatible` in common/speculative.cpp: the same kind of vocabulary, the same
first and last token where such are added, sizes that differ by little, and the same text for every
token that both have, but for the first few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundler.builtin.llamacpp.facts import ReadFile
from bundler.builtin.llamacpp.sharding import model_names
from bundler.errors import UnsafeInput
from bundler.lock import LockedFile, Resolution
from bundler.weights import GgufArray, read_gguf_header

MOST_DIFFERENCE = 128
"""`SPEC_VOCAB_MAX_SIZE_DIFFERENCE`."""
FIRST_COMPARED = 5
"""`SPEC_VOCAB_CHECK_START_TOKEN_ID`."""
_SHOWN_CHARACTERS = 24
# `llama_vocab::impl::load`: tokenizers of one kind, what the kinds begin and end with when the
# header does not say, and the byte-pair kinds that begin with a token all the same.
_SAME_KIND = {"hybriddna": "gpt2", "whitespace": "gpt2", "gemma4": "gpt2"}
_USUAL: Mapping[str, tuple[int, int]] = {"llama": (1, 2), "bert": (101, -1), "gpt2": (11, 11),
                                         "t5": (-1, 1), "plamo2": (1, 2)}  # fmt: skip
_BEGIN = frozenset({"llama", "bert"})
_END = frozenset({"t5"})
_BYTE_PAIRS_THAT_BEGIN = frozenset({
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "tekken", "chameleon", "gemma4",
})  # fmt: skip
_WITHOUT_FIRST = frozenset({"chatglm-bpe", "glm4", "glm5"})


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens, and what is put around a text."""

    kind: str
    first: int | None
    """The token that is put before a text; None where none is."""
    last: int | None
    tokens: Sequence[bytes]


def vocabulary(resolution: Resolution, read: ReadFile) -> Vocabulary:
    """Read a model's vocabulary: a GGUF header, or the tokenizer's files of a repository.

    Raises UnsafeInput for what is malformed or has none.
    """
    files = {file.path: file for file in resolution.files}
    if any(path.lower().endswith(".gguf") for path in files):
        return _of_fields(_gguf_fields(files, read), resolution.reference)
    return _of_fields(_published_fields(files, read), resolution.reference)


def _gguf_fields(files: Mapping[str, LockedFile], read: ReadFile) -> Mapping[str, Any]:
    first = files[model_names(files)[0]]
    header = read_gguf_header(
        lambda start, length: read(first, start, length), first.size_bytes, where=first.path
    )
    return header.metadata


def _published_fields(files: Mapping[str, LockedFile], read: ReadFile) -> Mapping[str, Any]:
    from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
    from bundler.builtin.llamacpp.convert.conversion import tokenizer_fields

    checkpoint = Checkpoint(
        {name: file.size_bytes for name, file in files.items()},
        lambda name, start, length: read(files[name], start, length),
    )
    return {key: given.value for key, given in tokenizer_fields(checkpoint).items()}


def _of_fields(fields: Mapping[str, Any], where: str) -> Vocabulary:
    said, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(said, str) or not isinstance(tokens, GgufArray | list | tuple):
        raise UnsafeInput("its header holds no vocabulary", where=where)
    kind = _SAME_KIND.get(said, said)
    begins = kind in _BEGIN or (kind == "gpt2" and {said, pre} & _BYTE_PAIRS_THAT_BEGIN != set())
    first, last = _USUAL.get(kind, (-1, -1))
    first = -1 if pre in _WITHOUT_FIRST else first
    if said != "gemma4":  # where llama.cpp begins with a token whatever the header says
        begins = bool(fields.get("tokenizer.ggml.add_bos_token", begins))
    ends = bool(fields.get("tokenizer.ggml.add_eos_token", kind in _END))
    return Vocabulary(
        kind,
        fields.get("tokenizer.ggml.bos_token_id", first) if begins else None,
        fields.get("tokenizer.ggml.eos_token_id", last) if ends else None,
        tuple(tokens.pieces() if isinstance(tokens, GgufArray) else map(str.encode, tokens)),
    )


def difference(model: Vocabulary, draft: Vocabulary) -> str:
    """Say why llama.cpp would not let `draft` draft for `model`; "" when it would."""
    if model.kind != draft.kind:
        return f"its tokenizer is of the kind {draft.kind!r}, the model's {model.kind!r}"
    for words, ours, theirs in (
        ("begin", draft.first, model.first), ("end", draft.last, model.last),
    ):  # fmt: skip
        if ours != theirs:
            return f"its texts {words} {_with(ours)}, the model's {_with(theirs)}"
    apart = abs(len(model.tokens) - len(draft.tokens))
    if apart > MOST_DIFFERENCE:
        return (
            f"it has {len(draft.tokens):,} tokens and the model {len(model.tokens):,}: they may "
            f"differ by {MOST_DIFFERENCE} at most"
        )
    both = zip(draft.tokens[FIRST_COMPARED:], model.tokens[FIRST_COMPARED:], strict=False)
    for number, (ours_text, theirs_text) in enumerate(both, start=FIRST_COMPARED):
        if ours_text != theirs_text:
            return f"its token {number} is {_shown(ours_text)}, the model's {_shown(theirs_text)}"
    return ""


def _with(token: int | None) -> str:
    return "with no token of their own" if token is None else f"with token {token}"


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace")[:_SHOWN_CHARACTERS])
