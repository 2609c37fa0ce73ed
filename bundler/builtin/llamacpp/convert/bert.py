"""BERT-type embedders with a WordPiece vocabulary: MiniLM, bge, e5, gte.

Source: `BertModel` in `conversion/bert.py` of the llama.cpp source inside the llama-cpp-python
0.3.36 sdist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.config import FILE, whole
from bundler.builtin.llamacpp.convert.family import Config, Family
from bundler.builtin.llamacpp.convert.fields import Fields, pooling_fields
from bundler.builtin.llamacpp.convert.hub_vocabulary import word_piece_fields
from bundler.builtin.llamacpp.convert.tensors import NameMap
from bundler.errors import UnsafeInput
from bundler.weights import field

_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{n}.attention.self.query": "blk.{n}.attn_q",
    "encoder.layer.{n}.attention.self.key": "blk.{n}.attn_k",
    "encoder.layer.{n}.attention.self.value": "blk.{n}.attn_v",
    "encoder.layer.{n}.attention.output.dense": "blk.{n}.attn_output",
    "encoder.layer.{n}.attention.output.LayerNorm": "blk.{n}.attn_output_norm",
    "encoder.layer.{n}.intermediate.dense": "blk.{n}.ffn_up",
    "encoder.layer.{n}.output.dense": "blk.{n}.ffn_down",
    "encoder.layer.{n}.output.LayerNorm": "blk.{n}.layer_output_norm",
    "classifier": "cls",
    "classifier.out_proj": "cls.output",
}

_IGNORED = (
    r"embeddings\.position_ids$",
    # Pooling heads and training heads: an embedder does without.
    r"pooler\.dense\.",
    r"cls\.(predictions|seq_relationship)",
)


def labels(config: Config) -> list[str]:
    """Return the names of a classifier's outputs; none for the two that every config has."""
    found = config.get("id2label") or {}
    if not isinstance(found, Mapping):
        raise UnsafeInput(f"id2label is {found!r}", where=FILE)
    names = [str(found[key]) for key in sorted(found, key=int)]
    return [] if len(names) == 2 and names[0] == "LABEL_0" else names


def bert_fields(checkpoint: Checkpoint, config: Config) -> Fields:
    """Return what makes it an encoder: no causal mask, pooling, a classifier's labels."""
    fields = {"bert.attention.causal": field("BOOL", False)} | pooling_fields("bert", checkpoint)
    names = labels(config)
    if names:
        fields["bert.classifier.output_labels"] = field("STRING", names)
    return fields


def bert_tokenizer(checkpoint: Checkpoint, config: Config) -> Fields:
    """Return the fields of a WordPiece tokenizer."""
    types: Any = whole({"type_vocab_size": config.get("type_vocab_size", 1)}, "type_vocab_size")
    head = {"tokenizer.ggml.token_type_count": field("UINT32", types)}
    return head | word_piece_fields(checkpoint, whole(config, "vocab_size"))


class _BertNames(NameMap):
    """Old checkpoints say gamma and beta, and put everything under `bert.`."""

    def rename(self, name: str, layers: int) -> str | None:
        name = name.removeprefix("bert.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return super().rename(name, layers)


BERT = Family(
    architecture="bert",
    classes=("BertModel", "BertForMaskedLM"),
    names=_BertNames(_NAMES, ignored=_IGNORED),
    tokenizer=bert_tokenizer,
    fields=bert_fields,
)
