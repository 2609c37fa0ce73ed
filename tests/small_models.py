"""Small random models of every family that can be converted, with real vocabularies.

The vocabularies are those in `models/ggml-vocab-*.gguf` of the llama.cpp source: tokens, types,
scores and merges are in them; what is missing (how text is split, what is put around it) is
written here as the published tokenizers have it, which the fingerprints then confirm.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bundler.weights import read_gguf_file

Json = dict[str, Any]


# -- safetensors -----------------------------------------------------------------------------------


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], type_: str = "BF16", seed: int = 0
) -> None:
    """Write single-precision arrays as `type_`; BF16 is cut off, which is as good as rounding."""
    header: Json = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    offset = 0
    for name, array in tensors.items():
        raw = encode(array, type_)
        header[name] = {
            "dtype": type_, "shape": list(array.shape), "data_offsets": [offset, offset + len(raw)],
        }  # fmt: skip
        blobs.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def encode(array: np.ndarray, type_: str) -> bytes:
    """Return an array's bytes as safetensors stores them."""
    if type_ == "BF16":
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return array.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[type_]).tobytes()


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Return normal numbers of these shapes."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
        for name, shape in shapes.items()
    }


# -- vocabularies ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vocabulary:
    """A real vocabulary."""

    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]


def read_vocabulary(folder: Path, name: str) -> Vocabulary:
    """Read `ggml-vocab-<name>.gguf`."""
    fields = read_gguf_file(folder / f"ggml-vocab-{name}.gguf").metadata
    tokens, types, scores, merges = (
        list(fields.get(f"tokenizer.ggml.{key}", ()))  # type: ignore[call-overload]
        for key in ("tokens", "token_type", "scores", "merges")
    )
    return Vocabulary(tokens, types, scores, merges)


def added_token(number: int, text: str, *, special: bool = True) -> Json:
    """Return an entry of tokenizer.json's `added_tokens`."""
    return {
        "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": not special, "special": special,
    }  # fmt: skip


def _split(regex: str) -> Json:
    return {
        "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
}  # fmt: skip


def around(first: tuple[str, int] | None, last: tuple[str, int] | None = None) -> Json:
    """Return a post-processor that puts special tokens before and after."""
    given = [token for token in (first, last) if token]

    def special(token: tuple[str, int] | None, number: int) -> list[Json]:
        return [{"SpecialToken": {"id": token[0], "type_id": number}}] if token else []

    def sequence(name: str, number: int) -> Json:
        return {"Sequence": {"id": name, "type_id": number}}

    return {
        "type": "TemplateProcessing",
        "single": [*special(first, 0), sequence("A", 0), *special(last, 0)],
        "pair": [
            *special(first, 0), sequence("A", 0), *special(last, 0),
            *([] if last else special(first, 1)), sequence("B", 1), *special(last, 1),
        ],
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]} for text, number in given
        },
    }  # fmt: skip


def byte_pair_tokenizer(
    vocabulary: Vocabulary, *, splits: Iterable[str], post: Json | None, digits: bool = False,
    normalizer: Json | None = None, ignore_merges: bool = False, pairs: bool = False,
) -> Json:  # fmt: skip
    """Return the tokenizer.json of a byte-level BPE vocabulary."""
    entries = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    base = {text: n for n, (text, type_) in enumerate(entries) if type_ == 1}
    added = [
        added_token(n, text, special=type_ == 3)
        for n, (text, type_) in enumerate(entries)
        if type_ in (3, 4) and not re.fullmatch(r"\[PAD\d+\]", text)
    ]
    steps = [_split(regex) for regex in splits]
    steps += [{"type": "Digits", "individual_digits": True}] if digits else []
    merges: list[Any] = [m.split(" ") for m in vocabulary.merges] if pairs else vocabulary.merges
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL]},
        "post_processor": post,
        "decoder": BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": ignore_merges, "vocab": base, "merges": merges,
        },
    }  # fmt: skip


def word_piece_tokenizer(vocabulary: Vocabulary) -> Json:
    """Return the tokenizer.json of a BERT vocabulary (the file marks words, BERT continuations)."""
    plain = {}
    for number, (text, type_) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        word = text[1:] if text.startswith("\u2581") else f"##{text}"
        plain[text if type_ == 3 else word] = number
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(plain[text], text) for text in specials],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": around(("[CLS]", plain["[CLS]"]), ("[SEP]", plain["[SEP]"])),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": plain,
        },
    }  # fmt: skip


def sentencepiece_like_tokenizer(vocabulary: Vocabulary) -> Json:
    """Return a SentencePiece BPE vocabulary as a tokenizer.json, as published for Mistral."""
    vocab = {text: number for number, text in enumerate(vocabulary.tokens)}
    pairs = [
        (score, text[:cut], text[cut:])
        for text, score, type_ in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if type_ == 1
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    pairs.sort(key=lambda pair: (-pair[0], vocab[pair[1]], vocab[pair[2]]))
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(n, text) for n, text in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None,
        "post_processor": around(("<s>", 1)),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
            "merges": [f"{left} {right}" for _, left, right in pairs],
        },
    }  # fmt: skip


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _delimited(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def sentencepiece_model(pieces: Iterable[tuple[str, float, int]]) -> bytes:
    """Encode a SentencePiece BPE model (`sentencepiece_model.proto`) by hand."""
    out = b""
    for text, score, type_ in pieces:
        body = _delimited(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += _delimited(1, body + b"\x18" + _varint(type_))
    # trainer_spec: model_type BPE, byte_fallback; normalizer_spec: identity, dummy prefix, no
    # removal of spaces, spaces escaped.
    out += _delimited(2, b"\x18\x02" + _varint(35 << 3) + b"\x01")
    return out + _delimited(3, _delimited(1, b"identity") + b"\x18\x01\x20\x00\x28\x01")


# -- families --------------------------------------------------------------------------------------

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 32, 4, 2, 48, 2

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


@dataclass(frozen=True)
class SmallModel:
    """One model: what its files say, and which tokenizer it has."""

    config: Json
    files: Callable[[Path], Mapping[str, bytes | str | Json | list[Any]]]
    """Given the folder of vocabularies: files beside config and weights."""
    stored: str = "BF16"
    biases: bool = False
    norms: bool = False
    shards: int = 1
    expected: str = ""
    """Name of the vocabulary whose expected tokenizations must come out."""
    prefix: str = "model."
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def decoder_config(**changes: Any) -> Json:
    """Return the config of a small decoder."""
    return {
        "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    } | changes  # fmt: skip


def decoder_shapes(model: SmallModel) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a small decoder."""
    config = model.config
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head = config.get("head_dim") or hidden // heads
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config["vocab_size"], hidden), "norm.weight": (hidden,),
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}."
        for part, rows in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
            shapes[f"{at}self_attn.{part}_proj.weight"] = (rows, hidden)
            if model.biases:
                shapes[f"{at}self_attn.{part}_proj.bias"] = (rows,)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, heads * head)
        for part in ("gate", "up"):
            shapes[f"{at}mlp.{part}_proj.weight"] = (config["intermediate_size"], hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, config["intermediate_size"])
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{part}.weight"] = (hidden,)
        if model.norms:
            shapes |= {f"{at}self_attn.{part}_norm.weight": (head,) for part in "qk"}
    named = {model.prefix + name: shape for name, shape in shapes.items()}
    if not config["tie_word_embeddings"]:
        named["lm_head.weight"] = (config["vocab_size"], hidden)
    return named | dict(model.more)


def bert_shapes(config: Json) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a small BERT."""
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,),
    }  # fmt: skip
    dense = {"attention.self.query": hidden, "attention.self.key": hidden,
             "attention.self.value": hidden, "attention.output.dense": hidden,
             "intermediate.dense": config["intermediate_size"]}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        for part, rows in dense.items():
            shapes |= {f"{at}{part}.weight": (rows, hidden), f"{at}{part}.bias": (rows,)}
        shapes |= {
            f"{at}output.dense.weight": (hidden, config["intermediate_size"]),
            f"{at}output.dense.bias": (hidden,),
        }
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    return shapes | {f"{n}.{end}": (hidden,) for n in norms for end in ("weight", "bias")}


def old_bert_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name tensors as checkpoints did that came from TensorFlow."""
    return {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): shape
        for name, shape in shapes.items()
    }


def write_model(
    folder: Path, model: SmallModel, vocabularies: Path, seed: int = 0
) -> dict[str, Path]:
    """Write a model to a folder; return its files by name."""
    folder.mkdir(parents=True)
    files: dict[str, Any] = {"config.json": model.config, **model.files(vocabularies)}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
    bert = model.config["model_type"] == "bert"
    shapes = bert_shapes(model.config) if bert else decoder_shapes(model)
    if model.config["architectures"] == ["BertForMaskedLM"]:
        shapes = old_bert_names(shapes) | {"cls.predictions.bias": (model.config["vocab_size"],)}
    write_weights(folder, random_tensors(shapes, seed), model.stored, model.shards)
    return list_files(folder)


def list_files(folder: Path) -> dict[str, Path]:
    """Return all files under a folder by their relative names."""
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def write_weights(
    folder: Path, tensors: Mapping[str, np.ndarray], stored: str, shards: int = 1
) -> None:
    """Write the weights as one file, or as shards with an index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, stored)
        return
    weight_map = {}
    names = list(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(folder / file, part, stored)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# -- tokenizers of the families --------------------------------------------------------------------

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295"
    "-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-"
    "\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
    "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-"
    "\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"
    "\U0001e943]+"
)
"""Letters with case, listed by hand as in the published tokenizer."""
DEEPSEEK_LLM = (
    "[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+",
)  # fmt: skip
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")


def llama2_files(vocabularies: Path) -> Json:
    """SentencePiece, template in tokenizer_config.json, sampling settings, a model card."""
    v = read_vocabulary(vocabularies, "llama-spm")
    card = (
        "---\nlicense: llama2\nlanguage:\n- en\n- no\ntags:\n- chat\npipeline_tag: text-generation\n"
        "base_model: some-lab/Base-7B-v1.2\ndatasets:\n- some-lab/corpus\nlicense_name: l2\n"
        "---\n# A card\n"
    )
    return {
        "tokenizer.model": sentencepiece_model(zip(v.tokens, v.scores, v.types, strict=True)),
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>",
            "unk_token": "<unk>", "chat_template": TEMPLATE, "legacy": False,
        },
        "generation_config.json": {
            "temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05,
        },
        "README.md": card,
    }  # fmt: skip


def code_llama_files(vocabularies: Path) -> Json:
    """SentencePiece with 16 more tokens, four of them for infilling."""
    v = read_vocabulary(vocabularies, "llama-spm")
    more = [f"▁more{n}" for n in range(7)] + ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    more += [f"▁else{n}" for n in range(5)]
    pieces = [*zip(v.tokens, v.scores, v.types, strict=True)]
    pieces += [(text, -40000.0 - n, 1) for n, text in enumerate(more)]
    return {
        "tokenizer.model": sentencepiece_model(pieces),
        "tokenizer_config.json": {
            "tokenizer_class": "CodeLlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "prefix_token": "▁<PRE>", "middle_token": "▁<MID>",
            "suffix_token": "▁<SUF>", "eot_token": "▁<EOT>", "fill_token": "<FILL_ME>",
        },
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    }  # fmt: skip


def llama3_files(vocabularies: Path) -> Json:
    """Byte-level BPE with merges as pairs, template in its own file."""
    v = read_vocabulary(vocabularies, "llama-bpe")
    begin = ("<|begin_of_text|>", 128000)
    post = {"type": "Sequence", "processors": [
        BYTE_LEVEL | {"add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        around(begin),
    ]}  # fmt: skip
    return {
        "tokenizer.json": byte_pair_tokenizer(
            v, splits=[LLAMA3], post=post, ignore_merges=True, pairs=True
        ),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin[0],
            "eos_token": "<|reserved_special_token_4|>", "clean_up_tokenization_spaces": True,
            "added_tokens_decoder": {
                str(n): {k: x for k, x in added_token(n, v.tokens[n]).items() if k != "id"}
                for n in range(128000, 128256)
            },
        },
        "chat_template.jinja": TEMPLATE,
        "generation_config.json": {"temperature": 0.6, "eos_token_id": [128001, 128009]},
    }  # fmt: skip


def mistral_files(vocabularies: Path) -> Json:
    """SentencePiece with tokens added in three ways, and several templates."""
    v = read_vocabulary(vocabularies, "llama-spm")
    return {
        "tokenizer.model": sentencepiece_model(zip(v.tokens, v.scores, v.types, strict=True)),
        "added_tokens.json": {"<extra_one>": 32000},
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "add_prefix_space": True, "add_bos_token": True,
            "added_tokens_decoder": {
                "32001": {"content": "<|im_start|>", "special": False},
                "32002": {"content": "▁spaced▁word", "special": False},
                "32003": {"content": "[INST]", "special": True},
            },
            "chat_template": [
                {"name": "default", "template": TEMPLATE},
                {"name": "tool use", "template": TEMPLATE + "!"},
            ],
        },
    }  # fmt: skip


def mistral_json_files(vocabularies: Path) -> Json:
    """The same vocabulary as a tokenizer.json, without tokenizer.model."""
    v = read_vocabulary(vocabularies, "llama-spm")
    return {
        "tokenizer.json": sentencepiece_like_tokenizer(v),
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False,
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }  # fmt: skip


def qwen_files(vocabularies: Path) -> Json:
    """Byte-level BPE with a normalizer, no beginning token."""
    v = read_vocabulary(vocabularies, "qwen2")
    tokenizer = byte_pair_tokenizer(
        v, splits=[QWEN], post=BYTE_LEVEL | {"trim_offsets": False}, normalizer={"type": "NFC"}
    )
    tokenizer["added_tokens"] += [added_token(151646, "<tool_call>", special=False)]
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "add_bos_token": False,
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "unk_token": None, "chat_template": TEMPLATE,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        "generation_config.json": {"repetition_penalty": 1.1, "top_k": 20},
    }  # fmt: skip


def deepseek_files(name: str, splits: tuple[str, ...], begin: int) -> Callable[[Path], Json]:
    """Byte-level BPE under the name of Llama's tokenizer class."""

    def files(vocabularies: Path) -> Json:
        v = read_vocabulary(vocabularies, name)
        first, last = v.tokens[begin], v.tokens[begin + 1]
        return {
            "tokenizer.json": byte_pair_tokenizer(
                v, splits=splits, digits=True, post=BYTE_LEVEL | {"trim_offsets": False}
            ),
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True,
                "add_eos_token": False, "unk_token": None, "legacy": True,
                "bos_token": added_token(0, first) | {"__type": "AddedToken"},
                "eos_token": added_token(0, last) | {"__type": "AddedToken"},
                "pad_token": added_token(0, last) | {"__type": "AddedToken"},
            },
        }  # fmt: skip

    return files


def bert_files(vocabularies: Path) -> Json:
    """WordPiece, and a sentence-transformers pooling."""
    return {
        "tokenizer.json": word_piece_tokenizer(read_vocabulary(vocabularies, "bert-bge")),
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer", "do_lower_case": True, "cls_token": "[CLS]",
            "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
            "mask_token": "[MASK]", "clean_up_tokenization_spaces": True,
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling",
             "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "README.md": "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: sentence-similarity\n---\n",
    }  # fmt: skip


def _config(architecture: str, model_type: str, vocab_size: int, **changes: Any) -> Json:
    return decoder_config(
        architectures=[architecture], model_type=model_type, vocab_size=vocab_size, **changes
    )


LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
_BERT = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "max_position_embeddings": 64, "type_vocab_size": 2, "vocab_size": 30522,
    "layer_norm_eps": 1e-12,
}  # fmt: skip

SMALL_MODELS: dict[str, SmallModel] = {
    "Llama-2-7b-chat-hf": SmallModel(
        _config("LlamaForCausalLM", "llama", 32000, bos_token_id=1, eos_token_id=2),
        llama2_files, stored="F16", shards=2, expected="llama-spm",
    ),
    "CodeLlama-7b-hf": SmallModel(
        _config("LlamaForCausalLM", "llama", 32016, rope_theta=1000000, num_key_value_heads=HEADS),
        code_llama_files,
    ),
    "Llama-3.1-8B-Instruct": SmallModel(
        _config(
            "LlamaForCausalLM", "llama", 128256, hidden_size=128, num_attention_heads=1,
            num_key_value_heads=1, head_dim=128, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE,
            bos_token_id=128000, eos_token_id=[128001, 128008, 128009], num_hidden_layers=1,
        ),
        llama3_files, expected="llama-bpe",
    ),
    "Llama-3.2-1B": SmallModel(
        _config(
            "LlamaForCausalLM", "llama", 128256, head_dim=64, num_attention_heads=1,
            num_key_value_heads=1, rope_theta=500000.0, tie_word_embeddings=True,
            rope_scaling=LLAMA3_ROPE | {"factor": 32.0}, bos_token_id=128000, eos_token_id=128001,
        ),
        llama3_files,
    ),
    "Mistral-7B-Instruct-v0.2": SmallModel(
        _config("MistralForCausalLM", "mistral", 32004, sliding_window=4096),
        mistral_files, shards=3, expected="llama-spm",
    ),
    "Mistral-7B-v0.1-json": SmallModel(
        _config("MistralForCausalLM", "mistral", 32000, sliding_window=None, head_dim=16),
        mistral_json_files,
    ),
    "Qwen2.5-0.5B-Instruct": SmallModel(
        _config(
            "Qwen2ForCausalLM", "qwen2", 151936, tie_word_embeddings=True, bos_token_id=151643,
            eos_token_id=151645, use_sliding_window=False, rope_scaling={
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
        qwen_files, biases=True, expected="qwen2",
    ),
    "Qwen3-0.6B": SmallModel(
        _config("Qwen3ForCausalLM", "qwen3", 151936, head_dim=16, tie_word_embeddings=True,
                eos_token_id=151645),
        qwen_files, norms=True,
    ),
    "Qwen3-Embedding-0.6B": SmallModel(
        _config("Qwen3ForCausalLM", "qwen3", 151936, head_dim=16, tie_word_embeddings=True),
        lambda folder: qwen_files(folder) | {
            "modules.json": [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
            "1_Pooling/config.json": {"pooling_mode_lasttoken": True},
        },
        norms=True, prefix="",
    ),
    "gte-Qwen2-1.5B-instruct": SmallModel(
        _config("Qwen2Model", "qwen2", 151936, tie_word_embeddings=True, is_causal=False),
        lambda folder: qwen_files(folder) | {
            "modules.json": [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
            "1_Pooling/config.json": {"pooling_mode": "lasttoken"},
        },
        biases=True, prefix="",
    ),
    "deepseek-llm-7b-base": SmallModel(
        _config("LlamaForCausalLM", "llama", 102400, bos_token_id=100000, eos_token_id=100001),
        deepseek_files("deepseek-llm", DEEPSEEK_LLM, 100000), expected="deepseek-llm",
    ),
    "deepseek-coder-6.7b-instruct": SmallModel(
        _config(
            "LlamaForCausalLM", "llama", 32256, bos_token_id=32013, eos_token_id=32014,
            rope_theta=100000, rope_scaling={"type": "linear", "factor": 4.0},
        ),
        deepseek_files("deepseek-coder", DEEPSEEK_CODER, 32013), expected="deepseek-coder",
    ),
    "all-MiniLM-L6-v2": SmallModel(_BERT, bert_files, stored="F32", expected="bert-bge"),
    "bge-small-en-v1.5": SmallModel(
        _BERT | {"architectures": ["BertForMaskedLM"], "id2label": {"0": "LABEL_0"}},
        lambda folder: bert_files(folder) | {
            "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        },
        stored="F16",
    ),
}  # fmt: skip
"""Named as published models are: parts of the name end up in `general.*`."""


def write_sparse_weights(folder: Path, model: SmallModel) -> None:
    """Write weights that are all zero and take no room on the disk, however large they are."""
    header: Json = {}
    offset = 0
    for name, shape in decoder_shapes(model).items():
        size = prod(shape) * 2
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


# -- without real vocabularies ---------------------------------------------------------------------


TINY_PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3),
    *((f"<0x{n:02X}>", 0.0, 6) for n in range(256)),
    *((chr(97 + n), -50.0 - n, 1) for n in range(26)),
    *(("▁" + chr(97 + n), -float(n), 1) for n in range(15)),
]  # fmt: skip
"""A SentencePiece vocabulary of 300 tokens made up here."""


def tiny_files(vocabularies: Path | None = None) -> Json:
    """It as tokenizer.model."""
    return {
        "tokenizer.model": sentencepiece_model(TINY_PIECES),
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "chat_template": TEMPLATE,
        },
    }  # fmt: skip


def tiny_json_files(vocabularies: Path | None = None) -> Json:
    """It as tokenizer.json."""
    tokens, scores, types = (list(column) for column in zip(*TINY_PIECES, strict=True))
    tokenizer = sentencepiece_like_tokenizer(Vocabulary(tokens, types, scores, []))
    config = tiny_files()["tokenizer_config.json"]
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def tiny_model(stored: str = "BF16", **changes: Any) -> SmallModel:
    """A Llama of 300 tokens."""
    vocab = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}
    return SmallModel(
        decoder_config(**{
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **vocab, **changes
        }),
        tiny_files, stored=stored,
    )  # fmt: skip


def without_vocabulary(model: SmallModel) -> SmallModel:
    """The same model with 300 tokens and no tokenizer: enough for its facts."""
    return replace(model, config=model.config | {"vocab_size": 300}, files=lambda folder: {})
