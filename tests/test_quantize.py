"""What comes out of llama.cpp's quantizer is what was asked for, or it says why not."""

import dataclasses
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.builtin.llamacpp.quantize_plan import check_space
from bundler.builtin.llamacpp.quantizer import LogProgress, Request
from bundler.builtin.llamacpp.schemes import SCHEMES, scheme_named
from bundler.errors import DoesNotFit, RecipeError, StepFailed, UnsafeInput
from bundler.hookspecs import Task
from bundler.store import Store
from bundler.weights.gguf import read_gguf_file
from bundler.world import World
from tests.models import (
    Shape,
    imatrix_of,
    job,
    llama_fields,
    llama_weights,
    quantized,
    tiny_gguf,
    write_gguf,
)

NARROW = Shape(hidden=128, feed_forward=320, heads=4, kv_heads=2, layers=1)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def quantize(model, output, quant, **more):
    given = {"model": str(model), "output": str(output), "quant": quant, **more}
    return job("quantize:quantize_job", given)


def types(path):
    return {tensor.name: tensor.type for tensor in read_gguf_file(path).tensors}


def test_every_scheme_makes_a_file_of_its_types(tmp_path):
    model = tiny_gguf(Shape(layers=1, feed_forward=256, vocabulary=288))
    common = {"model": str(model), "imatrix": str(imatrix_of(model))}
    facts = run_child(
        "tests.child_jobs:quantize_all",
        {"quants": list(SCHEMES), "folder": str(tmp_path), "common": common},
        environment=ENVIRONMENT,
    )
    for name, scheme in SCHEMES.items():
        found = types(tmp_path / f"{name}.gguf")
        assert facts[name]["types"] == dict(Counter(found.values()))
        assert facts[name]["fallbacks"] == []
        assert facts[name]["size_bytes"] == (tmp_path / f"{name}.gguf").stat().st_size
        if name not in ("IQ2_S", "MXFP4_MOE"):  # IQ2_S builds on IQ2_XS; this is no mixture
            assert scheme.base_type in found.values(), name
    sizes = [facts[name]["bits_per_weight"] for name in ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K", "IQ1_S")]
    assert sizes == sorted(sizes, reverse=True)


def test_two_runs_and_any_number_of_threads_give_the_same_bytes(tmp_path):
    made = set()
    for number, threads in enumerate((1, 1, 2, 3)):
        output = tmp_path / f"{number}.gguf"
        quantize(tiny_gguf(), output, "Q4_K_M", threads=threads)
        made.add(output.read_bytes())
    assert len(made) == 1


def test_a_replaced_type_is_an_error_that_names_the_tensors(tmp_path):
    with pytest.raises(StepFailed, match=r"blk\.0\.attn_k\.weight: Q4_K -> Q5_0") as caught:
        quantize(tiny_gguf(NARROW), tmp_path / "q.gguf", "Q4_K_M")
    assert "allow_fallback" in caught.value.problems[0].hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_an_allowed_replacement_is_recorded_for_every_tensor(tmp_path, tied):
    model = tiny_gguf(Shape(**{**vars_of(NARROW), "tied": tied}))
    facts = quantize(model, tmp_path / "q.gguf", "Q4_K_M", allow_fallback=True)
    found = types(tmp_path / "q.gguf")
    matrices = {name for name, kind in types(model).items() if kind == "F16"}
    assert {f["tensor"] for f in facts["fallbacks"]} == matrices
    assert all(found[f["tensor"]] == f["got"] != f["wanted"] for f in facts["fallbacks"])
    # The output tensor is the one of which llama.cpp's log says nothing.
    output = "token_embd.weight" if tied else "output.weight"
    assert {"tensor": output, "wanted": "Q6_K", "got": "Q8_0"} in facts["fallbacks"]


def vars_of(shape):
    return {name: getattr(shape, name) for name in shape.__dataclass_fields__}


def test_rows_of_odd_length_become_f16_and_are_recorded(tmp_path):
    odd = Shape(hidden=96, feed_forward=80, heads=4, kv_heads=2, layers=1)
    facts = quantize(tiny_gguf(odd), tmp_path / "q.gguf", "Q4_0", allow_fallback=True)
    assert facts["fallbacks"] == [
        {"tensor": "blk.0.ffn_down.weight", "wanted": "Q4_0", "got": "F16"},
        {"tensor": "output.weight", "wanted": "Q6_K", "got": "Q8_0"},
    ]


def test_overrides_beat_the_scheme_for_just_their_tensors(tmp_path):
    overrides = [["blk.0.ffn_down.weight", "Q8_0"], ["blk.1.attn_q.weight", "Q3_K"]]
    facts = quantize(tiny_gguf(), tmp_path / "q.gguf", "Q4_K_M", overrides=overrides)
    plain, mixed = types(quantized(tiny_gguf(), "Q4_K_M")), types(tmp_path / "q.gguf")
    assert {n: k for n, k in mixed.items() if plain[n] != k} == dict(overrides)
    assert facts["overridden"] == 2


@pytest.mark.parametrize(
    ("overrides", "quant", "reason"),
    [
        ([["blk.9.ffn_down.weight", "Q8_0"]], "Q4_K_M", "not there"),
        ([["output.weight", "Q9_K"]], "Q4_K_M", "Q9_K"),
        ([["output.weight", "Q8_0"]], "F16", "no effect"),
        ([["blk.0.attn_norm.weight", "Q8_0"]], "Q4_K_M", "never changes the type"),
    ],
)
def test_overrides_that_cannot_be_are_refused(tmp_path, overrides, quant, reason):
    with pytest.raises(RecipeError, match=reason):
        quantize(tiny_gguf(), tmp_path / "q.gguf", quant, overrides=overrides)


def test_an_unknown_scheme_lists_what_there_is(tmp_path):
    with pytest.raises(RecipeError, match="Q4_K_XL") as caught:
        quantize(tiny_gguf(), tmp_path / "q.gguf", "Q4_K_XL")
    assert "Q4_K_M" in caught.value.problems[0].hint


def test_a_missing_importance_matrix_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match="IQ2_XXS needs an importance matrix for 12 tensors"):
        quantize(tiny_gguf(), tmp_path / "q.gguf", "IQ2_XXS")
    assert not list(tmp_path.iterdir())


def test_another_models_importance_matrix_is_refused(tmp_path):
    other = imatrix_of(tiny_gguf(NARROW))
    with pytest.raises(RecipeError, match="of another model"):
        quantize(tiny_gguf(), tmp_path / "q.gguf", "Q4_K_M", imatrix=str(other))


def test_the_importance_matrix_changes_the_bytes(tmp_path):
    quantize(tiny_gguf(), tmp_path / "q.gguf", "Q4_K_M", imatrix=str(imatrix_of(tiny_gguf())))
    assert (tmp_path / "q.gguf").read_bytes() != quantized(tiny_gguf(), "Q4_K_M").read_bytes()


def test_a_quantized_model_is_not_quantized_again_unless_asked(tmp_path):
    source = quantized(tiny_gguf(), "Q8_0")
    with pytest.raises(UnsafeInput, match=r"quantized already \(16 x Q8_0\)"):
        quantize(source, tmp_path / "q.gguf", "Q4_K_M")
    facts = quantize(source, tmp_path / "q.gguf", "Q4_K_M", allow_requantize=True)
    assert facts["types"]["Q4_K"] == 13


def test_progress_goes_by_size_to_the_whole_and_never_back(tmp_path):
    seen = []
    given = {"model": str(tiny_gguf()), "output": str(tmp_path / "q.gguf"), "quant": "Q2_K"}
    job("quantize:quantize_job", given, progress=lambda *told: seen.append(told))
    done = [told[0] for told in seen]
    size = sum(tensor.size_bytes for tensor in read_gguf_file(tiny_gguf()).tensors)
    assert done == sorted(done)
    assert seen[-1] == (size, size, "bytes")


def test_progress_counts_a_tensor_when_the_next_begins():
    seen = []
    progress = LogProgress({"a": 3.0, "b": 5.0}, lambda done, total, unit: seen.append(done))
    for piece in ("[   1/   2] a    - [", "256, 1, 1, 1], type = f16, ", "size = 1 MiB\n[   2/",
                  "   2] b - [ 1], x"):  # fmt: skip
        progress.hear(piece)
    assert seen == [0.0, 3.0]


# -- stopping and lack of room ---------------------------------------------------------------------


def task(tmp_path, model, **parameters):
    output = tmp_path / "output"
    output.mkdir()
    world = World(store=Store(tmp_path / "store"), environment=os.environ)
    return Task("quantize", {"model.gguf": model}, parameters, output, lambda *_: None, world)


def test_stopping_half_way_leaves_nothing(tmp_path):
    big = tiny_gguf(Shape(layers=6, hidden=512, feed_forward=1024, vocabulary=2048))
    todo = task(tmp_path, big, quant="Q2_K")

    def stop(done, total, unit):
        if done > 0:
            assert list(todo.output.glob("*.partial"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LlamaCppEngine().run(
            Task(todo.action, todo.inputs, todo.parameters, todo.output, stop, todo.world)
        )
    assert not list(todo.output.iterdir())


def test_too_little_room_is_said_with_both_figures(tmp_path, monkeypatch):
    header = read_gguf_file(tiny_gguf())
    request = Request(
        tiny_gguf(), tmp_path / "q.gguf", scheme_named("Q8_0"), None, (), False, False, 1
    )
    planned = {tensor.name: tensor.type for tensor in header.tensors}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DoesNotFit, match=r"makes 2\.90 MB, but only 1\.00 kB"):
        check_space(header, request, planned)


# -- damaged and hostile files ---------------------------------------------------------------------


def test_a_file_that_ends_early_is_refused(tmp_path):
    whole = tiny_gguf().read_bytes()
    for length in (0, 3, 49, 4096, len(whole) - 100):
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(UnsafeInput):
            quantize(path, tmp_path / "q.gguf", "Q4_K_M")


@pytest.mark.parametrize(
    ("key", "value", "error", "reason"),
    [
        ("general.architecture", "no-such-model", UnsafeInput, "unknown model architecture"),
        ("llama.block_count", 4_000_000_000, (StepFailed, UnsafeInput), "LAYERS|SIG|layer"),
        ("llama.feed_forward_length", 1024, UnsafeInput, "wrong shape"),
    ],
)
def test_a_header_that_only_llama_cpp_refuses_is_an_error_with_its_words(
    tmp_path, key, value, error, reason
):
    shape = Shape(layers=1)
    fields = llama_fields(shape)
    fields[key] = dataclasses.replace(fields[key], value=value)
    write_gguf(tmp_path / "bad.gguf", fields, llama_weights(shape), "F16")
    measure = {
        "model": str(tmp_path / "bad.gguf"), "role": "chat", "context_tokens": 64, "parallel": 1,
        "kv_cache": "f16", "gpu": False, "prompt": "x",
    }  # fmt: skip
    with pytest.raises(error, match=reason):
        job("measure:measure_job", measure)


@settings(max_examples=6, deadline=None)
@given(place=st.integers(0, 14_000), value=st.integers(0, 2**32 - 1))
def test_a_changed_header_never_takes_the_parent_down(place, value):
    raw = bytearray(tiny_gguf().read_bytes())
    raw[place : place + 4] = struct.pack("<I", value)
    path = tiny_gguf().with_name("changed.gguf")
    path.write_bytes(raw)
    try:
        quantize(path, path.with_name("changed-q.gguf"), "Q4_0")
    except StepFailed as error:
        said = str(error)
    except (UnsafeInput, RecipeError, DoesNotFit):
        return
    else:
        return
    assert "llama.cpp" in said or "SIG" in said


def test_names_that_would_break_a_pattern_are_refused(tmp_path):
    shape = Shape(layers=1)
    weights = llama_weights(shape)
    weights["blk.0.ffn up.weight"] = weights.pop("blk.0.ffn_up.weight")
    write_gguf(tmp_path / "odd.gguf", llama_fields(shape), weights, "F16")
    with pytest.raises(UnsafeInput, match="name"):
        quantize(tmp_path / "odd.gguf", tmp_path / "q.gguf", "Q4_0")
