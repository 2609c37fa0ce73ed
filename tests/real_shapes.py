"""The repositories that our recipes name, with their true shapes and sizes, and nothing in them.

Configs are those that are published; safetensors headers are made from them, with the names, types
and shapes that the real shards have, so every size follows. Weights are holes, tokenizers are
blanks of the true length: enough to lock and to plan, which read headers only.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from bundler.builtin.runtimes.pinned import PYTHON_RELEASE, python_archive
from bundler.testing.hub import TEST_TOKEN, Content, SparseFile, TestHub

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8}
_SHARD_BYTES = 5_000_000_000
Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class RealRepository:
    """One repository on the Hub."""

    name: str
    licence: str
    config: Mapping[str, Any]
    type: str = "BF16"
    gated: bool = False
    texts: Mapping[str, int] = field(default_factory=dict)
    """Tokenizer and other small files → bytes."""

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(_size(type_, shape) for type_, shape in published_tensors(self).values())


def _qwen2(hidden: int, wide: int, layers: int, heads: int, kv_heads: int, tied: bool,
           vocabulary: int = 151936) -> dict[str, Any]:  # fmt: skip
    return {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": hidden,
        "initializer_range": 0.02, "intermediate_size": wide, "max_position_embeddings": 32768,
        "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": heads,
        "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
        "use_sliding_window": False, "vocab_size": vocabulary,
    }  # fmt: skip


def _llama(wide: int, kv_heads: int, vocabulary: int, context: int, theta: float,
           **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": wide, "max_position_embeddings": context, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": kv_heads,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": theta,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": vocabulary, **more,
    }  # fmt: skip


def _bert(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384,
        "initializer_range": 0.02, "intermediate_size": 1536, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
        "num_hidden_layers": layers, "pad_token_id": 0, "position_embedding_type": "absolute",
        "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    }  # fmt: skip


_QWEN_TEXTS = {
    "merges.txt": 1_671_839, "tokenizer.json": 7_031_645, "tokenizer_config.json": 7_305,
    "vocab.json": 2_776_833, "README.md": 6_000,
}  # fmt: skip
_BERT_TEXTS = {
    "modules.json": 349, "special_tokens_map.json": 125, "tokenizer.json": 711_396,
    "tokenizer_config.json": 366, "vocab.txt": 231_508, "1_Pooling/config.json": 190,
}  # fmt: skip

REPOSITORIES: tuple[RealRepository, ...] = (
    RealRepository(
        "Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0", _qwen2(896, 4864, 24, 14, 2, True),
        texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "Qwen/Qwen2.5-1.5B-Instruct", "apache-2.0", _qwen2(1536, 8960, 28, 12, 2, True),
        texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "Qwen/Qwen2.5-3B-Instruct", "other", _qwen2(2048, 11008, 36, 16, 2, True),
        texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "Qwen/Qwen2.5-7B-Instruct", "apache-2.0",
        _qwen2(3584, 18944, 28, 28, 4, False, vocabulary=152064), texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "Qwen/Qwen2.5-Coder-7B-Instruct", "apache-2.0",
        _qwen2(3584, 18944, 28, 28, 4, False, vocabulary=152064), texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "Qwen/Qwen2.5-14B-Instruct", "apache-2.0",
        _qwen2(5120, 13824, 48, 40, 8, False, vocabulary=152064), texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "Qwen/Qwen3-8B", "apache-2.0",
        _qwen2(4096, 12288, 36, 32, 8, False)
        | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128,
           "attention_bias": False, "max_position_embeddings": 40960, "max_window_layers": 36,
           "sliding_window": None},
        texts=_QWEN_TEXTS,
    ),
    RealRepository(
        "meta-llama/Llama-3.1-8B-Instruct", "llama3.1",
        _llama(14336, 8, 128256, 131072, 500000.0, bos_token_id=128000,
               eos_token_id=[128001, 128008, 128009],
               rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
        gated=True,
        texts={"tokenizer.json": 9_085_657, "tokenizer_config.json": 55_351},
    ),
    RealRepository(
        "mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0",
        _llama(14336, 8, 32768, 32768, 1000000.0, architectures=["MistralForCausalLM"],
               model_type="mistral", sliding_window=None),
        texts={"tokenizer.json": 1_961_548, "tokenizer.model": 587_404,
               "tokenizer_config.json": 140_874},
    ),
    RealRepository(
        "deepseek-ai/deepseek-coder-6.7b-instruct", "other",
        _llama(11008, 32, 32256, 16384, 100000.0, bos_token_id=32013, eos_token_id=32021,
               rms_norm_eps=1e-06, rope_scaling={"factor": 4.0, "type": "linear"}),
        texts={"tokenizer.json": 1_369_980, "tokenizer_config.json": 1_870},
    ),
    RealRepository(
        "codellama/CodeLlama-7b-Instruct-hf", "llama2",
        _llama(11008, 32, 32016, 16384, 1000000.0),
        texts={"tokenizer.json": 1_842_767, "tokenizer.model": 499_723,
               "tokenizer_config.json": 1_593},
    ),
    RealRepository(
        "BAAI/bge-small-en-v1.5", "mit", _bert(12), type="F32", texts=_BERT_TEXTS
    ),
    RealRepository(
        "sentence-transformers/all-MiniLM-L6-v2", "apache-2.0", _bert(6), type="F32",
        texts=_BERT_TEXTS,
    ),
)  # fmt: skip

ZIMS = {
    "wikipedia/wikipedia_en_all_maxi_2026-08.zim": 127_418_087_648,
    "wikipedia/wikipedia_en_all_nopic_2026-06.zim": 52_690_707_456,
    "wikipedia/wikipedia_en_top_maxi_2026-09.zim": 6_991_082_496,
    "wikipedia/wikipedia_en_top_nopic_2026-09.zim": 2_745_850_880,
    "wikipedia/wikipedia_en_medicine_maxi_2026-04.zim": 2_215_521_280,
    "wikipedia/wikipedia_en_medicine_nopic_2026-04.zim": 861_929_472,
    "other/khanacademy_en_all_2023-03.zim": 180_388_626_432,
}
"""Path under the publisher's `zim/` → bytes: from its catalogue where it states them (rounded up
to a KiB), else from the sizes its directory shows."""


def published_tensors(repository: RealRepository) -> Shapes:
    """Return the tensors of a repository under the names it publishes: name → (type, shape)."""
    config = repository.config
    make = _bert_tensors if config["model_type"] == "bert" else _decoder_tensors
    return make(config, repository.type)


def _decoder_tensors(config: Mapping[str, Any], type_: str) -> Shapes:
    hidden, wide, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head = config.get("head_dim") or hidden // heads
    query, narrow = heads * head, config["num_key_value_heads"] * head
    embeddings = (config["vocab_size"], hidden)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embeddings}
    for layer in range(config["num_hidden_layers"]):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "mlp.down_proj.weight": (hidden, wide),
            "mlp.gate_proj.weight": (wide, hidden),
            "mlp.up_proj.weight": (wide, hidden),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.k_proj.weight": (narrow, hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "self_attn.q_proj.weight": (query, hidden),
            "self_attn.v_proj.weight": (narrow, hidden),
        }
        if config["model_type"] == "qwen2":
            block |= {f"self_attn.{n}_proj.bias": (narrow,) for n in "kv"}
            block["self_attn.q_proj.bias"] = (query,)
        if config["model_type"] == "qwen3":
            block |= {f"self_attn.{n}_norm.weight": (head,) for n in "kq"}
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in sorted(block.items())}
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = embeddings
    return {name: (type_, shape) for name, shape in found.items()}


def _bert_tensors(config: Mapping[str, Any], type_: str) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "embeddings.LayerNorm.bias": (hidden,),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "pooler.dense.bias": (hidden,),
        "pooler.dense.weight": (hidden, hidden),
    }
    dense = {
        "attention.output.dense": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.query": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "intermediate.dense": (wide, hidden),
        "output.dense": (hidden, wide),
    }
    for layer in range(config["num_hidden_layers"]):
        start = f"encoder.layer.{layer}"
        for name, shape in dense.items():
            found[f"{start}.{name}.weight"], found[f"{start}.{name}.bias"] = shape, shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"{start}.{name}.weight"] = found[f"{start}.{name}.bias"] = (hidden,)
    tensors: Shapes = {name: (type_, shape) for name, shape in sorted(found.items())}
    tensors["embeddings.position_ids"] = ("I64", (1, config["max_position_embeddings"]))
    return tensors


def _size(type_: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * _BYTES[type_]


def files_of(repository: RealRepository) -> dict[str, bytes | Content]:
    """Return all files of a repository: configs as they are, everything else as holes."""
    files: dict[str, bytes | Content] = {
        "config.json": json.dumps(repository.config, indent=2).encode(),
        "generation_config.json": b'{"do_sample": true, "temperature": 0.7}',
        **{path: _blank(path, size) for path, size in repository.texts.items()},
    }
    return files | _weights(repository)


def _blank(path: str, size: int) -> bytes:
    known = {
        "modules.json": b'[{"type": "sentence_transformers.models.Transformer", "path": ""}, '
        b'{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]',
        "1_Pooling/config.json": b'{"word_embedding_dimension": 384, '
        b'"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}',
    }.get(path, b"{}" if path.endswith(".json") else b"")
    return known.ljust(size)


def _weights(repository: RealRepository) -> dict[str, bytes | Content]:
    tensors = published_tensors(repository)
    shards = list(_split(tensors))
    if len(shards) == 1:
        return {"model.safetensors": _shard(repository.name, 1, shards[0])}
    files: dict[str, bytes | Content] = {}
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[path] = _shard(repository.name, number, shard)
        index |= dict.fromkeys(shard, path)
    about = {"metadata": {"total_size": repository.weights_bytes}, "weight_map": index}
    return files | {"model.safetensors.index.json": json.dumps(about, indent=2).encode()}


def _split(tensors: Shapes) -> Iterable[Shapes]:
    """Cut tensors into shards of at most 5 GB, in order."""
    shard: Shapes = {}
    held = 0
    for name, (type_, shape) in tensors.items():
        size = _size(type_, shape)
        if shard and held + size > _SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = (type_, shape)
        held += size
    yield shard


def _shard(name: str, number: int, tensors: Shapes) -> SparseFile:
    """Return a safetensors file: a true header, and holes for weights."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor, (type_, shape) in tensors.items():
        end = offset + _size(type_, shape)
        entries[tensor] = {"dtype": type_, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
    start = len(header).to_bytes(8, "little") + header
    return SparseFile(len(start) + offset, {0: start}, sha256=digest)


@functools.cache
def _all_files() -> dict[str, dict[str, bytes | Content]]:
    return {repository.name: files_of(repository) for repository in REPOSITORIES}


PLATFORMS = ("linux-x86_64", "linux-aarch64", "windows-x86_64")


def put_up_pythons(hub: TestHub) -> None:
    """Serve a release of ready-made Pythons, for the platforms that are not this one."""
    sums = ""
    for number, platform in enumerate(PLATFORMS):
        digest, name = f"{number:064x}", python_archive(platform)
        archive = SparseFile(30 << 20, {}, sha256=digest)
        hub.add_file(f"python/{PYTHON_RELEASE}/{name}", archive)
        sums += f"{digest}  {name}\n"
    hub.add_file(f"python/{PYTHON_RELEASE}/SHA256SUMS", sums)


def environment_at(hub: TestHub) -> dict[str, str]:
    """Return the environment in which everything is fetched from a test hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TEST_TOKEN,
        "BUNDLER_HTTP_MIRROR": f"https://download.kiwix.org/={hub.url}/files/",
        "BUNDLER_PYTHON_RELEASES": f"{hub.url}/files/python",
        "SOURCE_DATE_EPOCH": "1790000000",
    }


def put_up(hub: TestHub) -> None:
    """Serve all repositories, and all reference works as the `zim/` folder of their publisher."""
    for repository in REPOSITORIES:
        hub.add_repository(
            repository.name,
            _all_files()[repository.name],
            licence=repository.licence,
            gated=repository.gated,
        )
    for path, size in ZIMS.items():
        digest = hashlib.sha256(path.encode()).hexdigest()
        hub.add_file(f"zim/{path}", SparseFile(size, {0: b"ZIM\x04"}, sha256=digest), metalink=True)
