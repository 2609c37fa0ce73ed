"""Questions with known answers, as values, and which of a file's are asked. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question with several answers, one of which is right."""

    row: int
    """Its line in the file, from 1."""
    question: str
    choices: tuple[str, ...]
    answer: int
    """Which of the choices is right, from 0."""


@dataclass(frozen=True, slots=True)
class WrittenItem:
    """A question, and what is a right answer to it."""

    row: int
    """Its line in the file, from 1."""
    question: str
    answers: tuple[str, ...]
    """Texts, or regular expressions: each of them is right."""


Item = ChoiceItem | WrittenItem
_Item = TypeVar("_Item", ChoiceItem, WrittenItem, Item)


def words_of(item: Item) -> str:
    """Return a question with a right answer, as one text."""
    right = item.choices[item.answer] if isinstance(item, ChoiceItem) else item.answers[0]
    return f"{item.question} {right}"


def chance_of(item: Item) -> float:
    """Return how likely a guess is right; what is written freely cannot be guessed."""
    return 1 / len(item.choices) if isinstance(item, ChoiceItem) else 0.0


def drawn(items: Sequence[_Item], most: int, seed: int) -> tuple[_Item, ...]:
    """Return at most `most` items, in the file's order; which ones is decided by the seed alone.

    By digests rather than by a generator of random numbers, so that it is the same everywhere.
    """
    if len(items) <= most:
        return tuple(items)

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{index}".encode()).digest()

    chosen = sorted(sorted(range(len(items)), key=place)[:most])
    return tuple(items[index] for index in chosen)


def asked_letters(item: ChoiceItem) -> tuple[str, tuple[str, ...]]:
    """Return a question as MMLU asks it, and the continuations that answer it: ` A`, ` B`…

    The words are those of lm-evaluation-harness (tasks/mmlu/default/_default_template_yaml), without
    examples before it.
    """
    letters = LETTERS[: len(item.choices)]
    lines = [f"{letter}. {text}" for letter, text in zip(letters, item.choices, strict=True)]
    prompt = "\n".join([item.question.strip(), *lines, "Answer:"])
    return prompt, tuple(f" {letter}" for letter in letters)


def asked_written(item: WrittenItem, prompt: str) -> str:
    """Return what a model is asked to answer in its own words."""
    return (prompt or "{question}").replace("{question}", item.question.strip())


def asked_texts(item: ChoiceItem, prompt: str) -> tuple[str, tuple[str, ...]]:
    """Return a question as ARC asks it, and the choices themselves as its continuations.

    `prompt` holds `{question}`; empty for lm-evaluation-harness's own words (tasks/arc).
    """
    frame = prompt or "Question: {question}\nAnswer:"
    lead = "" if frame[-1:].isspace() else " "
    asked = frame.replace("{question}", item.question.strip())
    return asked, tuple(lead + choice.strip() for choice in item.choices)
