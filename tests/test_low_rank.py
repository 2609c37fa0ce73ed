"""The best thin correction is the best, costs the bytes it says, and is an adapter llama.cpp applies."""

import functools
import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.adapter_facts import adapter_facts
from bundler.builtin.llamacpp.gguf_facts import gguf_facts
from bundler.builtin.llamacpp.reshaping.lora_file import q8_0, write_lora
from bundler.builtin.llamacpp.reshaping.low_rank import (
    METHODS,
    Correction,
    correction,
    pair_bytes,
    remaining,
    spend,
)
from bundler.builtin.llamacpp.reshaping.trying import Jobs
from bundler.errors import DoesNotFit, UnsafeInput
from bundler.lock import LockedFile
from bundler.weights.gguf import read_gguf_file
from tests.adapters import resolution_of
from tests.models import Shape, example_gguf, folder, job, quantized, tiny_gguf

CALIBRATION = Path(__file__).parents[1] / "bundler" / "texts" / "calibration.txt"
HELD_OUT = CALIBRATION.with_name("heldout.txt")


def case(seed, rows=24, columns=40):
    """Return a weight, its rounded form and the second moments of inputs that hang together."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    mixing = rng.standard_normal((columns, columns)) * 3.0 ** rng.standard_normal(columns)[:, None]
    inputs = rng.standard_normal((400, columns)) @ mixing
    return weight, np.round(weight * 2) / np.float32(2), inputs.T @ inputs / len(inputs)


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 24))
@settings(deadline=None, max_examples=40)
def test_the_covariance_is_never_worse_than_the_controls(seed, rank):
    weight, rounded, moments = case(seed)
    left = {
        method: remaining(
            weight, rounded, moments, correction(weight, rounded, moments, method, rank)
        )
        for method in METHODS
    }
    # The damping of the covariance, and float32, are worth a thousandth.
    assert left["covariance"] <= min(left["diagonal"], left["plain"]) * 1.001 + 1e-6


def test_what_a_correction_gives_back_is_what_it_says():
    weight, rounded, moments = case(3)
    found = correction(weight, rounded, moments, "covariance", 12)
    left = remaining(weight, rounded, moments, found)
    assert left == pytest.approx(found.error - found.gains.sum(), rel=0.01)
    assert remaining(weight, rounded, moments, found.truncated(4)) > left


def test_a_whole_correction_leaves_nothing():
    weight, rounded, moments = case(4)
    found = correction(weight, rounded, moments, "covariance", 24)
    assert found.up @ found.down == pytest.approx(weight - rounded, abs=1e-3)


def test_a_large_matrix_is_searched_and_finds_the_same():
    from bundler.builtin.llamacpp.reshaping import low_rank

    weight, rounded, moments = case(5, rows=60, columns=80)
    exact = correction(weight, rounded, moments, "covariance", 6)
    before, low_rank._EXACT_SIDE = low_rank._EXACT_SIDE, 8
    try:
        searched = correction(weight, rounded, moments, "covariance", 6)
    finally:
        low_rank._EXACT_SIDE = before
    assert searched.gains.sum() == pytest.approx(exact.gains.sum(), rel=0.02)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_eight_bits_are_those_of_ggml(seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((3, 64)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    values[0, :32] = 0
    kind = gguf.GGMLQuantizationType.Q8_0
    assert q8_0(values) == gguf.quants.quantize(values, kind).tobytes()


def made_up(rows, columns, rank, seed=0):
    rng = np.random.default_rng(seed)
    gains = np.sort(rng.random(rank))[::-1] / rank
    down = rng.standard_normal((rank, columns)).astype(np.float32)
    return Correction(down, rng.standard_normal((rows, rank)).astype(np.float32), gains, 1.0)


@given(
    budget=st.integers(0, 60_000), kind=st.sampled_from(["Q8_0", "F16"]), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=60)
def test_ranks_never_cost_more_than_the_budget(budget, kind, seed):
    sizes = ((64, 96), (32, 64), (50, 70))
    found = {f"m{n}": made_up(*size, 40, seed + n) for n, size in enumerate(sizes)}
    ranks = spend(found, budget, kind)
    cost = sum(
        pair_bytes(found[n].up.shape[0], found[n].down.shape[1], r, kind) for n, r in ranks.items()
    )
    assert cost <= budget
    assert all(0 < rank <= 40 for rank in ranks.values())


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_pair_takes_the_bytes_that_were_reckoned(kind, tmp_path):
    found = {"blk.0.attn_q.weight": made_up(64, 96, 32), "blk.0.attn_k.weight": made_up(50, 70, 8)}
    path = tmp_path / "a.gguf"
    write_lora(path, found, "llama", kind)
    header = read_gguf_file(path)
    data = path.stat().st_size - header.data_offset
    assert data == pair_bytes(64, 96, 32, kind) + pair_bytes(50, 70, 8, kind)


# -- against llama.cpp -----------------------------------------------------------------------------


def corrected(base, model, output, **changes):
    arguments = {
        "model": str(model), "reference": str(base), "text": str(CALIBRATION), "window_tokens": 256,
        "tokens": 2048, "output": str(output), "budget_bytes": 400_000, "method": "covariance",
        "type": "Q8_0",
    }  # fmt: skip
    jobs = Jobs(CALIBRATION, folder(), os.environ)
    return jobs.run("reshaping.correcting:correct_job", arguments | changes)


def divergence(base, model, adapter=None):
    return job("reshaping.correcting:compare_job", {
        "model": str(model), "reference": str(base), "text": str(HELD_OUT), "window_tokens": 256,
        "tokens": 2048, "adapters": [[str(adapter), 1.0]] if adapter else [],
    })["kld_mean"]  # fmt: skip


@functools.cache
def adapter():
    base, output = example_gguf(), folder() / "correction.gguf"
    return output, corrected(base, quantized(base, "Q3_K_S"), output)


def test_a_correction_brings_a_model_nearer_to_what_it_was():
    base, (path, facts) = example_gguf(), adapter()
    model = quantized(base, "Q3_K_S")
    assert path.stat().st_size == facts["size_bytes"] <= 400_000 + 16_384  # its header
    assert divergence(base, model, path) < 0.85 * divergence(base, model)


def test_a_correction_is_an_adapter_by_our_own_rules():
    base, (path, facts) = example_gguf(), adapter()

    def read(file, start, length):
        with Path(path if file.path == path.name else base).open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    file = LockedFile(path=base.name, size_bytes=base.stat().st_size, sha256="0" * 64)
    model = gguf_facts({base.name: file}, read)
    found = adapter_facts(resolution_of(path), read, model)
    assert len(found.tensors) == 2 * len(facts["ranks"])
    assert "token_embd.weight" in facts["not_corrected"]
    json.dumps(facts)


def test_a_budget_that_pays_for_nothing_says_what_the_smallest_takes(tmp_path):
    base = example_gguf()
    with pytest.raises(DoesNotFit, match="the smallest takes"):
        corrected(
            base, quantized(base, "Q3_K_S"), tmp_path / "a.gguf", budget_bytes=100, tokens=256
        )
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_made_from_another_model_is_refused(tmp_path):
    with pytest.raises(UnsafeInput, match="was not made from this model"):
        corrected(example_gguf(), quantized(tiny_gguf(Shape()), "Q8_0"), tmp_path / "a.gguf")
