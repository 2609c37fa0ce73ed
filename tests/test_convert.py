import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundler.builtin.llamacpp.convert import FAMILIES, convert
from bundler.builtin.llamacpp.convert.data import _quiet_bf16, _round_to_bf16
from bundler.builtin.llamacpp.convert.llama import rope_factors
from bundler.builtin.llamacpp.convert.pre_tokenizers import NAMES
from bundler.builtin.llamacpp.convert.tensors import Reorder
from bundler.errors import DoesNotFit, StepFailed, UnsafeInput
from bundler.weights import GgufArray, read_gguf_file
from tests.official_converter import OfficialConverter, official_converter
from tests.small_models import (
    SMALL_MODELS,
    SmallModel,
    list_files,
    random_tensors,
    tiny_json_files,
    tiny_model,
    write_model,
    write_safetensors,
    write_sparse_weights,
)

ROOT = Path(__file__).parent.parent

# Setting up the official converter (once) and running it takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(2400)


def quiet(done: int, total: int, unit: str) -> None:
    """A progress that shows nothing."""


def ours(folder: Path, output: Path, type_: str = "auto", name: str = "") -> dict:
    return convert(
        list_files(folder), output, output_type=type_, name=name or folder.name, progress=quiet
    )


# -- against the official converter ----------------------------------------------------------------

STORED = ("BF16", "F16", "F32", "F64")
WANTED = ("auto", "bf16", "f16", "f32")


def awkward_tensors(model: SmallModel, stored: str) -> dict[str, np.ndarray]:
    """Weights with every kind of number that rounding could get wrong."""
    from tests.small_models import decoder_shapes

    tensors = random_tensors(decoder_shapes(model))
    rng = np.random.default_rng(1)
    for array in tensors.values():
        bits = rng.integers(0, 1 << 32, array.size, dtype=np.uint32).view(np.float32)
        tame = np.where(np.abs(bits) < 60000, bits, array.ravel())
        odd = np.array([0x7F800001, 0xFFC12345, 0x7F800000, 0x80000001, 0x3F808000, 0x3F818000],
                       dtype=np.uint32).view(np.float32)  # fmt: skip
        tame[: odd.size] = odd if stored != "F64" else np.arange(odd.size)
        array.ravel()[:] = tame
    return tensors


@pytest.fixture(scope="session")
def both(tmp_path_factory) -> tuple[OfficialConverter, Path]:
    """All small models, converted by both: `<name>.ours` and `<name>.official`.

    One process of the official converter does all, for it takes long to start.
    """
    official = official_converter()
    folder = tmp_path_factory.mktemp("small-models")
    jobs = []
    for name, model in SMALL_MODELS.items():
        write_model(folder / name, model, official.vocabularies)
        jobs.append((name, "auto"))
    for stored in STORED:
        name = f"tiny-{stored.lower()}"
        write_model(folder / name, tiny_model(stored), official.vocabularies)
        with np.errstate(over="ignore"):
            write_safetensors(
                folder / name / "model.safetensors", awkward_tensors(tiny_model(), stored), stored
            )
        jobs += [(name, wanted) for wanted in WANTED]
    for name, wanted in jobs:
        ours(folder / name, folder / f"{name}-{wanted}.ours", wanted)
    official.run([
        {"folder": str(folder / name), "type": wanted, "name": name,
         "output": str(folder / f"{name}-{wanted}.official")}
        for name, wanted in jobs
    ])  # fmt: skip
    return official, folder


def differences(left: Path, right: Path) -> list[str]:
    """Name every field and tensor in which two files differ."""
    ours, theirs = read_gguf_file(left), read_gguf_file(right)
    found = []
    if list(ours.metadata) != list(theirs.metadata):
        found.append(f"fields {list(ours.metadata)} / {list(theirs.metadata)}")
    for key in ours.metadata.keys() & theirs.metadata.keys():
        one, other = (
            list(h.metadata[key].pieces() if h.metadata[key].element_type == 8 else h.metadata[key])
            if isinstance(h.metadata[key], GgufArray) else h.metadata[key]
            for h in (ours, theirs)
        )  # fmt: skip
        if one != other or ours.value_types[key] != theirs.value_types[key]:
            found.append(f"{key}: {str(one)[:200]} / {str(other)[:200]}")
    if ours.tensors != theirs.tensors:
        found.append(f"tensors {ours.tensors} / {theirs.tensors}")
        return found
    raw_ours, raw_theirs = left.read_bytes(), right.read_bytes()
    for tensor in ours.tensors:
        one, other = (
            raw[h.data_offset + tensor.offset :][: tensor.size_bytes]
            for raw, h in ((raw_ours, ours), (raw_theirs, theirs))
        )
        if one != other:
            found.append(f"data of {tensor.name}")
    return found


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_model_of_each_family_is_converted_as_the_official_converter_does(both, name):
    _, folder = both
    left, right = folder / f"{name}-auto.ours", folder / f"{name}-auto.official"
    assert differences(left, right) == []
    assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("stored", STORED)
def test_every_stored_type_becomes_every_output_type_as_the_official_converter_does(
    both, stored, wanted
):
    _, folder = both
    name = f"tiny-{stored.lower()}-{wanted}"
    assert differences(folder / f"{name}.ours", folder / f"{name}.official") == []
    assert (folder / f"{name}.ours").read_bytes() == (folder / f"{name}.official").read_bytes()


def test_auto_keeps_the_half_precision_that_the_weights_have(both):
    _, folder = both
    types = {
        stored: read_gguf_file(folder / f"tiny-{stored.lower()}-auto.ours").tensors[0].type
        for stored in STORED
    }
    assert types == {"BF16": "BF16", "F16": "F16", "F32": "F16", "F64": "F16"}


def test_the_table_of_pre_tokenizers_is_that_of_the_official_converter(both):
    official, _ = both
    source = (official.source / "conversion/base.py").read_text(encoding="utf-8")
    theirs = dict(re.findall(r'chkhsh == "(\w{64})":\n.*\n\s+res = "([^"]+)"', source))
    assert theirs == NAMES


TOKENIZE = """
import ctypes, json, sys
import llama_cpp
parameters = llama_cpp.llama_model_default_params()
parameters.vocab_only = True
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
vocab = llama_cpp.llama_model_get_vocab(model)
out = []
for text in json.load(sys.stdin):
    raw = text.encode()
    ids = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), ids, len(ids), False, False)
    out.append(list(ids[:count]))
print(json.dumps(out))
"""


@pytest.mark.parametrize("name", [name for name, m in SMALL_MODELS.items() if m.expected])
def test_llama_cpp_tokenizes_with_our_file_as_is_expected_of_the_vocabulary(both, name):
    official, folder = both
    stem = official.vocabularies / f"ggml-vocab-{SMALL_MODELS[name].expected}.gguf"
    texts = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{stem}.out").read_text(encoding="utf-8").split("\n")
    expected = [[int(number) for number in line.split()] for line in lines[: len(texts)]]
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(folder / f"{name}-auto.ours")],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(texts) > 40
    assert json.loads(done.stdout) == expected


# -- what it costs ---------------------------------------------------------------------------------

CONVERT = """
import re, sys
from pathlib import Path
from bundler.builtin.llamacpp.convert import convert
folder = Path(sys.argv[1])
files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
convert(files, Path(sys.argv[2]), output_type=sys.argv[3], name="m", progress=lambda *a: None)
assert not {"torch", "transformers"} & set(sys.modules)
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(folder: Path, output: Path, type_: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(folder), str(output), type_],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout) << 10


@pytest.mark.parametrize("type_", ["f16"])
def test_peak_memory_is_some_pieces_whatever_the_size_of_the_model(tmp_path, type_):
    large = tiny_model(
        hidden_size=2048, intermediate_size=8192, vocab_size=25000, num_attention_heads=8,
        num_hidden_layers=1, head_dim=512,
    )  # fmt: skip
    write_model(tmp_path / "small", tiny_model(), tmp_path)
    base = peak_bytes(tmp_path / "small", tmp_path / "small.gguf", type_)
    shutil.copytree(tmp_path / "small", tmp_path / "large")
    (tmp_path / "large/config.json").write_text(json.dumps(large.config))
    write_sparse_weights(tmp_path / "large", large)
    peak = peak_bytes(tmp_path / "large", tmp_path / "large.gguf", type_)
    sizes = [tensor.size_bytes for tensor in read_gguf_file(tmp_path / "large.gguf").tensors]
    assert sum(sizes) > 300 << 20
    assert max(sizes) > 96 << 20
    assert peak - base < 32 << 20


def test_progress_counts_every_byte_and_never_goes_back(tmp_path):
    write_model(tmp_path / "m", tiny_model(), tmp_path)
    seen = []
    facts = convert(
        list_files(tmp_path / "m"), tmp_path / "o.gguf", output_type="auto", name="m",
        progress=lambda *said: seen.append(said),
    )  # fmt: skip
    dones = [done for done, _, _ in seen]
    assert dones == sorted(dones)
    assert {(total, unit) for _, total, unit in seen} == {(facts["size_bytes"], "bytes")}
    assert dones[-1] == facts["size_bytes"] == (tmp_path / "o.gguf").stat().st_size


def test_a_conversion_twice_gives_the_same_bytes_wherever_the_files_lie(tmp_path):
    files = write_model(tmp_path / "m", tiny_model(), tmp_path)
    ours(tmp_path / "m", tmp_path / "a.gguf", name="tiny")
    (tmp_path / "store").mkdir()
    elsewhere = {
        name: Path(shutil.copy(path, tmp_path / "store" / f"{n:064}"))
        for n, (name, path) in enumerate(sorted(files.items(), reverse=True))
    }
    convert(elsewhere, tmp_path / "b.gguf", output_type="auto", name="tiny", progress=quiet)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_facts_say_what_was_made(tmp_path):
    write_model(tmp_path / "m", tiny_model(), tmp_path)
    facts = ours(tmp_path / "m", tmp_path / "o.gguf")
    assert facts == {
        "architecture": "llama", "type": "BF16", "tensors": 21, "parameters": 34720,
        "tokenizer": "llama", "pre_tokenizer": "default", "vocabulary": 300,
        "size_bytes": (tmp_path / "o.gguf").stat().st_size,
    }  # fmt: skip
    assert read_gguf_file(tmp_path / "o.gguf").metadata["general.name"] == "m"


# -- arithmetic ------------------------------------------------------------------------------------


def test_rounding_to_bf16_is_that_of_gguf_py_for_all_kinds_of_numbers():
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rng = np.random.default_rng(0)
    bits = np.concatenate([
        rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32),
        np.arange(0x7F7F0000, 0x7F820000, dtype=np.uint32),
        np.arange(0xFF7F0000, 0xFF820000, dtype=np.uint32),
    ])  # fmt: skip
    values = bits[: bits.size // 32 * 32].view(np.float32)
    theirs = quantize(values, GGMLQuantizationType.BF16).view(np.uint16).ravel()
    assert np.array_equal(_round_to_bf16(values), theirs)
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = (every.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(_quiet_bf16(every), _round_to_bf16(wide))


@pytest.mark.parametrize("columns", [(), (5,)])
def test_reordering_undoes_what_transformers_did_head_by_head(columns):
    heads, head = 3, 8
    array = (
        np.arange(heads * head * 5)
        .reshape(heads * head, -1)[:, :1]
        .reshape(-1, *([1] * len(columns)))
    )
    array = np.broadcast_to(array, (heads * head, *columns)).copy()
    # `LlamaModel.permute` of the official converter, on the whole array at once.
    whole = array.reshape(heads, 2, head // 2, *columns).swapaxes(1, 2).reshape(array.shape)
    parts = [Reorder(head)(array[n : n + head]) for n in range(0, heads * head, head)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(array, whole)


def test_rope_factors_are_one_at_high_and_the_factor_at_low_frequencies():
    rope = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}
    config = {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": rope}
    factors = rope_factors(config)
    assert len(factors) == 32
    assert (factors[0], factors[-1]) == (1.0, 32.0)
    assert list(factors) == sorted(factors)
    assert rope_factors({"head_dim": 64, "rope_theta": 500000.0}) == ()


# -- what is refused -------------------------------------------------------------------------------


def broken(tmp_path: Path, change, model: SmallModel | None = None) -> Path:
    """Write a good tiny model, then let `change(folder)` break it."""
    folder = tmp_path / "m"
    write_model(folder, model or tiny_model(), tmp_path)
    change(folder)
    return folder


def edit_json(name: str, **changes):
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def with_tensor(name: str, stored: str = "BF16", shape=(4, 4)):
    def change(folder: Path) -> None:
        raw = bytes({"BF16": 32, "F8_E4M3": 16, "I64": 128}[stored])
        head = {name: {"dtype": stored, "shape": list(shape), "data_offsets": [0, len(raw)]}}
        text = json.dumps(head).encode()
        (folder / "model-extra.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + raw
        )

    return change


INDEX = "model.safetensors.index.json"
REFUSED = {
    "unknown architecture": (edit_json("config.json", architectures=["MambaForCausalLM"]),
                             "MambaForCausalLM cannot be converted; known are BertForMaskedLM"),
    "no architecture": (edit_json("config.json", architectures=[]), "does not say what model"),
    "config not JSON": (write("config.json", b"{"), "not the JSON"),
    "config a list": (write("config.json", b"[]"), "not a JSON object"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: the file is missing"),
    "hidden size text": (edit_json("config.json", hidden_size="big"), "hidden_size is 'big'"),
    "layers absurd": (edit_json("config.json", num_hidden_layers=1 << 40), "num_hidden_layers"),
    "heads zero": (edit_json("config.json", num_attention_heads=0), "num_attention_heads is 0"),
    "fewer layers than weights": (edit_json("config.json", num_hidden_layers=1), "not part of this"),
    "vocabulary of another size": (edit_json("config.json", vocab_size=301), "embeddings of 300 tokens"),
    "rows not of whole heads": (edit_json("config.json", num_key_value_heads=3), "not a multiple"),
    "rope scaling unknown": (edit_json("config.json", rope_scaling={"rope_type": "longrope"}),
                             "rope scaling 'longrope'"),
    "rope scaling no object": (edit_json("config.json", rope_scaling=7), "rope_scaling is 7"),
    "theta not a number": (edit_json("config.json", rope_theta="x"), "rope_theta is 'x'"),
    "quantized already": (edit_json("config.json", quantization_config={"quant_method": "awq"}),
                          "quantized already"),
    "only pickles": (rename("model.safetensors", "pytorch_model.bin"), "pytorch_model.bin"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no safetensors weights"),
    "pickle as safetensors": (write("model.safetensors", b"\x80\x02}q\0." * 9), "not a safetensors"),
    "weights cut": (lambda f: write("model.safetensors", (f / "model.safetensors").read_bytes()[:-1])(f),
                    "tensors end at"),
    "tensor unknown": (with_tensor("model.layers.0.mlp.experts.0.up_proj.weight"), "not part of this"),
    "tensor twice": (with_tensor("model.norm.weight"), "more than one file"),
    "tensor in 8 bits": (with_tensor("model.layers.0.mlp.up_proj.bias", "F8_E4M3"), "stored as F8"),
    "shard missing": (write(INDEX, json.dumps({"weight_map": {"a": "model-2.safetensors"}}).encode()),
                      "model-2.safetensors: the weights file is missing"),
    "index without tensors": (
        write(INDEX, json.dumps({"weight_map": {"a": "model.safetensors"}}).encode()),
        "tensor 'a' is not in 'model.safetensors'"),
    "index leads out": (write(INDEX, json.dumps({"weight_map": {"a": "../x.safetensors"}}).encode()),
                        "no safetensors file beside"),
    "tokenizer damaged": (write("tokenizer.model", b"\xff" * 64), "not a SentencePiece model"),
    "tokenizer missing": (rename("tokenizer.model", "tekken.json"), "neither tokenizer.model nor"),
    "tokenizer.json damaged": (
        lambda f: (rename("tokenizer.model", "x")(f), write("tokenizer.json", b'{"model": {}}')(f)),
        "not a tokenizer"),
    "added token of no id": (write("added_tokens.json", b'{"a": "b"}'), "has the id 'b'"),
    "card of broken YAML": (write("README.md", b"---\na: [\n---\n"), "model card"),
    "card not UTF-8": (write("README.md", b"---\n\xff\n---\n"), "model card"),
    "sampling not a number": (write("generation_config.json", b'{"temperature": "hot"}'),
                              "general.sampling.temp cannot be written as FLOAT32: 'hot'"),
    "template not text": (edit_json("tokenizer_config.json", chat_template="\ud800"), "surrogates"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_converted_is_refused_with_its_reason(tmp_path, name):
    change, reason = REFUSED[name]
    folder = broken(tmp_path, change)
    with pytest.raises(UnsafeInput) as caught:
        ours(folder, tmp_path / "o.gguf")
    assert reason in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_all_unknown_tensors_are_named_at_once(tmp_path):
    def change(folder: Path) -> None:
        write_safetensors(folder / "model-x.safetensors", random_tensors({"a": (2,), "b": (2,)}))

    with pytest.raises(UnsafeInput) as caught:
        ours(broken(tmp_path, change), tmp_path / "o.gguf")
    assert len(caught.value.problems) == 2


def test_a_value_too_large_for_f16_is_an_error_that_names_it_and_leaves_nothing(tmp_path):
    def change(folder: Path) -> None:
        tensors = random_tensors({"model.norm.weight": (32,), "lm_head.weight": (300, 32)})
        tensors["lm_head.weight"][7, 3] = -1e6
        write_safetensors(folder / "model.safetensors", tensors)

    folder = broken(tmp_path, change)
    with pytest.raises(StepFailed, match=r"'lm_head.weight' has values up to 999424"):
        ours(folder, tmp_path / "o.gguf", "f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    ours(folder, tmp_path / "o.gguf", "bf16")


def test_an_unknown_pre_tokenizer_is_refused_with_its_fingerprint(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    def change(folder: Path) -> None:
        (folder / "tokenizer.model").unlink()
        alphabet = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(alphabet | {"<s>": 256, "</s>": 257}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))

    with pytest.raises(
        UnsafeInput, match=r"no rules for this pre-tokenizer \(fingerprint \w{64}\)"
    ):
        ours(broken(tmp_path, change), tmp_path / "o.gguf")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a\nb", "x" * 300])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    folder = broken(tmp_path, lambda folder: None)
    with pytest.raises(UnsafeInput, match="cannot be the name"):
        convert(list_files(folder), tmp_path / "o", output_type="auto", name=name, progress=quiet)


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    folder = broken(tmp_path, lambda folder: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DoesNotFit, match="the disk has 1 B"):
        ours(folder, tmp_path / "o.gguf")
    assert not (tmp_path / "o.gguf.partial").exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_tokenizer_or_config_never_ends_in_a_foreign_exception(tmp_path, seed):
    rng = random.Random(seed)
    model = replace(tiny_model(), shards=2)
    folder = tmp_path / "m"
    write_model(folder, model, tmp_path)
    write("generation_config.json", b'{"temperature": 0.5, "top_k": 4}')(folder)
    write("README.md", b"---\nlicense: mit\ntags: [a, b]\nbase_model: a/b\n---\n")(folder)
    names = [p.name for p in folder.iterdir() if p.suffix != ".safetensors"]
    damage_and_convert(rng, folder, names, tmp_path / "o.gguf")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_tokenizer_json_never_ends_in_a_foreign_exception(tmp_path, seed):
    folder = tmp_path / "m"
    write_model(folder, replace(tiny_model(), files=tiny_json_files), tmp_path)
    ours(folder, tmp_path / "o.gguf")
    names = ["tokenizer.json", "tokenizer_config.json"]
    damage_and_convert(random.Random(seed), folder, names, tmp_path / "o.gguf")


def damage_and_convert(rng: random.Random, folder: Path, names: list[str], output: Path) -> None:
    for _ in range(40):
        path = folder / rng.choice(names)
        good = path.read_bytes()
        raw = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randint(0, 3)] = rng.choice(
                [b"0", b"null", b"[]", b'"', b"-1", b"\xff", b""]
            )
        path.write_bytes(raw)
        try:
            ours(folder, output)
        except (UnsafeInput, StepFailed):
            continue
        finally:
            path.write_bytes(good)


def test_every_family_is_in_the_comparison():
    covered = {name for model in SMALL_MODELS.values() for name in model.config["architectures"]}
    for family in FAMILIES:
        assert covered & set(family.classes)
