"""Questions with known answers, as values, and which of a file's are asked. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

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


def drawn(items: Sequence[ChoiceItem], most: int, seed: int) -> tuple[ChoiceItem, ...]:
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


def asked_texts(item: ChoiceItem, prompt: str) -> tuple[str, tuple[str, ...]]:
    """Return a question as ARC asks it, and the choices themselves as its continuations.

    `prompt` holds `{question}`; empty for lm-evaluation-harness's own words (tasks/arc).
    """
    frame = prompt or "Question: {question}\nAnswer:"
    lead = "" if frame[-1:].isspace() else " "
    asked = frame.replace("{question}", item.question.strip())
    return asked, tuple(lead + choice.strip() for choice in item.choices)
