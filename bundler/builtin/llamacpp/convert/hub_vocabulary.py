"""Vocabularies of a `tokenizer.json`: byte-level BPE, WordPiece, and SentencePiece-like BPE.

Source: `get_vocab_base`, `_set_vocab_gpt2` and `_set_vocab_llama_hf` in `conversion/base.py`,
`BertModel.set_vocab` in `conversion/bert.py` and `LlamaHfVocab` in `gguf-py/gguf/vocab.py` of the
llama.cpp source inside the llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

import re

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.fields import Fields
from bundler.builtin.llamacpp.convert.hub_tokenizer import FILE, HubTokenizer
from bundler.builtin.llamacpp.convert.pre_tokenizers import NAMES, SENTENCE, fingerprint
from bundler.builtin.llamacpp.convert.sentencepiece_vocabulary import (
    BYTE,
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Token,
    looks_special,
    vocabulary_fields,
)
from bundler.builtin.llamacpp.convert.special_tokens import special_fields
from bundler.errors import UnsafeInput
from bundler.weights import field


def is_sentencepiece_like(checkpoint: Checkpoint) -> bool:
    """Whether `tokenizer.json` is a SentencePiece model in other clothes (BPE, byte fallback)."""
    tokenizer = checkpoint.json(FILE)
    model = tokenizer.get("model") or {}
    decoder = tokenizer.get("decoder") or {}
    return (
        model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and decoder.get("type") == "Sequence"
    )


def sentencepiece_like_fields(checkpoint: Checkpoint) -> Fields:
    """Return the fields of such a tokenizer: the same as of a SentencePiece model, but scores."""
    hub = HubTokenizer(checkpoint)
    base = hub.base_size()
    tokens = [
        _like_token(text, hub, base, number) for number, text in sorted(hub.vocabulary().items())
    ]
    return vocabulary_fields(checkpoint, tokens)


def _like_token(text: str, hub: HubTokenizer, base: int, number: int) -> Token:
    special = text in hub.specials
    if number < base and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
        return Token(text, -1000.0, BYTE)
    other = NORMAL if number < base else USER_DEFINED
    return Token(text, -1000.0, CONTROL if special else other)


def byte_pair_fields(checkpoint: Checkpoint, vocabulary: int | None) -> Fields:
    """Return the fields of a byte-level BPE tokenizer (GPT-2's kind) with its merges."""
    pre, tokens = _base(HubTokenizer(checkpoint), vocabulary)
    return _fields("gpt2", pre, tokens) | special_fields(checkpoint, with_merges=True)


def word_piece_fields(checkpoint: Checkpoint, vocabulary: int | None) -> Fields:
    """Return the fields of a WordPiece tokenizer, words marked by a leading `▁`."""
    pre, tokens = _base(HubTokenizer(checkpoint), vocabulary)
    marked = [token._replace(text=_phantom(token)) for token in tokens]
    return _fields("bert", pre, marked) | special_fields(checkpoint, vocabulary=len(tokens))


def _phantom(token: Token) -> str:
    if token.type == CONTROL:
        return token.text
    return token.text[2:] if token.text.startswith("##") else "\u2581" + token.text


def _fields(model: str, pre: str, tokens: list[Token]) -> Fields:
    return {
        "tokenizer.ggml.model": field("STRING", model),
        "tokenizer.ggml.pre": field("STRING", pre),
        "tokenizer.ggml.tokens": field("STRING", [token.text for token in tokens]),
        "tokenizer.ggml.token_type": field("INT32", [token.type for token in tokens]),
    }


def _base(hub: HubTokenizer, vocabulary: int | None) -> tuple[str, list[Token]]:
    """Return the pre-tokenizer's name and the tokens, filled up to the model's vocabulary."""
    texts = hub.vocabulary()
    size = vocabulary or len(texts)
    if not texts or max(texts) >= size or size > MAX_TOKENS:
        raise UnsafeInput(
            f"the tokenizer has ids up to {max(texts, default=-1)}, the model {size} tokens",
            where=FILE,
        )
    pre = NAMES.get(mark := fingerprint(hub.encode(SENTENCE, with_specials=True)))
    if pre is None:
        raise UnsafeInput(
            f"llama.cpp has no rules for this pre-tokenizer (fingerprint {mark})",
            where=FILE,
            hint="use a GGUF file of this model that its publisher made",
        )
    return pre, [_base_token(hub, texts, number) for number in range(size)]


def _base_token(hub: HubTokenizer, texts: dict[int, str], number: int) -> Token:
    text = texts.get(number)
    if text is None:
        return Token(f"[PAD{number}]", 0.0, UNUSED)
    added = hub.added.get(number)
    if added is None:
        return Token(text, 0.0, NORMAL)
    if not added.normalized:
        text = hub.normalized(text)
    if added.special or looks_special(text):
        return Token(text, 0.0, CONTROL)
    return Token(text.replace("\u2581", " "), 0.0, USER_DEFINED)
