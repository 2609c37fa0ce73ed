"""Models cut into several files: the shards, the plan for them, the bundle they end in, and lies."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bundler.bom import bill_of_materials
from bundler.builtin.llamacpp.sharding import cut_offer, largest_tensor_bytes, size_on_disk
from bundler.doctor.storage import file_sizes
from bundler.errors import DoesNotFit, PluginError, UnsafeInput
from bundler.execute import files_left
from bundler.feedback.measurements import making_digest
from bundler.machine.disk import disk_of
from bundler.manifest import BundledModel, Manifest
from bundler.plan import Companion, FileInput, Memory, StepInput
from bundler.planning.filesystems import FAT32_MAX_FILE_BYTES, can_be_stored, cannot_be_stored
from bundler.station.configuration import read_bundle
from bundler.station.problems import StationError
from bundler.store import StoredResult, hash_file
from bundler.update.encoding import counterparts
from bundler.verify import read_manifest, verify_bundle
from bundler.weights import TensorPlan, field, read_gguf_file, read_shard_name, shard_name
from bundler.weights.cutting import write_shards
from bundler.weights.shard_names import in_order
from bundler.weights.shards import check_shards, laid_out, own_fields, pieces_of
from tests import sticks
from tests.demo import CACHE, bundler, demo_bundle, quickstart
from tests.fake_build import RECIPE, fakes, run
from tests.media import sealed
from tests.models import job
from tests.sharded_files import FIELDS, TENSORS, contents, gguf_file
from tests.test_offers import model_of, offers, ready

GOLDEN = Path(__file__).parent / "golden" / "gguf-split.json"
ROUNDING = 1e-6
"""What the reference's scores lose by being kept: of a file against itself, too."""


def untold(done: int, total: int) -> None:
    assert 0 <= done <= total


def cut_up(sources: list[Path], folder: Path, most_bytes: int, stem: str = "m") -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [folder / name for name in write_shards(sources, folder, stem, most_bytes, untold)]


# -- cutting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensors", [2, 3, 8])
def test_shards_are_those_of_gguf_split_to_the_byte(tmp_path, tensors):
    source = gguf_file(tmp_path / "m.gguf")
    header, data = read_gguf_file(source), source.read_bytes()
    pieces = pieces_of([header])
    groups = [pieces[n : n + tensors] for n in range(0, len(pieces), tensors)]
    found = {}
    shards = laid_out(groups, own_fields(header, data), header.alignment)
    for number, shard in enumerate(shards, start=1):
        body = b"".join(
            data[p.at : p.at + p.tensor.size_bytes] + bytes(-p.tensor.size_bytes % 32)
            for p in shard.pieces
        )
        assert len(shard.header) + len(body) == shard.size_bytes
        name = shard_name(str(tensors), number, len(shards))
        found[name] = hashlib.sha256(shard.header + body).hexdigest()
    golden = json.loads(GOLDEN.read_text())["files"]
    assert found == {n: d for n, d in golden.items() if n.startswith(f"{tensors}-")}


shapes = st.one_of(
    st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 40), st.integers(1, 60)),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 30)),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    given_shapes=st.lists(shapes, min_size=1, max_size=9), most=st.integers(9000, 30_000),
    alignment=st.sampled_from([32, 64, 256]),
)  # fmt: skip
def test_whatever_is_cut_is_within_the_limit_and_loses_nothing(
    tmp_path_factory, given_shapes, most, alignment
):
    folder = tmp_path_factory.mktemp("cut")
    tensors = [TensorPlan(f"t{n}.weight", "F32", shape) for n, shape in enumerate(given_shapes)]
    fields = {**FIELDS, "general.alignment": field("UINT32", alignment)}
    source = gguf_file(folder / "m.gguf", tensors, fields, alignment)
    try:
        made = cut_up([source], folder / "a", most)
    except DoesNotFit:
        assert max(t.size_bytes for t in tensors) + 256 > most
        return
    assert [path.name for path in made] == in_order(path.name for path in made)
    assert max(path.stat().st_size for path in made) <= most
    check_shards([read_gguf_file(path) for path in made], "m")
    assert contents(made) == contents([source])
    again = cut_up(made, folder / "b", most)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in made]
    (whole,) = cut_up(made, folder / "c", 1 << 30)
    assert contents([whole]) == contents([source])


def test_the_fields_that_do_not_fit_beside_the_first_tensor_get_a_file_of_their_own(tmp_path):
    source = gguf_file(tmp_path / "m.gguf")
    largest = max(tensor.size_bytes for tensor in TENSORS)
    made = cut_up([source], tmp_path / "a", largest + 256)
    assert read_gguf_file(made[0]).tensors == ()
    assert contents(made) == contents([source])


def test_a_tensor_that_is_too_large_is_refused_by_name_and_nothing_is_left(tmp_path):
    source = gguf_file(tmp_path / "m.gguf")
    with pytest.raises(DoesNotFit, match=r"token_embd\.weight.*cannot be cut"):
        cut_up([source], tmp_path / "a", 30_000)
    with pytest.raises(DoesNotFit, match="its header has"):
        cut_up([source], tmp_path / "a", 3000)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_that_shrinks_while_it_is_cut_leaves_nothing_half(tmp_path):
    source = gguf_file(tmp_path / "m.gguf")
    shortened = []

    def told(done: int, total: int) -> None:
        if done and not shortened:
            with source.open("r+b") as stream:
                stream.truncate(source.stat().st_size // 2)
            shortened.append(done)

    (tmp_path / "a").mkdir()
    with pytest.raises(Exception, match="became shorter while it was read"):
        write_shards([source], tmp_path / "a", "m", 60_000, told)
    assert not list((tmp_path / "a").glob("*.partial"))


# -- names and lies --------------------------------------------------------------------------------


@given(st.text(min_size=1), st.integers(0, 99_999), st.integers(0, 99_999))
def test_a_shards_name_says_what_it_was_made_of(stem, number, total):
    assert read_shard_name(shard_name(stem, number, total)) == (stem, number, total)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a-00001-of-99999.gguf"], "99998 of 99999 shards are missing: 2, 3, 4, 5, 6…"),
        (["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], "1 of 3 shards are missing: 2"),
        (["a-00001-of-00002.gguf", "b-00002-of-00002.gguf"], "2 different models: a, b"),
        (["a-00001-of-00002.gguf", "a-00002-of-00003.gguf"], "2 different models: a"),
        (["a-00001-of-00002.gguf", "a.gguf"], "2 different models"),
        (["a-00000-of-00002.gguf", "a-00001-of-00002.gguf"], "numbered 0, 1 of 2"),
        (["a-00000-of-00000.gguf"], "numbered 0 of 0"),
        (["a-00002-of-00001.gguf", "a-00001-of-00001.gguf"], "numbered 1, 2 of 1"),
    ],
)  # fmt: skip
def test_names_that_lie_are_refused_by_name(names, said):
    with pytest.raises(UnsafeInput, match=said):
        in_order(names)


def test_a_step_that_leaves_some_of_its_shards_is_told_so():
    given_ = StepInput(step="shard", file="model.gguf", shards=True)
    left = {shard_name("model", n, 3): ("0" * 64, n) for n in (3, 1, 2)} | {"x.gguf": ("1" * 64, 9)}
    found = files_left(given_, StoredResult(left, {}), "prove")
    assert [size for _, size in found.values()] == [1, 2, 3]
    del left[shard_name("model", 2, 3)]
    with pytest.raises(PluginError, match="did not leave all shards"):
        files_left(given_, StoredResult(left, {}), "prove")
    with pytest.raises(PluginError, match="left no shard"):
        files_left(given_, StoredResult({}, {}), "prove")


# -- offers and plans ------------------------------------------------------------------------------


def test_an_offer_that_is_too_large_is_cut_and_proved_as_shards():
    (whole, *_) = [o for o in offers() if o.quant == "Q8_0"]
    assert whole.disk_bytes > FAT32_MAX_FILE_BYTES > whole.indivisible_bytes > 0
    offer = cut_offer(whole, FAT32_MAX_FILE_BYTES)
    assert offer is not None
    assert can_be_stored(offer, FAT32_MAX_FILE_BYTES)
    assert not can_be_stored(whole, FAT32_MAX_FILE_BYTES)
    *_, step, prove = offer.steps
    assert (step.name, dict(step.inputs)) == ("shard", {"model.gguf": whole.output})
    assert prove.inputs["model.gguf"] == offer.output
    assert prove.inputs["reference.gguf"] == whole.steps[-1].inputs["reference.gguf"]
    assert whole.disk_bytes <= offer.disk_bytes <= whole.disk_bytes * 1.001
    assert offer.scratch_bytes == whole.scratch_bytes + whole.disk_bytes
    # What was measured of the file holds for its shards.
    assert making_digest(offer) == making_digest(whole)


def test_the_largest_tensor_says_what_cannot_be_cut():
    facts = model_of("Qwen/Qwen2.5-7B-Instruct").facts
    types = {tensor.name: "BF16" for tensor in facts.tensors}
    size = largest_tensor_bytes(facts, types)
    assert size == max(2 * math.prod(tensor.shape) for tensor in facts.tensors)
    (whole, *_) = [o for o in offers() if o.quant == "BF16"]
    assert whole.indivisible_bytes == size
    assert cut_offer(whole, size) is None
    assert cut_offer(whole, size + 256) is not None
    problem = cannot_be_stored("models.chat", [whole], size)
    assert "its largest tensor, which cannot be cut" in problem.message


def test_shards_from_a_hub_are_offered_as_they_come_and_cut_where_they_are_too_large():
    names = ("big-Q4_K_M-00001-of-00002.gguf", "big-Q4_K_M-00002-of-00002.gguf", "mmproj.gguf")
    (offer, *_) = offers(model=ready(*names, "README.md", file_type=15))
    assert isinstance(offer.output, FileInput)
    assert [one.size_bytes for one in (offer.output, *offer.other_shards)] == [100, 101]
    assert (offer.disk_bytes, offer.largest_file_bytes) == (201, 101)
    (prove,) = offer.steps
    assert [n for n in prove.inputs if n.endswith(".gguf")] == [
        shard_name("model", 1, 2), shard_name("model", 2, 2),
    ]  # fmt: skip
    smaller = cut_offer(offer.model_copy(update={"indivisible_bytes": 1}), 1000)
    assert smaller is not None
    step, proof = smaller.steps
    assert sorted(step.inputs) == [shard_name("model", 1, 2), shard_name("model", 2, 2)]
    assert [n for n in proof.inputs if n.endswith(".gguf")] == ["model.gguf"]
    assert smaller.scratch_bytes == 0  # what is cut was fetched, and is counted there
    assert making_digest(smaller) == making_digest(offer)


def test_a_companion_that_is_too_large_is_named():
    (offer, *_) = offers("Qwen/Qwen2.5-1.5B-Instruct", quant="Q4_K_M")
    beside = Companion(kind="projector", file=FileInput(sha256="1" * 64, size_bytes=1 << 33))
    offer = offer.model_copy(update={"companions": (beside,)})
    assert not can_be_stored(offer, FAT32_MAX_FILE_BYTES)
    problem = cannot_be_stored("models.eye", [offer], FAT32_MAX_FILE_BYTES)
    assert "its projector" in problem.message
    assert "exfat" in problem.hint


def test_fat_on_this_machine_is_told_with_the_line_for_the_recipe(tmp_path):
    (refusal,) = file_sizes(disk_of(tmp_path)._replace(filesystem="vfat"), 2**32)
    assert 'filesystem = "fat32" below [bundle]' in refusal.remedy


# -- what a bundle says of them --------------------------------------------------------------------


def bundled(*paths: str, file: str = "", tier: str = "") -> dict[str, Any]:
    return {
        "name": "chat", "role": "chat", "file": file or paths[0], "engine": "llama.cpp",
        "quant": "Q8_0", "kv_cache": "f16", "context_tokens": 64, "parallel": 1, "tier": tier,
        "predicted_memory": Memory(weights_bytes=1, kv_cache_bytes=1, compute_bytes=1).model_dump(),
        "bits_per_weight": 8.5, "origin": {
            "reference": "hf:someone/chat", "revision": "1", "licence": "MIT",
        }, "shards": list(paths[1:]) if file == "+" else list(paths) if len(paths) > 1 else [],
    }  # fmt: skip


def manifest(model: dict[str, Any], there: list[str], name: str = "b") -> Manifest:
    files = [
        {"path": path, "size_bytes": 10, "sha256": hashlib.sha256(path.encode()).hexdigest()}
        for path in sorted(there)
    ]
    return Manifest.model_validate({
        "name": name, "version": "1", "title": "t", "created": 1, "builder": "bundler 0",
        "target": {"name": "t", "ram_bytes": 1}, "platforms": ["linux-x86_64"],
        "recipe_sha256": "0" * 64, "lock_sha256": "1" * 64, "models": [model], "corpora": [],
        "step_keys": {}, "files": files,
    })  # fmt: skip


def shards(count: int, stem: str = "models/chat/chat-Q8_0") -> list[str]:
    return [shard_name(stem, number, count) for number in range(1, count + 1)]


def test_a_manifest_names_all_shards_of_a_model_and_says_nothing_of_those_in_one_file():
    made = manifest(bundled(*shards(3)), shards(3))
    (model,) = made.models
    assert model.files == tuple(shards(3))
    assert Manifest.model_validate_json(made.model_dump_json()) == made
    whole = BundledModel.model_validate(bundled("models/chat/chat.gguf"))
    assert "shards" not in whole.model_dump()
    assert whole.files == ("models/chat/chat.gguf",)


@pytest.mark.parametrize(
    ("model", "there", "said"),
    [
        (bundled(*shards(3)), shards(3)[:2], "00003-of-00003.gguf', a shard .* not among the files"),
        (bundled(*shards(3)[:2]), shards(3), "is not shard 1 of the 2"),
        (bundled(*shards(3)[::-1]), shards(3), "is not shard 1 of the 3"),
        (bundled(*shards(2)[:1], *shards(2, "models/x/y")[1:]), [*shards(2), *shards(2, "models/x/y")],
         "is not shard 2 of the 2"),
        (bundled(shards(99_999)[0]), shards(99_999)[:1], "is not shard 1 of the 0"),
        (bundled(*shards(2), file="models/chat/other.gguf"), [*shards(2), "models/chat/other.gguf"],
         "is not shard 1 of the 2"),
    ],
)  # fmt: skip
def test_a_manifest_whose_shards_lie_is_refused_by_name(model, there, said):
    with pytest.raises(ValidationError, match=said):
        manifest(model, there)


def test_an_update_looks_for_each_shard_in_the_one_it_comes_from():
    old = manifest(bundled(*shards(2, "models/chat/old")), shards(2, "models/chat/old"))
    new = manifest(bundled(*shards(3)), shards(3))
    pairs = counterparts(old, new)
    assert [pairs[path] for path in shards(3)] == [
        *shards(2, "models/chat/old"), shards(2, "models/chat/old")[1],
    ]  # fmt: skip
    whole = manifest(bundled("models/chat/chat.gguf"), ["models/chat/chat.gguf"])
    assert {counterparts(whole, new)[path] for path in shards(3)} == {"models/chat/chat.gguf"}


def test_the_bill_of_materials_names_shards_companions_and_who_they_are_from():
    model = bundled(*shards(2)) | {"companions": [
        {"kind": "projector", "file": "models/chat/projector-1.gguf",
         "origin": {"reference": "https://example.org/p.gguf", "revision": "2", "licence": "MIT"}},
    ]}  # fmt: skip
    made = manifest(model, [*shards(2), "models/chat/projector-1.gguf"])
    bill = bill_of_materials(made)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    chat, projector = bill["components"]
    assert [one["name"] for one in chat["components"]] == shards(2)
    assert "hashes" not in chat
    digests = {file.path: file.sha256 for file in made.files}
    assert [one["hashes"][0]["content"] for one in chat["components"]] == [
        digests[path] for path in shards(2)
    ]
    assert chat["supplier"] == {"name": "someone"}
    assert projector["supplier"] == {"name": "example.org"}
    assert projector["hashes"][0]["content"] == digests["models/chat/projector-1.gguf"]
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert needs["model/chat"] == [projector["bom-ref"]]
    assert needs["bundle"] == ["model/chat", projector["bom-ref"]]


# -- through the real pipeline ---------------------------------------------------------------------


def test_a_library_that_is_made_too_large_is_refused_by_name(tmp_path):
    source = fakes()
    source.source.files["book"]["large.txt"] = b"page " * 400_000
    recipe = RECIPE.replace("[bundle]", '[bundle]\nmax_file_size = "1.2 MB"')
    with pytest.raises(
        DoesNotFit, match=r"corpora\.book has 2.*; no file may have more than 1\.20 MB"
    ):
        run(tmp_path, source, recipe)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The example, built for a stick whose files may have 1.5 MB."""
    demo_bundle()  # its finished steps are used: only cutting and the proof are new
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(quickstart().parents[1], folder / "tree", dirs_exist_ok=True)
    recipe = folder / "tree/recipes/quickstart.toml"
    text = recipe.read_text().replace("[bundle]", '[bundle]\nmax_file_size = "1.5 MB"', 1)
    text = text.replace('["Q8_0", "Q6_K", "Q4_K_M"]', '"Q8_0"').replace(
        "tokens = 2048", "tokens = 512"
    )
    recipe.write_text(text)
    done = bundler("build", recipe, "--output", folder / "out", "--store", CACHE / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def test_a_model_that_is_too_large_for_the_stick_is_sealed_as_shards(built):
    found = read_manifest(built)
    (model,) = found.models
    sizes = {file.path: file.size_bytes for file in found.files}
    assert list(model.files) == shards(4)
    assert max(sizes[path] for path in model.files) <= 1_500_000
    assert not verify_bundle(built).findings
    said = json.loads((built / "station.json").read_text())["models"][0]
    assert (said["file"], said["shards"]) == (shards(4)[0], shards(4))
    digests = {file.path: file.sha256 for file in found.files}
    assert model.proof is not None
    assert [model.proof.model_sha256, *model.proof.other_shards_sha256] == [
        digests[path] for path in model.files
    ]
    text = (built / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_its_shards_say_the_same_as_the_file_they_were_cut_from(built, tmp_path):
    (model,) = read_manifest(built).models
    (uncut,) = read_manifest(demo_bundle()).models
    assert uncut.quant == model.quant == "Q8_0"
    whole = demo_bundle() / uncut.file
    assert contents(built / path for path in model.files) == contents([whole])
    assert size_on_disk(built / model.file) >= whole.stat().st_size
    found = same_words(built / model.file, whole, tmp_path)
    assert found["kld_max"] < ROUNDING
    assert found["top1_agreement"] == 1.0
    assert found["perplexity"] == found["reference_perplexity"]


def same_words(model: Path, whole: Path, scratch: Path) -> dict[str, Any]:
    """Return how far a model's probabilities are from those of the file it was cut from."""
    text = Path(__file__).parents[1] / "examples/handbook"
    heldout = max(text.rglob("*.md"), key=lambda path: path.stat().st_size)
    found: dict[str, Any] = job("evaluate:evaluate_job", {
        "model": str(model), "reference": str(whole), "text": str(heldout), "text_name": "text.txt",
        "window_tokens": 256, "tokens": 512, "kv_cache": "f16", "gpu": False, "gpu_layers": 0,
        "adapters": [], "scratch": str(scratch),
    })  # fmt: skip
    return found


def test_a_shard_that_is_gone_or_changed_is_named(built, tmp_path):
    stick = tmp_path / "b"
    subprocess.run(["cp", "-rl", str(built), str(stick)], check=True)
    gone = stick / shards(4)[2]
    gone.unlink()
    with pytest.raises(StationError, match="00003-of-00004"):
        list_attempts(stick)
    data = bytearray((built / shards(4)[2]).read_bytes())
    data[len(data) // 2] ^= 1
    gone.write_bytes(data)
    found = verify_bundle(stick)
    assert [one.path for one in found.findings] == [shards(4)[2]]


def list_attempts(root: Path) -> None:
    from bundler.station.attempts import attempts_of

    bundle = read_bundle(root)
    attempts_of(bundle.models[0], bundle, "linux-x86_64")


def test_a_station_that_is_told_of_shards_elsewhere_refuses_them(built, tmp_path):
    shutil.copy(built / "station.json", tmp_path / "station.json")
    said = json.loads((tmp_path / "station.json").read_text())
    said["models"][0]["shards"][1] = "../../etc/passwd"
    (tmp_path / "station.json").write_text(json.dumps(said))
    with pytest.raises(StationError, match=r"models\[0\]\.shards: .* not a path inside"):
        read_bundle(tmp_path)


@pytest.mark.mounts
def test_from_a_fat_stick_the_model_opens_and_says_what_it_said_when_it_was_made(built, tmp_path):
    (model,) = read_manifest(built).models
    # Without the runtime's thousand files, which FAT through FUSE takes minutes for.
    files = {path: (built / path).read_bytes() for path in model.files}
    small = sealed(tmp_path / "small", files)
    with sticks.stick(tmp_path, "fat", 64) as stick:
        done = bundler("deploy", small, stick, "--unsigned")
        assert done.returncode == 0, done.stdout + done.stderr
        there = stick / read_manifest(small).name
        assert [hash_file(there / path) for path in model.files] == [
            hash_file(built / path) for path in model.files
        ]
        (uncut,) = read_manifest(demo_bundle()).models
        found = same_words(there / model.file, demo_bundle() / uncut.file, tmp_path / "scores")
    assert found["kld_max"] < ROUNDING
    assert found["top1_agreement"] == 1.0
