"""Qwen2, Qwen2.5 (biases on queries, keys, values) and Qwen3 (norms on queries and keys).

Source: `conversion/qwen.py` of the llama.cpp source inside the llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.config import whole
from bundler.builtin.llamacpp.convert.family import Config, Family
from bundler.builtin.llamacpp.convert.fields import Fields, pooling_fields
from bundler.builtin.llamacpp.convert.hub_vocabulary import byte_pair_fields
from bundler.builtin.llamacpp.convert.llama import DECODER_NAMES
from bundler.builtin.llamacpp.convert.sentencepiece_vocabulary import FILE as SENTENCEPIECE
from bundler.builtin.llamacpp.convert.sentencepiece_vocabulary import sentencepiece_fields
from bundler.builtin.llamacpp.convert.tensors import NameMap
from bundler.errors import UnsafeInput

_QWEN3_NAMES = DECODER_NAMES | {
    "layers.{n}.self_attn.q_norm": "blk.{n}.attn_q_norm",
    "layers.{n}.self_attn.k_norm": "blk.{n}.attn_k_norm",
}


def qwen_tokenizer(checkpoint: Checkpoint, config: Config) -> Fields:
    """Return the tokenizer's fields: byte-level BPE, or SentencePiece in some derived models."""
    vocabulary = whole(config, "vocab_size")
    if SENTENCEPIECE in checkpoint:
        return sentencepiece_fields(checkpoint, vocabulary)
    return byte_pair_fields(checkpoint, vocabulary)


def _qwen2_fields(checkpoint: Checkpoint, config: Config) -> Fields:
    return pooling_fields("qwen2", checkpoint)


def _qwen3_fields(checkpoint: Checkpoint, config: Config) -> Fields:
    hints = [str(config.get("_name_or_path", "")), str(config.get("model_type", ""))]
    card = checkpoint.text("README.md") if "README.md" in checkpoint else ""
    if "# qwen3-reranker" in card.lower() or any("qwen3-reranker" in h.lower() for h in hints):
        raise UnsafeInput(
            "Qwen3 rerankers cannot be converted here: their head is cut out of the embeddings",
            where="config.json", hint="use a GGUF file of this model that its publisher made",
        )  # fmt: skip
    return pooling_fields("qwen3", checkpoint)


QWEN2 = Family(
    architecture="qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    names=NameMap(DECODER_NAMES, prefix="model."),
    tokenizer=qwen_tokenizer,
    fields=_qwen2_fields,
)

QWEN3 = Family(
    architecture="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    names=NameMap(_QWEN3_NAMES, prefix="model."),
    tokenizer=qwen_tokenizer,
    fields=_qwen3_fields,
)
