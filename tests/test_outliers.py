"""What an inspection says of a model is what flows through it, and what its files tell."""

import functools
import json
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from bundler.builtin.llamacpp.outliers.collecting import Sums
from bundler.builtin.llamacpp.outliers.gated import gated_norms
from bundler.builtin.llamacpp.outliers.meaning import meaning
from bundler.drawing.outliers_svg import outliers_svg
from bundler.inspection import GatedNorm, Inspection, Massive, Outliers, Sink, Spread
from bundler.testing.outliers import inject_outliers
from bundler.weights.gguf import read_gguf_file
from tests.demo import bundler
from tests.models import example_gguf, folder, job, text_file
from tests.reshapable import HIDDEN, family
from tests.small_models import write_safetensors


def look(model, tokens=1024):
    text = Path(__file__).parents[1] / "bundler" / "texts" / "calibration.txt"
    return Outliers(**job("outliers.measuring:outliers_job", {
        "model": str(model), "title": model.name, "text": str(text), "text_name": text.name,
        "tokens": tokens,
    }))  # fmt: skip


@functools.cache
def example():
    return look(example_gguf())


@functools.cache
def broken():
    path = folder() / "injected.gguf"
    return inject_outliers(example_gguf(), path), look(path)


def test_sums_are_those_of_plain_numpy():
    rng = np.random.default_rng(1)
    windows = [rng.standard_t(3, (20, 32)).astype(np.float32) for _ in range(3)]
    sums = Sums("norm", np.zeros(32))
    for window in windows:
        sums.add(window)
    every = np.concatenate(windows).astype(np.float64)
    assert sums.squares == pytest.approx((every**2).sum(axis=0))
    assert sums.fourths == pytest.approx((every**4).sum())
    assert sums.largest == pytest.approx(np.abs(every).max())
    beyond = sum((np.abs(w) > 6 * np.sqrt((w.astype(float) ** 2).mean())).sum() for w in windows)
    assert sums.beyond == beyond
    rms = np.sqrt((every**2).mean(axis=1, keepdims=True))
    small = np.abs(every) < 0.05 * rms
    assert sums.near_zero == small.sum()
    assert sums.near_zero_worst == pytest.approx(small.mean(axis=1).max())


def test_every_norm_and_every_matrix_without_one_is_looked_at():
    places = {spread.place for spread in example().spreads}
    expected = {f"blk.{n}.{part}" for n in range(5)
                for part in ("attn_norm", "ffn_norm", "attn_output", "ffn_down")}  # fmt: skip
    assert places == expected | {"output_norm"}
    assert len(example().massive) == len(example().sinks) == 5
    assert all(0 <= sink.first_share <= sink.most_share <= 1 for sink in example().sinks)


def test_the_figures_of_a_norm_are_those_of_the_importance_matrix(tmp_path):
    """Two ways to the same sums: the norm's own output, and the input of what reads it."""
    from bundler.builtin.llamacpp.imatrix import read_imatrix

    text = Path(__file__).parents[1] / "bundler" / "texts" / "calibration.txt"
    output = tmp_path / "i.gguf"
    job("calibrate:calibrate_job", {
        "model": str(example_gguf()), "texts": {"t": str(text)}, "output": str(output),
        "context_tokens": 512, "chunks": 2,
    })  # fmt: skip
    means = read_imatrix(output)
    for spread in example().spreads:
        reader = {"attn_norm": "attn_q", "ffn_norm": "ffn_up"}.get(spread.place.split(".")[-1])
        if reader and spread.place.startswith("blk."):
            rms = np.sqrt(means[f"{spread.place.rsplit('.', 1)[0]}.{reader}.weight"])
            assert spread.channel_ratio == pytest.approx(rms.max() / np.median(rms), rel=1e-3)
            assert spread.worst_channel == rms.argmax()


def test_injected_outliers_are_found_and_named():
    channels, found = broken()
    before = {spread.place: spread for spread in example().spreads}
    for spread in found.spreads:
        if spread.place.endswith(("attn_norm", "ffn_norm")):
            assert spread.channel_ratio >= 30
            assert spread.worst_channel in channels
            assert spread.kurtosis > before[spread.place].kurtosis
            assert spread.beyond_six_sigma > 0
        else:  # what comes behind is the same function
            assert spread.channel_ratio == pytest.approx(
                before[spread.place].channel_ratio, rel=0.02
            )


def test_a_massive_activation_is_seen_with_its_token(tmp_path):
    model = family(tmp_path / "model.gguf", "llama")
    header = read_gguf_file(model)
    table = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    with model.open("r+b") as stream:  # the beginning token's embedding, one channel of it
        stream.seek(header.data_offset + table.offset + 4 * (1 * HIDDEN + 5))
        stream.write(np.float32(5000).tobytes())
    found = job("outliers.measuring:outliers_job", {
        "model": str(model), "title": "m", "text": str(text_file()), "text_name": "t",
        "tokens": 512,
    })  # fmt: skip
    first = Outliers(**found).massive[0]
    assert first.massive
    assert (first.position, first.channel, first.text) == (0, 5, "<BOS>")
    assert first.value == pytest.approx(5000, rel=0.01)


# -- gates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tensors", "kinds"),
    [
        ({"norm_type": "GatedNorm"}, [], ["GatedNorm"]),
        ({"norm_type": "ZeroCenteredGatedNorm"}, ["x.input_layernorm.gate_up_projection.weight"],
         ["ZeroCenteredGatedNorm"]),
        ({"layernorm_gating_weight": 2.0}, [], ["ZeroCenteredGatedNorm"]),
        ({"gated_norm": True}, [], ["GatedNorm"]),
        ({"gated_norm": False, "gated_norm_rank": 0}, [], []),
        ({"norm_type": "RMSNorm"}, ["model.layers.0.mlp.gate_up_proj.weight"], []),
        ({}, ["model.layers.0.input_layernorm.gate_down_projection.weight"], ["GatedNorm"]),
        ({}, ["model.layers.0.input_layernorm.pre_affine.weight"], ["PreAffine"]),
        ({"attn_output_gate": True}, [], ["output gate"]),
        ({}, ["blk.0.ssm_norm.weight", "blk.0.attn_gate.weight", "blk.0.ffn_gate.weight"], []),
    ],
)  # fmt: skip
def test_gates_are_told_from_configuration_and_names(config, tensors, kinds):
    found = gated_norms(config, tensors)
    assert [one.kind for one in found] == kinds
    assert all(one.evidence and one.words for one in found)


def test_a_gated_model_that_cannot_be_converted_says_that_first(tmp_path):
    config = {"architectures": ["GigaForCausalLM"], "model_type": "giga", "hidden_size": 8,
              "norm_type": "ZeroCenteredGatedNorm"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors", {"a.weight": np.ones((8, 8), np.float32)})
    done = bundler("inspect", tmp_path, "--outliers", "--progress", "quiet")
    assert done.returncode == 8
    said = " ".join(done.stderr.split())
    assert said.index("ZeroCenteredGatedNorm") < said.index("config.json")
    assert "cannot run this model" in said


# -- words and drawings ----------------------------------------------------------------------------


def spread(place, ratio, **more):
    return Spread(
        place=place, kind="norm", channels=64, kurtosis=3.0, channel_ratio=ratio, value_ratio=9.0,
        worst_channel=7, beyond_six_sigma=0.0, near_zero=0.04, near_zero_worst=0.1, **more,
    )  # fmt: skip


def outliers(ratio, massive=(), sinks=(), title="m"):
    places = [
        spread(f"blk.{n}.{part}", ratio + n) for n in range(3) for part in ("attn_norm", "ffn_norm")
    ]
    return Outliers(
        title=title, architecture="llama", quantized=False, tokens=64, spreads=tuple(places),
        massive=tuple(massive), sinks=tuple(sinks),
    )  # fmt: skip


def test_words_say_what_there_is_and_what_there_is_not():
    even = " ".join(meaning(outliers(2.0), None, (), ()))
    assert "channels are even" in even
    assert "cannot be added" in even
    most = Massive(
        layer=1, value=-4000.0, ratio=3000.0, channel=3, position=0, token=1, text="<BOS>"
    )
    sink = Sink(layer=2, first_share=0.8, most_share=0.8, position=0, text="<BOS>")
    hard = " ".join(meaning(outliers(40.0, [most], [sink]), None, (), ()))
    assert "channel 7 of blk.2" in hard
    assert "Massive activations behind 1 of 1" in hard
    assert "cutting them off damages the model" in hard
    assert "draws 80% of the attention" in hard
    assert "--mitigate" in hard
    refused = " ".join(meaning(outliers(40.0), None, (), ("a sandwich",)))
    assert "not possible: a sandwich" in refused
    gate = GatedNorm(kind="GatedNorm", evidence="x", words="It has gates.")
    assert "cannot be added" not in " ".join(meaning(outliers(2.0), None, (gate,), ()))


def test_a_drawing_stands_alone_and_escapes_what_it_is_given():
    title = "<script>alert(1)</script>&"
    most = Massive(layer=1, value=4000.0, ratio=3000.0, channel=3, position=0, token=1, text="</x>")
    sink = Sink(layer=2, first_share=0.8, most_share=0.8, position=0, text="<b>")
    found = Inspection(
        before=outliers(40.0, [most], [sink], title), after=outliers(3.0, [most], [sink], title),
        way="rotate", meaning=("<i>words</i>",), text="<t>",
    )  # fmt: skip
    drawing = outliers_svg(found)
    root = ET.fromstring(drawing)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names <= {"svg", "title", "desc", "style", "rect", "text", "line", "path", "circle"}
    assert title in "".join(root.itertext())
    assert "prefers-color-scheme:dark" in drawing
    assert drawing == outliers_svg(found)


def test_one_layer_without_stream_or_sinks_can_be_drawn():
    alone = Outliers(
        title="m", architecture="llama", quantized=True, tokens=1, massive=(), sinks=(),
        spreads=(spread("blk.0.attn_norm", 1.0),),
    )  # fmt: skip
    ET.fromstring(outliers_svg(Inspection(before=alone, text="t")))


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_json_and_draws_before_and_after(tmp_path):
    model, plot = family(tmp_path / "model.gguf", "qwen2"), tmp_path / "o.svg"
    done = bundler(
        "inspect", model, "--outliers", "--json", "--tokens", 512, "--text", text_file(),
        "--mitigate", "rotate", "--plot", plot, "--scratch", tmp_path, "--progress", "quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Inspection.model_validate_json(done.stdout)
    assert found.after is not None
    assert found.sameness is not None
    assert 0 < found.sameness < 1e-4
    worst = found.before.worst()
    same = next(one for one in found.after.spreads if one.place == worst.place)
    assert same.channel_ratio < worst.channel_ratio
    ET.parse(plot)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "o.svg"]


def test_all_that_is_wrong_with_a_question_is_said_at_once(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    done = bundler(
        "inspect", tmp_path / "no.gguf", "--outliers", "--text", empty, "--plot", "x.png"
    )
    assert done.returncode == 2
    for words in ("no such model", "text is empty", "cannot be drawn there"):
        assert words in done.stderr
    assert bundler("inspect", tmp_path).returncode == 2


def test_weights_that_are_no_numbers_are_named(tmp_path):
    model = family(tmp_path / "model.gguf", "llama")
    header = read_gguf_file(model)
    tensor = next(tensor for tensor in header.tensors if tensor.name == "blk.0.ffn_gate.weight")
    with model.open("r+b") as stream:
        stream.seek(header.data_offset + tensor.offset + 4 * 2 * HIDDEN)
        stream.write(struct.pack("<f", float("inf")))
    done = bundler("inspect", model, "--outliers", "--text", text_file(), "--progress", "quiet")
    assert done.returncode == 8
    assert "blk.0.ffn_gate.weight (row 2)" in " ".join(done.stderr.split())
