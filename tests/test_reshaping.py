"""A reshaped model is the same function, or it is refused; and it is kept only where it helps."""

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.reshaping.changes import Change, Turn
from bundler.builtin.llamacpp.reshaping.checking import compare
from bundler.builtin.llamacpp.reshaping.deciding import Trying, choose, decide, divide_text, why_not
from bundler.builtin.llamacpp.reshaping.record import Decision, Trial
from bundler.builtin.llamacpp.reshaping.wiring import ARCHITECTURES, refusals, wiring_of
from bundler.errors import DoesNotFit, RecipeError, UnsafeInput
from bundler.testing.outliers import inject_outliers
from bundler.weights.gguf import read_gguf_file
from tests.models import Shape, example_gguf, job, quantized, text_file, tiny_gguf
from tests.models import folder as models_folder
from tests.reshapable import FAMILIES, HIDDEN, LAYERS, family

CALIBRATION = Path(__file__).parents[1] / "bundler" / "texts" / "calibration.txt"


def in_child(name, arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return run_child(f"tests.reshaping_jobs:{name}", arguments, environment=environment)


def values(path, name):
    header = read_gguf_file(path)
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    raw = path.read_bytes()[header.data_offset + tensor.offset :][: tensor.size_bytes]
    return np.frombuffer(raw, "<f4").reshape(tensor.shape)


# -- changes ---------------------------------------------------------------------------------------


@given(size=st.integers(1, 160), seed=st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=60)
def test_a_turn_is_orthogonal_whatever_its_size(size, seed):
    turn = Turn(size, seed)
    matrix = turn.right(np.eye(size, dtype=np.float32))
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-5
    rows = np.random.default_rng(seed).standard_normal((size, 3)).astype(np.float32)
    assert turn.left(rows) == pytest.approx(matrix.T @ rows, abs=1e-5)


def test_a_turn_spreads_one_channel_over_all_the_others():
    for size in (64, 96, 3584):
        spread = np.abs(Turn(size, 3).right(np.eye(1, size, 17, dtype=np.float32)))
        assert spread.max() < 3.0 / np.sqrt(size)


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_change_is_the_product_it_says(data):
    heads, size, columns = data.draw(st.integers(1, 3)), 8, 12
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    weight = rng.standard_normal((heads * size + 4, columns)).astype(np.float32)
    rows, scale = (
        rng.random(heads * size).astype(np.float32),
        rng.random(columns).astype(np.float32),
    )
    left, right = Turn(size, 1), Turn(columns, 2)
    change = Change(rows, scale, left, right, first=4, count=heads * size)
    q = np.kron(np.eye(heads), left.right(np.eye(size, dtype=np.float32)))
    expected = (weight * scale).astype(np.float64)
    expected[4:] = q.T @ (rows[:, None] * expected[4:])
    expected = expected @ right.right(np.eye(columns, dtype=np.float32))
    assert change.of(weight) == pytest.approx(expected, abs=1e-5)


# -- the same function -----------------------------------------------------------------------------


@functools.cache
def reshaped():
    """Reshape every family in every way; return the folder, and by family how far logits moved."""
    folder = models_folder() / "reshaped"
    models = {}
    for name in FAMILIES:
        (folder / name).mkdir(parents=True)
        models[name] = str(family(folder / name / "model.gguf", name))
    return folder, in_child("every_family", {"models": models, "text": str(text_file())})


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_kept_in_every_way_by_every_family(name):
    folder, found = reshaped()[0] / name, reshaped()[1][name]
    assert max(found[way] for way in ("scaled", "rotated", "both")) < 1e-4
    # A check of what was left as it was would prove nothing.
    assert found["scaled places"] >= LAYERS
    before = values(folder / "model.gguf", "blk.0.attn_output.weight")
    for made in ("scaled", "rotated", "both"):
        after = values(folder / f"{made}.gguf", "blk.0.attn_output.weight")
        assert np.abs(before - after).max() > 1e-3
    assert (values(folder / "rotated.gguf", "blk.1.ffn_norm.weight") == 1).all()


def test_an_embedding_that_was_the_output_too_gets_one_of_its_own(tmp_path):
    model = family(tmp_path / "model.gguf", "llama-tied")
    made = tmp_path / "made.gguf"
    job("reshaping.making:reshape_job", {"model": str(model), "output": str(made), "way": "rotate"})
    before, after = read_gguf_file(model), read_gguf_file(made)
    assert {t.name for t in after.tensors} - {t.name for t in before.tensors} == {"output.weight"}
    kept = {k: list(v) if hasattr(v, "pieces") else v for k, v in before.metadata.items()}
    now = {k: list(v) if hasattr(v, "pieces") else v for k, v in after.metadata.items()}
    assert {k: now[k] for k in kept if k != "general.file_type"} == {
        k: v for k, v in kept.items() if k != "general.file_type"
    }
    assert now["bundler.reshaped"].startswith("rotated")


def test_the_same_model_and_seed_give_the_same_bytes(tmp_path):
    model = family(tmp_path / "model.gguf", "qwen2")
    made = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for path in made:
        arguments = {"model": str(model), "output": str(path), "way": "rotate", "seed": 9}
        job("reshaping.making:reshape_job", arguments)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_a_model_that_is_another_function_does_not_pass(tmp_path):
    model = family(tmp_path / "model.gguf", "llama")
    models = {"itself": str(model)}
    for name in ("blk.0.attn_k.weight", "blk.1.ffn_norm.weight", "token_embd.weight"):
        wrong = shutil.copy(model, tmp_path / f"{name}.gguf")
        header = read_gguf_file(wrong)
        tensor = next(tensor for tensor in header.tensors if tensor.name == name)
        changed = values(wrong, name) * np.float32(1.01)
        with wrong.open("r+b") as stream:
            stream.seek(header.data_offset + tensor.offset)
            stream.write(changed.tobytes())
        models[name] = str(wrong)
    common = {"original": str(model), "text": str(text_file()), "scratch": str(tmp_path)}
    said = in_child("every_check", {"models": models, "common": common})
    assert said.pop("itself") == 0
    assert len(said) == 3
    assert all("not the same function" in words for words in said.values())


def test_logits_that_are_no_numbers_are_not_the_same():
    row = [np.array([[1.0, 2.0, 4.0]], np.float32)]
    assert compare(row, row).holds
    assert not compare(row, [np.array([[1.0, np.nan, 4.0]], np.float32)]).holds
    assert not compare(row, [np.array([[1.0, 2.0, 4.001]], np.float32)]).holds


def test_weights_that_are_no_numbers_are_named_with_their_row(tmp_path):
    model = family(tmp_path / "model.gguf", "llama")
    header = read_gguf_file(model)
    tensor = next(tensor for tensor in header.tensors if tensor.name == "blk.1.ffn_up.weight")
    with model.open("r+b") as stream:
        stream.seek(header.data_offset + tensor.offset + 4 * (7 * HIDDEN + 3))
        stream.write(np.float32(np.nan).tobytes())
    arguments = {"model": str(model), "output": str(tmp_path / "x.gguf"), "way": "rotate"}
    with pytest.raises(UnsafeInput, match=r"blk\.1\.ffn_up\.weight \(row 7\)"):
        job("reshaping.making:reshape_job", arguments)
    assert not (tmp_path / "x.gguf").exists()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "size", "reason"),
    [
        ("blk.0.post_ffw_norm.weight", (HIDDEN,), "sandwich"),
        ("blk.0.attn_norm.bias", (HIDDEN,), "LayerNorm"),
        ("blk.1.nextn.eh_proj.weight", (HIDDEN, 2 * HIDDEN), "predicts several tokens"),
        ("v.blk.0.attn_q.weight", (HIDDEN, HIDDEN), "projector"),
        ("blk.0.ssm_in.weight", (HIDDEN, HIDDEN), "recurrent"),
        ("cls.output.weight", (1, HIDDEN), "hidden state"),
        ("blk.0.something.weight", (HIDDEN, HIDDEN), "not understood"),
    ],
)
def test_a_tensor_without_its_place_is_refused_with_the_reason(tensor, size, reason, tmp_path):
    model = family(tmp_path / "model.gguf", "llama", more={tensor: size})
    with pytest.raises(RecipeError, match=reason) as caught:
        wiring_of(read_gguf_file(model))
    assert tensor in str(caught.value)


def test_quantized_models_and_unknown_architectures_are_refused(tmp_path):
    small = quantized(tiny_gguf(Shape()), "Q8_0")
    assert "quantized (Q8_0)" in refusals(read_gguf_file(small))[0]
    raw = family(tmp_path / "m.gguf", "llama").read_bytes()
    other = tmp_path / "gemma.gguf"
    other.write_bytes(raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1))
    assert "'gemma'" in refusals(read_gguf_file(other))[0]
    assert set(ARCHITECTURES) >= {"llama", "qwen2", "qwen3", "qwen3moe", "phi3"}


def test_what_goes_with_a_model_forbids_it(tmp_path):
    model = family(tmp_path / "model.gguf", "llama")
    assert not why_not(model)
    assert "LoRA adapter" in why_not(model, ["adapter"])
    assert "projector" in why_not(model, ["projector", "projector"])


def test_a_layer_that_is_not_whole_is_refused(tmp_path):
    model = family(tmp_path / "model.gguf", "llama", without="blk.1.attn_output.weight")
    assert "there is no blk.1.attn_output.weight" in refusals(read_gguf_file(model))[0]


# -- only where it helps ---------------------------------------------------------------------------


def trial(way, kld, size=1000, error=0.001):
    return Trial(
        way=way, quant="Q4_K_M", kld_mean=kld, kld_standard_error=error, top1_agreement=0.9,
        perplexity=10.0, size_bytes=size,
    )  # fmt: skip


def test_a_way_must_be_better_by_more_than_the_noise():
    assert choose([trial("off", 0.1), trial("scale", 0.05)])[0] == "scale"
    assert choose([trial("off", 0.1), trial("scale", 0.0975)])[0] == "off"
    assert choose([trial("off", 0.1), trial("scale", 0.12)])[0] == "off"


def test_a_way_that_makes_the_file_larger_is_not_compared():
    way, reason = choose(
        [trial("off", 0.1), trial("rotate", 0.01, size=1200), trial("scale", 0.02)]
    )
    assert way == "scale"
    assert "rotate would make it larger" in reason
    assert choose([trial("off", 0.1), trial("rotate", 0.01, size=1200)])[0] == "off"


def test_even_channels_are_left_alone_without_a_trial(tmp_path):
    given = Trying(
        model=tiny_gguf(Shape(), type_="F32"), calibration=text_file(), quant="Q4_K_M",
        environment=os.environ, folder=tmp_path, window_tokens=64, calibration_tokens=256,
    )  # fmt: skip
    decision = decide(given, tmp_path / "out.gguf")
    assert decision.way == "off"
    assert "channels are even" in decision.reason
    assert not decision.trials
    assert not list(tmp_path.iterdir())


def test_a_trained_model_with_injected_outliers_is_mended(tmp_path):
    broken = tmp_path / "broken.gguf"
    channels = inject_outliers(example_gguf(), broken)
    assert len(channels) == 4
    given = Trying(
        model=broken, calibration=CALIBRATION, quant="Q4_K_M", environment=os.environ,
        folder=tmp_path, window_tokens=256, calibration_tokens=2048, measured_tokens=1024,
    )  # fmt: skip
    output = tmp_path / "mended.gguf"
    decision = decide(given, output, ways=("scale",))
    off, scaled = decision.trials
    assert decision.way == "scale"
    assert decision.outlier_ratio >= 30
    assert scaled.kld_mean < 0.6 * off.kld_mean
    assert scaled.sameness is not None
    assert scaled.sameness.holds
    assert output.exists()
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def test_injecting_outliers_changes_no_logit(tmp_path):
    model = family(tmp_path / "model.gguf", "qwen3moe")
    inject_outliers(model, tmp_path / "broken.gguf", channels=2)
    found = job("reshaping.checking:check_job", {
        "model": str(tmp_path / "broken.gguf"), "original": str(model), "text": str(text_file()),
        "scratch": str(tmp_path),
    })  # fmt: skip
    assert found["worst"] < 1e-6


def test_a_text_of_one_word_cannot_be_divided(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("word")
    with pytest.raises(RecipeError, match="too short"):
        divide_text(short, tmp_path)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from bundler.builtin.llamacpp.allocation.matrices import Weights
    from bundler.builtin.llamacpp.reshaping import rewriting

    model = family(tmp_path / "model.gguf", "llama")
    usage = type(shutil.disk_usage(tmp_path))(1 << 30, 1 << 30, 1000)
    monkeypatch.setattr(rewriting.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match=r"1\.00 kB"):
        rewriting.rewrite(Weights(model), rewriting.UNCHANGED, tmp_path / "x.gguf", lambda *_: None)
    assert not (tmp_path / "x.gguf").exists()
