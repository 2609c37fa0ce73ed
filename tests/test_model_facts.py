import json
import random
from math import prod
from pathlib import Path

import pytest

from bundler.builtin.llamacpp.convert import convert
from bundler.builtin.llamacpp.facts import model_facts
from bundler.errors import UnsafeInput
from bundler.lock import LockedFile, ModelFacts, Resolution
from bundler.value import canonical_json
from bundler.weights import GgufField, TensorPlan, encode_header, field
from tests.small_models import (
    SMALL_MODELS,
    list_files,
    tiny_model,
    without_vocabulary,
    write_model,
)


def facts_of(
    files: dict[str, Path | bytes], log: list[tuple[str, int, int]] | None = None
) -> ModelFacts:
    """Read facts through ranged reads, as a source serves them."""
    contents = {n: f if isinstance(f, bytes) else f.read_bytes() for n, f in files.items()}

    def read(file: LockedFile, start: int, length: int) -> bytes:
        if log is not None:
            log.append((file.path, start, length))
        return contents[file.path][start : start + length]

    locked = tuple(
        LockedFile(path=name, size_bytes=len(raw), sha256="0" * 64)
        for name, raw in contents.items()
    )
    resolution = Resolution(source="path", reference="models/m", revision="1", files=locked)
    return model_facts(resolution, read)


# -- safetensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_facts_of_each_family_follow_from_config_and_headers(tmp_path, name):
    model = without_vocabulary(SMALL_MODELS[name])
    facts = facts_of(write_model(tmp_path / "m", model, tmp_path))
    config = model.config
    assert facts.format == "safetensors"
    assert facts.architecture in ("llama", "qwen2", "qwen3", "bert")
    assert facts.layers == config["num_hidden_layers"] == len(facts.kv_heads)
    assert facts.kv_heads[0] == config.get("num_key_value_heads", config["num_attention_heads"])
    assert facts.vocabulary == 300
    assert facts.parameters == sum(prod(tensor.shape) for tensor in facts.tensors)
    assert facts.tied_embeddings == config.get("tie_word_embeddings", False)
    stored = {tensor.type for tensor in facts.tensors if tensor.name != "rope_freqs.weight"}
    assert stored == {model.stored}
    assert facts.sliding_window_tokens == 0
    canonical_json(facts)


def test_facts_agree_with_those_of_the_converted_file(tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    files = write_model(tmp_path / "m", tiny_model(head_dim=16, rope_scaling=rope), tmp_path)
    before = facts_of(files)
    convert(files, tmp_path / "o.gguf", output_type="bf16", name="m", progress=lambda *a: None)
    after = facts_of({"o.gguf": tmp_path / "o.gguf"})
    assert [(t.name, t.shape) for t in before.tensors] == [(t.name, t.shape) for t in after.tensors]
    same = set(ModelFacts.model_fields) - {"format", "tensors", "extra"}
    assert before.model_dump(include=same) == after.model_dump(include=same)
    assert before.tensors[0].name == "rope_freqs.weight"
    ours, theirs = (facts.extra["hyperparameters"] for facts in (before, after))
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == pytest.approx(theirs[key]) for key in ours)


def test_only_headers_and_the_config_are_read(tmp_path):
    files = write_model(tmp_path / "m", tiny_model(), tmp_path)
    path = files["model.safetensors"]
    raw = path.read_bytes()
    log: list[tuple[str, int, int]] = []
    facts_of({"config.json": files["config.json"], "model.safetensors": raw}, log)
    assert {name for name, _, _ in log} == {"config.json", "model.safetensors"}
    assert len(log) == 2


def test_a_window_that_llama_cpp_does_not_use_is_only_mentioned(tmp_path):
    model = without_vocabulary(SMALL_MODELS["Mistral-7B-Instruct-v0.2"])
    facts = facts_of(write_model(tmp_path / "m", model, tmp_path))
    assert facts.sliding_window_tokens == 0
    assert facts.extra["published_sliding_window_tokens"] == 4096


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["pytorch_model.bin"], "no model in it"),
        (["config.json", "pytorch_model.bin"], "files that can run code: pytorch_model.bin"),
        (["config.json"], "no safetensors weights"),
        (["README.md"], "no model in it"),
    ],
)
def test_a_repository_without_safe_weights_is_refused(tmp_path, names, reason):
    files = write_model(tmp_path / "m", tiny_model(), tmp_path)
    config = files["config.json"].read_bytes()
    with pytest.raises(UnsafeInput, match=reason):
        facts_of(dict.fromkeys(names, config))


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_config_never_ends_in_a_foreign_exception(tmp_path, seed):
    rng = random.Random(seed)
    files = dict(write_model(tmp_path / "m", tiny_model(), tmp_path))
    config = json.loads(files["config.json"].read_text())
    values = [None, -1, 0, 1 << 40, 0.5, "x", [], {}, [1], True, {"factor": "x", "type": "linear"}]
    for _ in range(60):
        damaged = dict(config)
        for key in rng.sample([*config, "head_dim", "rope_scaling", "id2label"], 2):
            damaged[key] = rng.choice(values)
        try:
            canonical_json(facts_of(files | {"config.json": json.dumps(damaged).encode()}))
        except UnsafeInput:
            continue


# -- GGUF ------------------------------------------------------------------------------------------


def base_fields(architecture: str = "llama", **more: GgufField) -> dict[str, GgufField]:
    numbers = {
        "block_count": 4, "context_length": 4096, "embedding_length": 64,
        "feed_forward_length": 128, "attention.head_count": 4, "attention.head_count_kv": 2,
    }  # fmt: skip
    fields = {"general.architecture": field("STRING", architecture)}
    fields |= {f"{architecture}.{key}": field("UINT32", value) for key, value in numbers.items()}
    return fields | more


TENSORS = (
    TensorPlan("token_embd.weight", "Q8_0", (10, 64)),
    TensorPlan("output_norm.weight", "F32", (64,)),
)


def gguf_file(fields: dict[str, GgufField], tensors: tuple[TensorPlan, ...] = TENSORS) -> bytes:
    return encode_header(fields, tensors) + bytes(sum(-(-t.size_bytes // 32) * 32 for t in tensors))


def test_facts_of_a_ready_gguf_are_those_of_its_header():
    tokens = {"tokenizer.ggml.tokens": field("STRING", ["a"] * 10)}
    facts = facts_of({"m-Q8_0.gguf": gguf_file(base_fields(**tokens))})
    assert (facts.format, facts.layers, facts.hidden, facts.heads) == ("gguf", 4, 64, 4)
    assert facts.kv_heads == (2, 2, 2, 2)
    assert (facts.head_dim_key, facts.vocabulary, facts.tied_embeddings) == (16, 10, True)
    assert facts.extra["types"] == {"Q8_0": 1, "F32": 1}
    assert facts.tensors[0].shape == (10, 64)


def test_key_value_heads_may_differ_from_layer_to_layer():
    more = {"llama.attention.head_count_kv": field("INT32", [1, 0, 2, 4])}
    assert facts_of({"m.gguf": gguf_file(base_fields(**more))}).kv_heads == (1, 0, 2, 4)


@pytest.mark.parametrize(
    ("architecture", "more", "window", "pattern", "slides"),
    [
        ("gemma3", {"attention.sliding_window": 1024}, 1024, 6, None),
        ("gemma2", {"attention.sliding_window": 4096}, 4096, 2, None),
        ("gpt-oss", {"attention.sliding_window": 128}, 128, 2, None),
        ("gemma3", {"attention.sliding_window": 512, "attention.sliding_window_pattern": 3}, 512, 3, None),
        ("gemma4", {"attention.sliding_window": 512, "attention.sliding_window_pattern": [True, True, False, True]},
         512, 0, [True, True, False, True]),
        ("modern-bert", {"attention.sliding_window": 128}, 128, 3, [False, True, True, False]),
        ("llama", {"attention.sliding_window": 4096}, 0, 0, None),
        ("gemma3", {}, 0, 0, None),
    ],
)  # fmt: skip
def test_windows_are_those_that_llama_cpp_gives_the_architecture(
    architecture, more, window, pattern, slides
):
    fields = {
        f"{architecture}.{k}": field("BOOL" if isinstance(v, list) else "UINT32", v)
        for k, v in more.items()
    }
    facts = facts_of({"m.gguf": gguf_file(base_fields(architecture, **fields))})
    assert (facts.sliding_window_tokens, facts.sliding_window_pattern) == (window, pattern)
    assert facts.extra.get("sliding_layers") == slides


def split_files(
    numbers: tuple[tuple[int, int], ...] = ((0, 2), (1, 2)), total: int = 2
) -> dict[str, bytes]:
    files = {}
    for place, (number, count) in enumerate(numbers):
        own = {
            "split.no": field("UINT16", number), "split.count": field("UINT16", count),
            "split.tensors.count": field("INT32", total),
        }  # fmt: skip
        fields = base_fields(**own) if place == 0 else own
        files[f"m-{place + 1:05}-of-{len(numbers):05}.gguf"] = gguf_file(fields, (TENSORS[place],))
    return files


def test_the_parts_of_a_split_model_are_one_model():
    facts = facts_of(split_files())
    assert [tensor.name for tensor in facts.tensors] == [tensor.name for tensor in TENSORS]
    assert facts.extra["parts"] == 2


def test_a_projector_beside_the_model_is_not_part_of_it():
    files = {"m.gguf": gguf_file(base_fields()), "mmproj-m.gguf": b"anything"}
    assert facts_of(files).layers == 4
    with pytest.raises(UnsafeInput, match="a projector but no model"):
        facts_of({"mmproj-m.gguf": b"anything"})


BAD_SPLITS = {
    "a part is missing": ({k: v for k, v in split_files().items() if "00002-of" not in k}, "1 of 2 shards are missing"),
    "parts out of order": (split_files(((1, 2), (0, 2))), "says it is number"),
    "parts of another count": (split_files(((0, 3), (1, 3))), "says it is number"),
    "tensors are missing": (split_files(total=3), "have 2 tensors, not the 3"),
    "two models": ({"a.gguf": gguf_file(base_fields()), "b.gguf": gguf_file(base_fields())},
                   "2 different models"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_files_that_are_not_one_model_are_refused(name):
    files, reason = BAD_SPLITS[name]
    with pytest.raises(UnsafeInput, match=reason):
        facts_of(files)


ten = field("STRING", ["a"] * 10)
CONFUSED = {
    "architecture a number": {"general.architecture": field("UINT32", 1)},
    "no layers": {"llama.block_count": field("UINT32", 0)},
    "layers a text": {"llama.block_count": field("STRING", "4")},
    "layers an array": {"llama.block_count": field("UINT32", [4])},
    "layers negative": {"llama.block_count": field("INT32", -4)},
    "layers absurd": {"llama.block_count": field("UINT32", 1 << 30)},
    "heads of too few layers": {"llama.attention.head_count_kv": field("UINT32", [1])},
    "heads as texts": {"llama.attention.head_count_kv": field("STRING", ["1"] * 4)},
    "heads as fractions": {"llama.attention.head_count_kv": field("FLOAT32", [1.0] * 4)},
    "tokens a number": {"tokenizer.ggml.tokens": field("UINT32", 10)},
    "tokens as numbers": {"tokenizer.ggml.tokens": field("UINT32", [1] * 10)},
    "scores of too few tokens": {"tokenizer.ggml.tokens": ten,
                                 "tokenizer.ggml.scores": field("FLOAT32", [1.0] * 9)},
    "scores of another type": {"tokenizer.ggml.tokens": ten,
                               "tokenizer.ggml.scores": field("UINT8", [1] * 10)},
    "token types as texts": {"tokenizer.ggml.tokens": ten,
                             "tokenizer.ggml.token_type": field("STRING", ["1"] * 10)},
    "a value that is no number": {"llama.rope.freq_base": field("FLOAT32", float("nan"))},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFUSED)
def test_a_field_of_another_type_is_refused_not_believed(name):
    with pytest.raises(UnsafeInput, match="should be"):
        facts_of({"m.gguf": gguf_file(base_fields(**CONFUSED[name]))})


def test_a_vocabulary_without_weights_is_no_model():
    with pytest.raises(UnsafeInput, match="no weights"):
        facts_of({"m.gguf": gguf_file(base_fields(), ())})


def test_files_on_disk_and_by_ranges_give_the_same_facts(tmp_path):
    files = write_model(tmp_path / "m", tiny_model(), tmp_path)
    assert facts_of(files) == facts_of(
        {n: p.read_bytes() for n, p in list_files(tmp_path / "m").items()}
    )
