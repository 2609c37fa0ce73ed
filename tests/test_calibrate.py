"""The importance matrix equals sums that plain numpy computes from the same weights and tokens."""

import os
from pathlib import Path

import numpy as np
import pytest

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.errors import RecipeError, UnsafeInput
from bundler.weights.gguf import read_gguf_file
from bundler.weights.gguf_writer import TensorPlan, encode_header, field
from tests import llama_numpy
from tests.models import Shape, job, llama_weights, text_file, tiny_gguf

WINDOW, CHUNKS = 64, 2
DENSE = Shape(hidden=64, feed_forward=96, vocabulary=320, heads=4, kv_heads=2, layers=2)
MOE = Shape(
    hidden=64, feed_forward=32, vocabulary=320, heads=4, kv_heads=2, experts=4, experts_used=2
)


def calibrate(model, output, texts=None, **more):
    texts = texts or {"text.txt": str(text_file())}
    given = {"context_tokens": WINDOW, "chunks": CHUNKS, **more}
    return job(
        "calibrate:calibrate_job",
        {"model": str(model), "texts": texts, "output": str(output), **given},
    )


def windows(model):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = {
        "model": str(model), "text": str(text_file()), "window_tokens": WINDOW, "most": CHUNKS,
    }  # fmt: skip
    return run_child("tests.child_jobs:tokens", arguments, environment=environment)


def raw(path):
    header = read_gguf_file(path)
    data = path.read_bytes()[header.data_offset :]
    return {
        t.name: np.frombuffer(data, "<f4", t.size_bytes // 4, t.offset).reshape(t.shape)
        for t in header.tensors
    }


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "mixture of experts"])
def test_every_sum_equals_numpys(shape, tmp_path):
    model = tiny_gguf(shape, type_="F32")
    facts = calibrate(model, tmp_path / "imatrix.gguf")
    expected = {}
    for window in windows(model):
        _, seen = llama_numpy.forward(llama_weights(shape), shape, window)
        for name, (squares, count) in seen.items():
            old = expected.get(name, (0, 0))
            expected[name] = (old[0] + squares, old[1] + count)
    found = raw(tmp_path / "imatrix.gguf")
    assert facts["tensors"] == len(expected) == len(found) // 2
    for name, (squares, count) in expected.items():
        assert found[f"{name}.counts"].ravel() == pytest.approx(np.atleast_1d(count))
        # The KV cache is F16 and a mixture's shares pass through it: a few parts in a thousand.
        ours, theirs = found[f"{name}.in_sum2"].ravel(), squares.ravel()
        assert np.abs(ours - theirs).max() <= 5e-3 * theirs.max(), name


def test_the_same_text_gives_the_same_bytes(tmp_path):
    model = tiny_gguf(DENSE)
    for name in ("a.gguf", "b.gguf"):
        calibrate(model, tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_file_has_the_fields_that_llama_imatrix_writes(tmp_path):
    calibrate(tiny_gguf(DENSE), tmp_path / "imatrix.gguf")
    metadata = read_gguf_file(tmp_path / "imatrix.gguf").metadata
    assert metadata["general.type"] == "imatrix"
    assert list(metadata["imatrix.datasets"]) == ["text.txt"]
    assert metadata["imatrix.chunk_count"] == CHUNKS
    assert metadata["imatrix.chunk_size"] == WINDOW


def test_an_expert_nobody_chose_is_counted_and_gets_ones(tmp_path):
    shape = Shape(
        hidden=64, feed_forward=32, vocabulary=320, heads=4, kv_heads=2, layers=1,
        experts=32, experts_used=1,
    )  # fmt: skip
    path = tmp_path / "imatrix.gguf"
    facts = calibrate(tiny_gguf(shape), path, chunks=1, context_tokens=16)
    unused = facts["experts_never_used"]["blk.0.ffn_up_exps.weight"]
    assert unused >= 16
    means = read_imatrix(path)["blk.0.ffn_up_exps.weight"].reshape(32, 64)
    assert (means == 1.0).all(axis=1).sum() == unused


def test_a_text_shorter_than_a_window_says_so(tmp_path):
    short = text_file("short.txt", "too short")
    with pytest.raises(RecipeError, match="less than one window of 64") as caught:
        calibrate(tiny_gguf(DENSE), tmp_path / "i.gguf", {"short.txt": str(short)})
    assert caught.value.problems[0].where == "short.txt"
    assert not list(tmp_path.iterdir())


def test_text_that_is_not_utf8_is_refused(tmp_path):
    bad = tmp_path / "latin.txt"
    bad.write_bytes("Wärme ".encode("latin-1") * 1000)
    with pytest.raises(UnsafeInput, match="not UTF-8"):
        calibrate(tiny_gguf(DENSE), tmp_path / "i.gguf", {"latin.txt": str(bad)})


def write_imatrix(path, squares, counts, kind="imatrix"):
    plans = [
        TensorPlan("blk.0.attn_q.weight.in_sum2", "F32", squares.shape),
        TensorPlan("blk.0.attn_q.weight.counts", "F32", counts.shape),
    ]
    with path.open("wb") as stream:
        stream.write(encode_header({"general.type": field("STRING", kind)}, plans))
        for array in (squares, counts):
            data = array.astype("<f4").tobytes()
            stream.write(data + bytes(-len(data) % 32))
    return path


@pytest.mark.parametrize(
    ("squares", "counts", "kind", "reason"),
    [
        (np.full((1, 64), np.nan), np.ones((1, 1)), "imatrix", "not finite"),
        (np.full((1, 64), -1.0), np.ones((1, 1)), "imatrix", "negative"),
        (np.ones((1, 64)), np.ones((2, 1)), "imatrix", "do not fit together"),
        (np.ones((1, 64)), np.ones((1, 1)), "model", "not an importance matrix"),
    ],
)
def test_an_importance_matrix_with_bad_figures_is_refused(tmp_path, squares, counts, kind, reason):
    with pytest.raises(UnsafeInput, match=reason):
        read_imatrix(write_imatrix(tmp_path / "i.gguf", squares, counts, kind))


def test_means_are_sums_divided_by_counts(tmp_path):
    squares = np.arange(128.0).reshape(2, 64)
    path = write_imatrix(tmp_path / "i.gguf", squares, np.array([[4.0], [0.0]]))
    means = read_imatrix(path)["blk.0.attn_q.weight"]
    assert means == pytest.approx(np.concatenate([np.arange(64.0) / 4, np.ones(64)]))
