"""The prompt: exactly the promised form, and never more than the context holds."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bundler.station.passages import Passage
from bundler.station.problems import QuestionTooLong
from bundler.station.prompt import (
    MESSAGE_TOKENS,
    MOST_PASSAGES,
    SYSTEM,
    TEMPLATE_TOKENS,
    Turn,
    answer_reserve,
    estimate_tokens,
    fit_prompt,
    numbered,
)

texts = st.text(st.sampled_from("abcdefg .,!?\né中"), min_size=1, max_size=1500)
passages = st.builds(
    Passage, st.just("c"), st.just("p"), texts.map(lambda t: t[:40]), texts.map(lambda t: t[:40]), texts,
    st.just(0), st.just(0),
)  # fmt: skip
turns = st.builds(Turn, st.sampled_from(["user", "assistant"]), texts)


def one(title, text, section=""):
    return Passage("handbook", "a.html", title, section, text, 0, 0)


def words(text):
    return len(text.split()) + text.count("\n")


@settings(deadline=None)
@given(
    question=texts, found=st.lists(passages, max_size=8), history=st.lists(turns, max_size=8),
    context=st.integers(64, 6000), count=st.sampled_from([estimate_tokens, words, len]),
)  # fmt: skip
def test_prompt_and_answer_always_fit_the_context(question, found, history, context, count):
    try:
        prompt = fit_prompt(question, found, history, context, count)
    except QuestionTooLong:
        room = context - answer_reserve(context) - TEMPLATE_TOKENS
        assert count(question.strip()) + MESSAGE_TOKENS > room or found
        return
    used = (
        sum(count(message["content"]) + MESSAGE_TOKENS for message in prompt.messages)
        + TEMPLATE_TOKENS
    )
    assert used == prompt.tokens
    assert prompt.tokens + prompt.answer_tokens == context
    assert prompt.answer_tokens >= answer_reserve(context)
    assert len(prompt.passages) <= MOST_PASSAGES
    if prompt.passages:
        assert prompt.messages[0] == {"role": "system", "content": SYSTEM}
        assert prompt.messages[-1]["content"] == numbered(prompt.passages, question)
        for given_, kept in zip(found, prompt.passages, strict=False):
            assert given_.text.startswith(kept.text)
    else:
        assert prompt.messages[-1] == {"role": "user", "content": question.strip()}


@settings(deadline=None)
@given(question=texts, found=st.lists(passages, min_size=1, max_size=5))
def test_each_passage_is_one_numbered_line_whatever_is_in_it(question, found):
    assume("\n" not in question)
    lines = numbered(found, question).split("\n")
    assert len(lines) == len(found) + 2
    assert all(line.startswith(f"[{n}] ") for n, line in enumerate(lines[: len(found)], 1))
    assert lines[-2] == ""
    assert lines[-1] == f"Question: {question.strip()}"


def test_the_form_is_exactly_the_one_models_are_trained_on():
    prompt = fit_prompt(
        "Is it safe? ",
        [one("Boiling", "Salt  stays.\nIt does.", "Limits"), one("Salt", "Salty.")],
        [],
        1024,
    )
    assert list(prompt.messages) == [
        {
            "role": "system",
            "content": "Answer from the numbered passages and cite them as [n]. If they do not say, say so.",
        },
        {
            "role": "user",
            "content": "[1] Boiling – Limits: Salt stays. It does.\n[2] Salt: Salty.\n\nQuestion: Is it safe?",
        },
    ]


def test_the_latest_turns_are_kept_in_pairs_as_far_as_they_fit():
    history = [
        Turn("user", f"question {n} " + "x" * 300) if n % 2 == 0 else Turn("assistant", "a" * 300)
        for n in range(20)
    ]
    prompt = fit_prompt("And now?", [one("T", "Text. " * 50)], history, 1024)
    kept = prompt.messages[1:-1]
    assert 0 < len(kept) < 20
    assert kept[0]["role"] == "user"
    assert kept[-1] == {"role": "assistant", "content": "a" * 300}
    assert prompt.forgotten_turns == 20 - len(kept)


def test_passages_come_before_history():
    history = [Turn("user", "x" * 600), Turn("assistant", "y" * 600)]
    prompt = fit_prompt("Now?", [one(f"T{n}", "Words here. " * 40) for n in range(5)], history, 512)
    assert prompt.passages
    assert prompt.forgotten_turns == 2


def test_the_last_passage_is_cut_at_a_sentence_when_that_makes_it_fit():
    long = one("Long", "This is a sentence of some length. " * 60)
    prompt = fit_prompt("Why?", [long], [], 512)
    assert len(prompt.passages) == 1
    assert prompt.passages[0].text.endswith(".")
    assert len(prompt.passages[0].text) < len(long.text)


def test_a_question_that_cannot_fit_is_refused_with_numbers():
    with pytest.raises(QuestionTooLong, match=r"about [\d,]+ tokens and there is room for [\d,]+"):
        fit_prompt("x" * 10_000, [one("T", "t")], [], 512)
