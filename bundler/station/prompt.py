"""The prompt for a grounded answer, fitted into the model's context. Pure.

The wording is a contract with the models a bundle ships (the example model was trained on exactly
this form), so it is written in one place and never varied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bundler.station.passages import Passage
from bundler.station.problems import QuestionTooLong

SYSTEM = "Answer from the numbered passages and cite them as [n]. If they do not say, say so."
MOST_PASSAGES = 5
"""More passages make small models cite the wrong one; the example model saw one to five."""
TOKENS_PER_PASSAGE = 800
"""One passage for so many tokens of context (at least two): a model with a small context is small
in all else too. With the example model (1,024 tokens) two short passages gave 43 right citations
of 50, three 35 and five long ones 28 (bench/exam.py)."""
CHARACTERS_PER_CONTEXT_TOKEN = 0.25
"""A passage is cut at a sentence near so many characters for each token of context."""
MESSAGE_TOKENS = 8
"""Allowed for each message's role marks; chat templates take 3 to 7."""
TEMPLATE_TOKENS = 16
"""Allowed once for what a template puts at the start and the end."""
SMALLEST_PASSAGE_CHARACTERS = 120
"""A passage cut shorter than this says too little to be worth its place."""
CUT_MARGIN = 0.85
"""A text cut to its share of tokens may hold a little more of them than its length suggests."""

Count = Callable[[str], int]
Message = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """An earlier message of the conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What is sent to the model, and the passages that are really in it, numbered from 1."""

    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]
    tokens: int
    """Counted or estimated tokens of the messages with their templates."""
    answer_tokens: int
    """Tokens left for the answer."""
    forgotten_turns: int = 0
    """Earlier messages that did not fit."""


def estimate_tokens(text: str) -> int:
    """Return a cautious number of tokens of `text` where no tokenizer can be asked.

    English has 3.5 to 4.5 characters a token in large vocabularies and about 3 in small ones;
    bytes instead of characters keep it cautious for other scripts.
    """
    return len(text.encode("utf-8", "replace")) // 3 + 1


def answer_reserve(context_tokens: int) -> int:
    """Return the tokens kept free for the answer: a quarter of the context, 64 to 1,024."""
    return max(64, min(1024, context_tokens // 4))


def numbered(passages: Sequence[Passage], question: str) -> str:
    r"""Return the user message of a grounded question.

    >>> numbered([Passage("h", "a", "Boiling", "Limits", "Salt stays.", 3, 3)], "Is it safe?")
    '[1] Boiling – Limits: Salt stays.\n\nQuestion: Is it safe?'
    """
    lines = [f"[{n}] {_line(p.heading)}: {_line(p.text)}" for n, p in enumerate(passages, 1)]
    return "\n".join([*lines, "", f"Question: {question.strip()}"])


def fit_prompt(
    question: str,
    passages: Sequence[Passage],
    history: Sequence[Turn],
    context_tokens: int,
    count: Count = estimate_tokens,
) -> Prompt:
    """Return messages which, with room for the answer, never exceed `context_tokens`.

    Passages come first (the best whole, the last one cut if that helps), then as many of the
    latest earlier turns as still fit. Without passages the question is asked as it is.

    Raises QuestionTooLong when the question alone leaves no room.
    """
    answer = answer_reserve(context_tokens)
    room = context_tokens - answer - TEMPLATE_TOKENS
    kept = _fit_passages(question, _offered(passages, context_tokens), room, count)
    messages = _messages(question, kept)
    used = _tokens(messages, count)
    if used > room:
        raise QuestionTooLong(
            f"This question is too long for this model: it has about {used:,} tokens and there is "
            f"room for {max(room, 0):,}. Ask in fewer words."
        )
    turns = _fit_history(history, room - used, count)
    earlier = [{"role": turn.role, "content": turn.content} for turn in turns]
    lead = messages[:-1]
    used += _tokens(earlier, count)
    return Prompt(
        messages=(*lead, *earlier, messages[-1]),
        passages=tuple(kept),
        tokens=used + TEMPLATE_TOKENS,
        answer_tokens=context_tokens - used - TEMPLATE_TOKENS,
        forgotten_turns=len(history) - len(turns),
    )


def _offered(passages: Sequence[Passage], context_tokens: int) -> list[Passage]:
    """Return as many and as long passages as a model with such a context can make use of."""
    most = min(MOST_PASSAGES, max(2, context_tokens // TOKENS_PER_PASSAGE))
    longest = max(SMALLEST_PASSAGE_CHARACTERS, int(context_tokens * CHARACTERS_PER_CONTEXT_TOKEN))
    return [
        replace(passage, text=_shorter(passage.text, longest))
        if len(passage.text) > longest
        else passage
        for passage in passages[:most]
    ]


def _messages(question: str, passages: Sequence[Passage]) -> list[Message]:
    if not passages:
        return [{"role": "user", "content": question.strip()}]
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": numbered(passages, question)},
    ]


def _tokens(messages: Sequence[Message], count: Count) -> int:
    return sum(count(message["content"]) + MESSAGE_TOKENS for message in messages)


def _fit_passages(question: str, passages: list[Passage], room: int, count: Count) -> list[Passage]:
    kept: list[Passage] = []
    for passage in passages:
        if _tokens(_messages(question, [*kept, passage]), count) <= room:
            kept.append(passage)
            continue
        shorter = _cut(passage, question, kept, room, count)
        if shorter is not None:
            kept.append(shorter)
        break
    return kept


def _cut(
    passage: Passage, question: str, kept: list[Passage], room: int, count: Count
) -> Passage | None:
    """Return the passage cut at a sentence so that it fits, or None when too little is left."""
    text = passage.text
    while len(text) > SMALLEST_PASSAGE_CHARACTERS:
        text = _shorter(text, int(len(text) * CUT_MARGIN))
        shorter = replace(passage, text=text)
        if _tokens(_messages(question, [*kept, shorter]), count) <= room:
            return shorter if len(text) >= SMALLEST_PASSAGE_CHARACTERS else None
    return None


def _shorter(text: str, length: int) -> str:
    cut = text[:length]
    end = max(cut.rfind(". "), cut.rfind("! "), cut.rfind("? "))
    if end > length // 2:
        return cut[: end + 1]
    return cut.rsplit(" ", 1)[0] if " " in cut else cut


def _fit_history(history: Sequence[Turn], room: int, count: Count) -> list[Turn]:
    """Return the latest turns that fit, beginning with a question: pairs are kept or dropped."""
    kept: list[Turn] = []
    for turn in reversed(history):
        cost = count(turn.content) + MESSAGE_TOKENS
        if cost > room:
            break
        room -= cost
        kept.insert(0, turn)
    while kept and kept[0].role != "user":
        kept.pop(0)
    return kept


def _line(text: str) -> str:
    return " ".join(text.split())
