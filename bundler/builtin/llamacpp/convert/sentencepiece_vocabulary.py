"""Vocabulary of a SentencePiece model (`tokenizer.model`): tokens, scores and types.

Source: `_create_vocab_sentencepiece` in `conversion/base.py` of the llama.cpp source inside the
llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.fields import Fields
from bundler.builtin.llamacpp.convert.special_tokens import special_fields
from bundler.errors import UnsafeInput
from bundler.weights import field

FILE = "tokenizer.model"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens (`gguf.TokenType`)."""

MAX_TOKENS = 1 << 20
"""The largest real vocabularies have 262,144 tokens."""


class Token(NamedTuple):
    """One token of a vocabulary."""

    text: str
    score: float
    type: int


def looks_special(text: str) -> bool:
    """Whether an added token that is not marked as special ought to be (`does_token_look_special`)."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def sentencepiece_fields(checkpoint: Checkpoint, vocabulary: int | None) -> Fields:
    """Return the tokenizer's fields; `vocabulary` is the number of tokens the model has."""
    tokens = _pieces(checkpoint.content(FILE), vocabulary)
    for text, token_id in checkpoint.optional_json("added_tokens.json").items():
        _replace(tokens, token_id, Token(text, -1000.0, USER_DEFINED))
    decoder = checkpoint.optional_json("tokenizer_config.json").get("added_tokens_decoder", {})
    for key, entry in decoder.items():
        _replace(tokens, int(key), _added_token(entry))
    return vocabulary_fields(checkpoint, tokens)


def vocabulary_fields(checkpoint: Checkpoint, tokens: list[Token]) -> Fields:
    """Return the fields of a `llama` tokenizer with these tokens."""
    return {
        "tokenizer.ggml.model": field("STRING", "llama"),
        "tokenizer.ggml.pre": field("STRING", "default"),
        "tokenizer.ggml.tokens": field("STRING", [token.text for token in tokens]),
        "tokenizer.ggml.scores": field("FLOAT32", [token.score for token in tokens]),
        "tokenizer.ggml.token_type": field("INT32", [token.type for token in tokens]),
    } | special_fields(checkpoint, vocabulary=len(tokens))


def _replace(tokens: list[Token], token_id: Any, token: Token) -> None:
    """Put an added token in its place; ids beyond the model's vocabulary cannot be used."""
    if type(token_id) is not int or token_id < 0:
        raise UnsafeInput(f"the added token {token.text!r} has the id {token_id!r}", where=FILE)
    if token_id < len(tokens):
        tokens[token_id] = token


def _added_token(entry: Mapping[str, Any]) -> Token:
    text = entry.get("content")
    if not isinstance(text, str):
        raise UnsafeInput(f"the added token {entry!r} has no text", where="tokenizer_config.json")
    if entry.get("special") or looks_special(text):
        return Token(text, -1000.0, CONTROL)
    return Token(text.replace("\u2581", " "), -1000.0, USER_DEFINED)


def _pieces(raw: bytes, vocabulary: int | None) -> list[Token]:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=raw)
        count = processor.vocab_size()
    except (RuntimeError, ValueError) as error:
        raise UnsafeInput(f"not a SentencePiece model: {error}", where=FILE) from None
    size = vocabulary or count
    if max(size, count) > MAX_TOKENS:
        raise UnsafeInput(f"a vocabulary of {max(size, count)} tokens", where=FILE)
    tokens = [
        Token(processor.id_to_piece(n), processor.get_score(n), _type(processor, n))
        for n in range(min(count, size))
    ]
    return tokens + [Token(f"[PAD{n}]", -10000.0, UNUSED) for n in range(len(tokens), size)]


def _type(processor: Any, token_id: int) -> int:
    if processor.is_unknown(token_id):
        return UNKNOWN
    if processor.is_control(token_id):
        return CONTROL
    if processor.is_unused(token_id):
        return UNUSED
    return BYTE if processor.is_byte(token_id) else NORMAL
