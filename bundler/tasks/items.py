"""Questions with known answers, as values, and which of a file's are asked. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_ANSWER_IN_CODE = "Write it in Python, and answer with the whole program in one block of code."
_COMPLETE = "Complete this Python function, and answer with the whole program in one block of code:"
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


@dataclass(frozen=True, slots=True)
class FormItem:
    """Something that is to be answered in a form: as JSON, or in a language."""

    row: int
    """Its line in the file, from 1."""
    question: str
    schema: str
    """JSON Schema that the answer has to follow, as JSON; "" for any JSON, or where it is none."""
    language: str
    """ISO 639-3 code of the language that the answer has to be in; "" where it is JSON."""


@dataclass(frozen=True, slots=True)
class CodeItem:
    """A program that is asked for, and the tests that it has to pass."""

    row: int
    """Its line in the file, from 1."""
    name: str
    """The file's own name of it."""
    question: str
    """The beginning of the program, or what it should do in words."""
    entry: str
    """The function that `check` is given; "" where the tests call by name what they test."""
    defines: str
    """A name that the program must define."""
    setup: str
    """What stands before the tests, imports most often."""
    test: str
    solution: str
    """A program that passes, by the file; "" where it has none."""

    @property
    def begins_program(self) -> bool:
        """Tell whether the question is the program's beginning, as HumanEval's are."""
        return bool(self.entry)


Item = ChoiceItem | WrittenItem | FormItem | CodeItem
_Item = TypeVar("_Item", ChoiceItem, WrittenItem, FormItem, CodeItem, Item)


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides how a file of questions is read."""

    kind: str
    scoring: str
    schema: str = ""
    """JSON Schema of answers of which the file gives none of their own."""
    language: str = ""
    """Language of those."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Asked:
        """Return it from what a proof is told of a task."""
        own = {key: str(told[key]) for key in ("schema", "language") if key in told}
        return cls(str(told["kind"]), str(told["scoring"]), **own)


def words_of(item: Item) -> str:
    """Return a question with a right answer, as one text."""
    match item:
        case ChoiceItem():
            right = item.choices[item.answer]
        case WrittenItem():
            right = item.answers[0]
        case CodeItem():
            right = item.solution
        case FormItem():
            right = ""
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


def asked_written(item: WrittenItem | FormItem, prompt: str) -> str:
    """Return what a model is asked to answer in its own words."""
    return (prompt or "{question}").replace("{question}", item.question.strip())


def asked_code(item: CodeItem, prompt: str, *, in_words: bool) -> str:
    """Return how a program is asked for.

    Args:
        item: the task.
        prompt: the recipe's own words, with `{question}` in them; "" for the usual ones.
        in_words: whether the model answers requests. One that only goes on with a text gets the
            program's beginning, or a comment that asks for one, as the benchmarks' authors did.
    """
    if prompt:
        return prompt.replace("{question}", item.question.strip())
    if not in_words:
        return item.question if item.begins_program else f'"""\n{item.question.strip()}\n"""\n'
    if item.begins_program:
        return f"{_COMPLETE}\n\n```python\n{item.question.strip()}\n```"
    return f"{item.question.strip()}\n\n{_ANSWER_IN_CODE}"


def asked_texts(item: ChoiceItem, prompt: str) -> tuple[str, tuple[str, ...]]:
    """Return a question as ARC asks it, and the choices themselves as its continuations.

    `prompt` holds `{question}`; empty for lm-evaluation-harness's own words (tasks/arc).
    """
    frame = prompt or "Question: {question}\nAnswer:"
    lead = "" if frame[-1:].isspace() else " "
    asked = frame.replace("{question}", item.question.strip())
    return asked, tuple(lead + choice.strip() for choice in item.choices)
