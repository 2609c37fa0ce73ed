"""A gate passes or fails by its figure alone, and never when there is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import ProofFailed
from bundler.gates import check_gates, gate_problems, measured_figures
from bundler.measured import Device, Quality, Speed
from bundler.proof import Proof
from bundler.recipe import Gates

AT_MOST = ("max_kld_mean", "max_perplexity_ratio", "max_memory")
positive = st.floats(1e-6, 1e6)
share = st.floats(0, 1)


def speed(generation=20.0, generated=32):
    return Speed(
        prompt_tokens_per_second=100.0, generation_tokens_per_second=generation, prompt_tokens=256,
        generated_tokens=generated, repeats=3, load_seconds=1.0,
    )  # fmt: skip


def proof(*, kld=0.01, ratio=1.1, top1=0.9, rate=20.0, memory=1000, cosine=None, **more):
    quality = Quality(
        tokens=2048, context_tokens=512, text_sha256="0" * 64, perplexity=10 * ratio,
        perplexity_standard_error=0.1, reference_perplexity=10.0, kld_mean=kld,
        kld_standard_error=0.001, kld_median=kld, kld_p99=kld, kld_max=kld, top1_agreement=top1,
    )  # fmt: skip
    given = {
        "model_sha256": "0" * 64,
        "device": Device(kind="cpu", name="a CPU", peak_memory_bytes=memory),
        "predicted_memory_bytes": 0,
        "quality": quality,
        "speed": speed(rate),
        "sample_prompt": "",
        "sample_text": "",
        "embedding_cosine_min": cosine,
    }
    return Proof(**{**given, **more})


gates = st.builds(
    Gates,
    max_kld_mean=st.none() | positive,
    min_top1=st.none() | share,
    max_perplexity_ratio=st.none() | positive,
    min_tokens_per_second=st.none() | positive,
    max_memory=st.none() | st.integers(1, 10**12),
    min_embedding_cosine=st.none() | st.floats(-1, 1),
)
proofs = st.builds(
    proof, kld=st.floats(0, 10), ratio=positive, top1=share, rate=positive,
    memory=st.integers(1, 10**12), cosine=st.floats(-1, 1),
)  # fmt: skip


@given(gates, proofs)
def test_each_gate_that_is_set_is_judged_once_by_its_own_figure(wanted, measured):
    results = check_gates(measured, wanted, "chat")
    figures = measured_figures(measured)
    assert [r.gate for r in results] == [
        n for n in Gates.model_fields if getattr(wanted, n) not in (None, {})
    ]
    for result in results:
        assert result.measured == figures[result.gate]
        assert result.limit == getattr(wanted, result.gate)
        if result.gate in AT_MOST:
            assert result.passed == (result.measured <= result.limit)
        else:
            assert result.passed == (result.measured >= result.limit)


@given(proofs)
def test_limits_at_the_measured_figures_pass_and_beyond_them_fail(measured):
    figures = {name: value for name, value in measured_figures(measured).items() if value}
    exact = Gates.model_construct(**figures)
    assert all(result.passed for result in check_gates(measured, exact, "chat"))
    beyond = {
        name: math.nextafter(value, -math.inf if name in AT_MOST else math.inf)
        for name, value in figures.items()
    }
    strict = Gates.model_construct(**beyond)
    assert not any(result.passed for result in check_gates(measured, strict, "chat"))


@pytest.mark.parametrize(
    "wanted",
    [
        Gates(max_kld_mean=0.1),
        Gates(min_top1=0.5),
        Gates(max_perplexity_ratio=2),
        Gates(min_embedding_cosine=0.9),
    ],
)
def test_a_gate_on_what_was_not_measured_cannot_be_passed(wanted):
    bare = proof(quality=None, notes=("there is no reference.gguf",))
    with pytest.raises(ProofFailed, match=r"models\.chat\.gates: .*not measured.*no reference"):
        check_gates(bare, wanted, "chat")


def test_a_model_that_generates_nothing_has_no_generation_speed():
    with pytest.raises(ProofFailed, match="min_tokens_per_second was not measured"):
        check_gates(proof(speed=speed(0.0, 0)), Gates(min_tokens_per_second=1), "index")


def test_memory_that_was_not_measured_cannot_pass():
    with pytest.raises(ProofFailed, match="max_memory was not measured"):
        check_gates(proof(memory=0), Gates(max_memory=10), "chat")


def test_no_gates_give_no_results():
    assert check_gates(proof(), Gates(), "chat") == ()


def test_every_gate_that_failed_is_named_with_both_figures():
    wanted = Gates(max_kld_mean=0.001, min_top1=0.95, max_memory=2000)
    results = check_gates(proof(), wanted, "chat")
    problems = gate_problems(results, "chat")
    assert [str(problem) for problem in problems] == [
        "models.chat: max_kld_mean: measured 0.01, the recipe's limit is 0.001",
        "models.chat: min_top1: measured 0.9, the recipe's limit is 0.95",
    ]
    assert all("quantization" in problem.hint for problem in problems)


def test_gates_that_passed_are_no_problem():
    assert gate_problems(check_gates(proof(), Gates(max_kld_mean=0.1), "chat"), "chat") == []
