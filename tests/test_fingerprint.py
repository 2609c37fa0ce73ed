"""The fingerprint of a reference: a bound is a bound, and another model is told from the one that was."""

import asyncio
import hashlib
import json
import math
import os
from array import array
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.fingerprinting import FingerprintMaker, top_bounds
from bundler.builtin.llamacpp.leaks import leak_notes, shared_runs
from bundler.builtin.llamacpp.recheck import recheck_job
from bundler.errors import DamagedError, ProofFailed, RecipeError
from bundler.station import rechecking
from bundler.station.likelihoods import (
    FingerprintUnusable,
    Likelihoods,
    decoded,
    encoded,
    least_divergence,
    read_likelihoods,
    sample_positions,
)
from tests.models import Shape, example_gguf, folder, job, quantized, text_file, tiny_gguf

NAUGHT = "0" * 64


def distribution(numbers):
    weights = np.exp(np.array(numbers, np.float64))
    return np.log(weights / weights.sum())


rows = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*(st.lists(st.floats(-12, 12), min_size=n, max_size=n) for _ in "pq"))
)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_the_bound_is_below_the_divergence_and_grows_with_what_is_known(pair):
    p, q = map(distribution, pair)
    whole = float((np.exp(p) * (p - q)).sum())
    order = np.argsort(-p, kind="stable")
    found = [
        float(top_bounds(order[None, :k], p[None, order[:k]], q[None, :])[0])
        for k in range(1, len(p) + 1)
    ]
    assert all(value <= whole + 1e-6 for value in found)
    assert all(a <= b + 1e-6 for a, b in pairwise(found))
    assert found[-1] == pytest.approx(max(whole, 0), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(rows, st.data())
def test_what_a_server_leaves_unsaid_only_lowers_the_bound(pair, data):
    p, q = map(distribution, pair)
    whole = float((np.exp(p) * (p - q)).sum())
    named = data.draw(st.sets(st.integers(0, len(p) - 1)))
    fewer = data.draw(st.sets(st.sampled_from(sorted(named)))) if named else set()
    reference = dict(enumerate(map(float, p)))
    bound = least_divergence(reference, {t: float(q[t]) for t in named})
    less = least_divergence(reference, {t: float(q[t]) for t in fewer})
    assert -1e-12 <= less <= bound + 2e-5
    assert bound <= whole + 2e-5


# -- the file ----------------------------------------------------------------------------------------


def made(windows=2, window_tokens=6, vocabulary=9, top=3):
    rng = np.random.default_rng(1)
    first = window_tokens // 2
    rows_ = windows * (window_tokens - 1 - first)
    base = np.stack([distribution(rng.normal(size=vocabulary)) for _ in range(rows_)])
    ids = np.argsort(-base)[:, :top]
    logs = np.take_along_axis(base, ids, -1)
    return Likelihoods(
        vocabulary, windows, window_tokens, first, top, NAUGHT, NAUGHT,
        array("I", [int(n) for n in rng.integers(0, vocabulary, windows * window_tokens)]),
        array("I", [int(n) for n in ids.ravel()]), array("f", [float(n) for n in logs.ravel()]),
    )  # fmt: skip


def test_a_fingerprint_is_read_as_it_was_written():
    one = made()
    assert decoded(encoded(one)) == one
    assert one.before(0) == list(one.tokens[:4])
    assert one.before(2) == list(one.tokens[6:10])
    assert len(one.likely(3)) == 3


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_fingerprint_is_refused_or_reads_within_bounds(data):
    raw = bytearray(encoded(made()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        found = decoded(bytes(raw))
        for position in range(found.positions):
            assert max(found.before(position)) < found.vocabulary
            assert math.fsum(map(math.exp, found.likely(position).values())) < 1.01
    except FingerprintUnusable:
        return  # refused, as it should be


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: raw[:-1], "not as many as it says"),
        (lambda raw: raw + b"\0", "not as many as it says"),
        (lambda raw: b"x" + raw[1:], "no fingerprint"),
        (lambda raw: raw[:8] + b"\xff" * 20 + raw[28:], "counts cannot be right"),
        (lambda raw: raw[:92] + b"\xff" * 4 + raw[96:], "vocabulary does not have"),
    ],
)
def test_what_is_no_fingerprint_is_said_to_be_none(change, why):
    with pytest.raises(FingerprintUnusable, match=why):
        decoded(change(encoded(made())))


def test_two_windows_are_sampled_and_never_more():
    assert len(sample_positions(8 * 255, 255)) == 32
    assert {n // 255 for n in sample_positions(8 * 255, 255)} == {0, 4}
    assert list(sample_positions(3, 3)) == [0, 1, 2]


def test_its_size_is_bounded_whatever_the_vocabulary(tmp_path):
    maker = FingerprintMaker(most_bytes=6000)
    rng = np.random.default_rng(2)
    base = np.stack([distribution(rng.normal(size=500)) for _ in range(31)])
    maker(base, base)
    windows = [list(range(64))]
    facts = maker.finish(tmp_path / "f", windows, 500, reference_sha256=NAUGHT, text_sha256=NAUGHT)[
        "fingerprint"
    ]
    assert facts["size_bytes"] < 6000 + 500
    assert facts["top"] == 24
    assert facts["bound_mean"] < 1e-6
    assert read_likelihoods(tmp_path / "f").positions == facts["positions"]


# -- a real model --------------------------------------------------------------------------------------


def evaluated(name, quant):
    path = folder() / f"{name}-{os.getpid()}.likelihoods"
    return path, job("evaluate:evaluate_job", {
        "model": str(quantized(example_gguf(), quant)), "reference": str(example_gguf()),
        "text": str(text_file()), "window_tokens": 128, "tokens": 256, "kv_cache": "f16",
        "gpu": False, "scratch": str(folder()), "further": True, "fingerprint": str(path),
    })  # fmt: skip


@pytest.fixture(scope="module")
def proved():
    return evaluated("q4", "Q4_K_M")


def again(proved, model, **more):
    path, found = proved
    return job("recheck:recheck_job", {
        "model": str(model), "fingerprint": str(path), "title": "models.chat", "kv_cache": "f16",
        "adapters": [], "sample_positions": found["fingerprint"]["sample_positions"],
    } | more)  # fmt: skip


def spread(proved, found):
    then = proved[1]["fingerprint"]["sample_bounds"]
    return rechecking.judged_bounds(then, found["sample_bounds"])


def test_the_shipped_bound_is_below_the_measured_divergence(proved):
    found = proved[1]
    assert 0 < found["fingerprint"]["bound_mean"] <= found["kld_mean"]
    assert found["fingerprint"]["bound_mean"] > 0.5 * found["kld_mean"]
    assert hashlib.sha256(proved[0].read_bytes()).hexdigest() == found["fingerprint"]["sha256"]
    assert found["kld_p99"] <= found["kld_p999"] <= found["kld_max"]
    assert 0.5 < found["top5_agreement"] < 1


def test_the_same_model_passes_and_another_quantization_does_not(proved):
    same = again(proved, quantized(example_gguf(), "Q4_K_M"))
    assert spread(proved, same)[0], spread(proved, same)[1]
    assert same["bound_mean"] == pytest.approx(proved[1]["fingerprint"]["bound_mean"], rel=1e-3)
    for other in ("Q6_K", "Q3_K_M"):
        passed, words = spread(proved, again(proved, quantized(example_gguf(), other)))
        assert not passed, f"{other}: {words}"


def test_the_same_proof_twice_is_the_same_proof(proved):
    path, found = evaluated("again", "Q4_K_M")
    assert found == proved[1]
    assert path.read_bytes() == proved[0].read_bytes()


def test_a_second_candidate_does_not_run_the_reference_again(proved):
    kept = sorted(folder().glob("reference-*.scores"))
    times = {path: path.stat().st_mtime_ns for path in kept}
    said = []
    evaluate = {
        "model": str(quantized(example_gguf(), "Q8_0")), "reference": str(example_gguf()),
        "text": str(text_file()), "window_tokens": 128, "tokens": 256, "kv_cache": "f16",
        "gpu": False, "scratch": str(folder()),
    }  # fmt: skip
    job("evaluate:evaluate_job", evaluate, progress=lambda done, total, unit: said.append(total))
    assert set(said) == {256}  # not 512: the reference's half is not there
    assert {p: p.stat().st_mtime_ns for p in folder().glob("reference-*.scores")} == times


def test_another_models_fingerprint_is_refused_by_its_vocabulary(proved):
    with pytest.raises(ProofFailed, match="another model's"):
        again(proved, tiny_gguf(Shape(vocabulary=320)))


def test_a_fingerprint_that_is_damaged_or_lacks_positions_is_said_to_be(proved, tmp_path):
    (tmp_path / "f").write_bytes(proved[0].read_bytes()[:-4])
    with pytest.raises(DamagedError, match="the fingerprint has"):
        again(proved, example_gguf(), fingerprint=str(tmp_path / "f"))
    with pytest.raises(DamagedError, match="lacks positions"):
        again(proved, example_gguf(), sample_positions=[10**9])


def test_a_job_is_where_the_engine_looks_for_it():
    assert run_child.__module__ == "bundler.builtin.llamacpp.child"
    assert recheck_job.__module__ == "bundler.builtin.llamacpp.recheck"


# -- a server that is not as it was -----------------------------------------------------------------------


@contextmanager
def answering(monkeypatch, answer):
    async def ask_json(endpoint, method, path, body=None, seconds=0):
        return 200, answer(path, body)

    monkeypatch.setattr(rechecking, "ask_json", ask_json)
    yield


def record(root):
    one = made(windows=4, window_tokens=40, vocabulary=300, top=32)
    data = encoded(one)
    (root / "proofs").mkdir()
    (root / "proofs/chat.likelihoods").write_bytes(data)
    places = list(sample_positions(one.positions, one.rows))
    bounds = [
        least_divergence(one.likely(n), served(one.before(n), "then")) for n in places
    ]  # fmt: skip
    return {
        "file": "proofs/chat.likelihoods", "sha256": hashlib.sha256(data).hexdigest(),
        "sample_positions": places, "sample_bounds": bounds,
    }  # fmt: skip


def served(tokens, which):
    """Return what an invented model finds likely: always the same after the same."""
    seed = int.from_bytes(hashlib.sha256(json.dumps([tokens, which]).encode()).digest()[:4], "big")
    row = distribution(np.random.default_rng(seed).normal(size=300))
    return {int(n): float(row[n]) for n in np.argsort(-row)[:64]}


def says(which, template="{{ messages }}"):
    def answer(path, body):
        if path == "/props":
            return {"chat_template": template}
        likely = served(body["prompt"], which)
        top = [{"id": n, "logprob": value} for n, value in likely.items()]
        return {"completion_probabilities": [{"top_logprobs": top}]}

    return answer


TEMPLATE = hashlib.sha256(b"{{ messages }}").hexdigest()


@pytest.mark.parametrize(
    ("answer", "passed", "words"),
    [
        (says("then"), True, "at 32 places"),
        (says("another runtime"), False, "apart on average"),
        (says("then", "{{ message }}"), False, "chat template"),
    ],
    ids=["as it was", "another runtime", "another template"],
)
def test_a_server_is_held_against_what_was_recorded(monkeypatch, tmp_path, answer, passed, words):
    known = record(tmp_path)
    with answering(monkeypatch, answer):
        found = asyncio.run(rechecking.recheck(tmp_path, None, known, TEMPLATE))
    assert found[0] is passed, found[1]
    assert words in found[1]


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": NAUGHT}, {"file": "../secret"}, {"file": "manifest.json"}, {"file": ""},
        {"sample_positions": [10**9], "sample_bounds": [0.1]}, {"sample_bounds": ["x"]},
        {"sample_positions": None}, {"sample_bounds": [float("nan")], "sample_positions": [0]},
        {"sample_positions": [], "sample_bounds": []},
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_is_no_evidence(monkeypatch, tmp_path, change):
    known = record(tmp_path) | change
    with answering(monkeypatch, says("then")):
        passed, words = asyncio.run(rechecking.recheck(tmp_path, None, known))
    assert not passed
    assert "fingerprint" in words


def test_probabilities_that_are_none_do_not_pass(monkeypatch, tmp_path):
    known = record(tmp_path)
    top = [{"id": 1, "logprob": float("nan")}]
    answer = {"completion_probabilities": [{"top_logprobs": top}]}
    with (
        answering(monkeypatch, lambda *_: answer),
        pytest.raises(rechecking.ModelUnavailable, match="are none"),
    ):
        asyncio.run(rechecking.recheck(tmp_path, None, known))
    assert not rechecking.judged_bounds([0.1], [float("nan")])[0]


# -- leaked text ----------------------------------------------------------------------------------------


def test_calibration_text_in_the_held_out_text_is_found_by_its_runs_of_words(tmp_path):
    words = [f"word{n}" for n in range(400)]
    (tmp_path / "a").write_text(" ".join(words))
    (tmp_path / "b").write_text(" ".join(reversed(words)))
    (tmp_path / "c").write_text(" ".join([*reversed(words), *words[:60]]))
    assert shared_runs(tmp_path / "a", tmp_path / "b") == 0
    texts = {"calibration.txt": tmp_path / "a"}
    assert leak_notes(texts | {"heldout.txt": tmp_path / "b"}) == []
    (note,) = leak_notes(texts | {"heldout.txt": tmp_path / "c"})
    assert note.startswith("leaked calibration text: 10.7 %")
    with pytest.raises(RecipeError, match=r"leaked calibration text: 100\.0 %"):
        leak_notes(texts | {"heldout.txt": tmp_path / "a"})


def test_our_own_texts_do_not_overlap():
    from importlib.resources import files

    texts = files("bundler") / "texts"
    assert shared_runs(texts / "calibration.txt", texts / "heldout.txt") < 0.005
