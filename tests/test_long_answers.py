"""Long answers: loops are found where they are, tokens are drawn as llama.cpp draws them, and a
model is judged only by what the unquantized one does not do."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.long_answers.loops import (
    LEAST_LOOP_TOKENS,
    LONGEST_PERIOD,
    loop_period,
    repetition,
)
from bundler.builtin.llamacpp.long_answers.picking import Sampling, entropy, pick, recommended
from bundler.builtin.llamacpp.long_answers.questions import questions_for
from bundler.builtin.llamacpp.long_answers.verdict import (
    answers_needed,
    at_least_so_many,
    compared,
    least_visible_share,
)
from bundler.errors import StepFailed
from tests.models import (
    Shape,
    example_gguf,
    job,
    llama_fields,
    llama_weights,
    tiny_gguf,
    write_gguf,
)

# -- loops -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=LONGEST_PERIOD), st.integers(0, 400))
def test_a_tail_that_says_one_thing_over_and_over_is_a_loop(phrase, before):
    turns = max(3, -(-LEAST_LOOP_TOKENS // len(phrase)))
    ids = np.array([1000 + n for n in range(before)] + phrase * turns)
    period = loop_period(ids)
    assert 0 < period <= len(phrase)
    assert (ids[-LEAST_LOOP_TOKENS:][period:] == ids[-LEAST_LOOP_TOKENS:][:-period]).all()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_two_turns_or_a_loop_that_was_left_are_none(phrase):
    assume(loop_period(np.array(phrase)) == 0)
    ids = phrase * 2
    assume(loop_period(np.array(ids)) == 0)
    assert loop_period(np.array(phrase * 40 + list(range(100, 140)))) == 0


def test_words_drawn_at_random_do_not_loop_and_repeat_little():
    found = repetition(np.random.default_rng(0).integers(0, 30_000, 5000))
    assert found.loop_period_tokens == 0
    assert found.repeated_share < 0.001
    assert found.distinct_pairs > 0.99
    assert found.compression_ratio < 2


def test_repetition_is_what_its_definition_says():
    """rep-4 = 1 - unique / all groups of 4, in windows of 512; distinct-2 over the whole."""
    ids = [1, 2, 3, 4, 1, 2, 3, 4]
    found = repetition(ids)
    assert found.repeated_share == pytest.approx(1 - 4 / 5)
    assert found.distinct_pairs == pytest.approx(4 / 7)


@pytest.mark.parametrize("count", range(1, 6))
def test_answers_of_a_few_tokens_can_be_measured(count):
    found = repetition(range(count))
    assert (found.loop_period_tokens, found.repeated_share, found.distinct_pairs) == (0, 0.0, 1.0)


# -- drawing ---------------------------------------------------------------------------------------

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)


@settings(max_examples=40, deadline=None)
@given(samplings, st.integers(0, 2**32 - 1))
def test_the_same_tokens_are_drawn_as_by_llama_cpps_own_chain(sampling, seed):
    """The shares over all chances are the probabilities that llama.cpp's samplers leave."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, 60).astype(np.float32)
    theirs = llama_cpp_probabilities(logits, sampling)
    chances = (np.arange(4000) + 0.5) / 4000
    drawn = np.bincount([pick(logits, sampling, chance) for chance in chances], minlength=60) / 4000
    assert np.abs(drawn - theirs).max() < 0.002


def llama_cpp_probabilities(logits, sampling):
    import llama_cpp

    data = (llama_cpp.llama_token_data * logits.size)()
    for token, logit in enumerate(logits):
        data[token].id, data[token].logit, data[token].p = token, float(logit), 0.0
    array = llama_cpp.llama_token_data_array(data=data, size=logits.size, selected=-1, sorted=False)
    made = [
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
    ]
    for sampler in made:
        llama_cpp.llama_sampler_apply(sampler, array)
        llama_cpp.llama_sampler_free(sampler)
    kept = [(array.data[n].id, array.data[n].logit) for n in range(array.size)]
    weights = np.exp(np.array([logit for _, logit in kept]) - max(logit for _, logit in kept))
    found = np.zeros(logits.size)
    found[[token for token, _ in kept]] = weights / weights.sum()
    return found


def test_without_temperature_the_likeliest_is_taken():
    logits = np.array([0.0, 3.0, 1.0], np.float32)
    assert pick(logits, Sampling(temperature=0.0), 0.99) == 1


def test_entropy_is_that_of_the_whole_distribution():
    assert entropy(np.zeros(8, np.float32)) == pytest.approx(np.log(8))
    assert entropy(np.array([0, -1e9], np.float32)) == pytest.approx(0)


def test_a_models_own_settings_are_taken_and_nonsense_is_not():
    header = {
        "general.sampling.temp": "0.6", "general.sampling.top_k": "20",
        "general.sampling.top_p": "nan", "general.sampling.min_p": "-3",
    }  # fmt: skip
    found = recommended(header.get)
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.6, 20, 0.95, 0.05)
    assert "header" in found.source
    assert recommended({}.get) == Sampling()


# -- the verdict -------------------------------------------------------------------------------------

LOOP, PLAIN = [1, 2, 3] * 100, list(range(300))


def answer(question, tokens, *, ended=False, out_of_time=False):
    return {
        "question": question, "seed": 1, "tokens": tokens, "ended": ended,
        "entropies": [1.0] * -(-len(tokens) // 8), "out_of_time": out_of_time,
    }  # fmt: skip


def run(*answers):
    return {
        "answers": answers, "most_tokens": 300, "sampling": {"top_k": 40, "source": "x"}, "rounds": 1,
        "out_of_time": False, "why_plain": "",
    }  # fmt: skip


def test_a_loop_counts_only_where_the_control_has_none():
    found = compared(
        run(answer(0, LOOP), answer(1, LOOP), answer(2, PLAIN), answer(3, PLAIN)),
        run(answer(0, PLAIN), answer(1, LOOP), answer(2, LOOP), answer(3, PLAIN)),
    )
    assert (found.answers, found.new_loops, found.loops_gone) == (4, 1, 1)
    assert (found.model.looped, found.control.looped) == (2, 2)
    assert found.new_loop_share == 0
    assert found.model.tokens == found.control.tokens == 1200


def test_what_the_clock_cut_off_is_compared_as_far_as_both_went():
    late_loop = PLAIN + LOOP
    found = compared(run(answer(0, late_loop)), run(answer(0, PLAIN[:200], out_of_time=True)))
    assert found.new_loops == 0
    assert found.model.tokens == found.control.tokens == 200
    assert compared(run(answer(0, late_loop)), run(answer(0, PLAIN))).new_loops == 1


def test_what_only_one_of_both_answered_is_left_out():
    found = compared(run(answer(0, LOOP), answer(1, PLAIN)), run(answer(1, PLAIN)))
    assert (found.answers, found.new_loops) == (1, 0)
    assert compared(run(), run()).answers == 0


@pytest.mark.parametrize("new", range(7))
@pytest.mark.parametrize("gone", range(7))
def test_the_p_value_is_that_of_a_fair_coin(new, gone):
    count = new + gone
    heads = [n.bit_count() for n in range(2**count)]
    chance = sum(each >= new for each in heads) / len(heads)
    assert at_least_so_many(new, count) == pytest.approx(chance)


@given(st.floats(0.01, 0.9))
def test_so_many_answers_as_are_needed_show_the_share(share):
    needed = answers_needed(share)
    assert (1 - share) ** needed <= 0.05 + 1e-9
    assert least_visible_share(needed) <= share + 1e-9


# -- with models ---------------------------------------------------------------------------------------


def ask(model, **more):
    given = {
        "model": str(model), "questions": questions_for("chat")[:3], "rounds": 0, "tokens": 60,
        "seconds": 60, "context_tokens": 512, "parallel": 1, "kv_cache": "f16", "gpu": False,
        "gpu_layers": 0, "adapters": [], "sampling": None,
    }  # fmt: skip
    return job("long_answers.asking:ask_job", given | more)


def test_a_model_against_itself_differs_in_nothing():
    one, other = ask(example_gguf()), ask(example_gguf())
    assert one == other
    found = compared(one, other)
    assert found.model == found.control
    assert found.new_loops == found.loops_gone == 0
    assert found.answers >= 6
    assert all(len(each["tokens"]) <= 60 for each in one["answers"])


def test_answers_written_side_by_side_are_those_written_alone():
    """Four sequences in one cache do not see each other."""
    together = ask(example_gguf(), rounds=1)
    alone = [
        ask(example_gguf(), rounds=1, questions=[question])["answers"][0]["tokens"]
        for question in questions_for("chat")[:1]
    ]
    assert together["answers"][0]["tokens"] == alone[0]


def test_models_that_end_early_are_asked_more_often_and_not_for_ever():
    assert ask(example_gguf(), tokens=1)["rounds"] == 2
    many = ask(example_gguf(), tokens=3000, context_tokens=120)
    assert many["rounds"] == 8
    assert len(many["answers"]) == 24


def test_when_time_is_over_what_there_is_is_told():
    found = ask(example_gguf(), seconds=0)
    assert found["out_of_time"]
    assert found["answers"] == []


def test_a_question_that_does_not_fit_the_context_is_said():
    with pytest.raises(StepFailed, match="the context holds 16"):
        ask(example_gguf(), context_tokens=16)


def test_a_model_without_a_template_is_asked_plainly_and_says_so():
    assert ask(tiny_gguf(), tokens=4)["why_plain"] == "it has no chat template"


def test_logits_that_are_not_finite_end_it_with_the_reason(tmp_path):
    shape = Shape()
    weights = llama_weights(shape)
    name = next(name for name in weights if "ffn_down" in name)
    weights[name] = np.full_like(weights[name], np.nan)
    broken = tmp_path / "broken.gguf"
    write_gguf(broken, llama_fields(shape), weights, "F16")
    with pytest.raises(StepFailed, match="not finite"):
        ask(broken, tokens=4)
