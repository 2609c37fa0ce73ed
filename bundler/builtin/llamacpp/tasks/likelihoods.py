"""Log-likelihoods of the answers to questions, several questions at once. Runs only in a child.

What the answers of a question have in common at their beginning is decoded once, then each goes on
from there in a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.divergence import log_softmax
from bundler.builtin.llamacpp.session import Context, Model
from bundler.errors import StepFailed

Encoded = tuple[list[int], int]
"""Tokens of a question with one answer, and how many of them are the question's."""


def encoded(model: Model, prompt: str, answer: str) -> Encoded:
    """Return both as tokens, cut where the prompt ends.

    As lm-evaluation-harness does (`_encode_pair`): both are tokenized together, since a tokenizer
    may join what stands at the seam; blanks at the prompt's end belong to the answer.
    """
    before = model.tokens(prompt.rstrip(), start=True)
    whole = model.tokens(prompt + answer, start=True)
    # At least one token is the answer's, also where the seam was joined.
    return whole, max(1, min(len(before), len(whole) - 1))


@dataclass(frozen=True)
class Question:
    """A question with its answers."""

    answers: tuple[Encoded, ...]

    @property
    def common(self) -> int:
        """Return how many tokens all answers begin with, less one answer token of each at least."""
        tokens = [whole for whole, _ in self.answers]
        most = min(len(one) - 1 for one in tokens)
        alike = (len({one[index] for one in tokens}) == 1 for index in range(most))
        return next((index for index, same in enumerate(alike) if not same), most)

    @property
    def cells(self) -> int:
        """Return how many tokens the cache has to hold for it; the last ones are never fed."""
        common = self.common
        return common + sum(len(whole) - 1 - common for whole, _ in self.answers)


def log_likelihoods(
    context: Context, questions: Sequence[Question], most_sequences: int
) -> Iterator[list[float]]:
    """Yield for each question the natural logarithm of each answer's probability.

    As many questions go together as the batch's tokens and `most_sequences` allow.

    Raises:
        StepFailed: the model's logits are not finite.
    """
    for group in _groups(questions, context.batch_tokens, most_sequences):
        yield from _read(context, group)


def _groups(
    questions: Sequence[Question], most_tokens: int, most_sequences: int
) -> Iterator[list[Question]]:
    group: list[Question] = []
    tokens = sequences = 0
    for question in questions:
        tokens += question.cells
        sequences += len(question.answers)
        if group and (tokens > most_tokens or sequences > most_sequences):
            yield group
            group, tokens, sequences = [], question.cells, len(question.answers)
        group.append(question)
    if group:
        yield group


def _read(context: Context, group: Sequence[Question]) -> list[list[float]]:
    """Decode one group: first what the answers share, then how each goes on."""
    context.clear()
    shared, firsts = [], []
    sequence = 0
    for question in group:
        # Of what is shared, answers begin where the question ends: from there logits are kept.
        start = min(cut for _, cut in question.answers) - 1
        common = question.answers[0][0][: question.common]
        keeps = max(0, len(common) - start)
        shared.append((sequence, common, keeps))
        firsts.append(sequence)
        sequence += len(question.answers)
    heads = _decoded(context, [(first, 0, common, keeps) for first, common, keeps in shared])
    tails = []
    for question, first in zip(group, firsts, strict=True):
        common_tokens = question.common
        for number, (whole, _) in enumerate(question.answers):
            if number:
                context.share(first, first + number)
            tail = whole[common_tokens:-1]
            tails.append((first + number, common_tokens, tail, len(tail)))
    rest = _decoded(context, tails)
    found = []
    for question, first, head in zip(group, firsts, heads, strict=True):
        found.append([
            _sum(whole[cut:], np.concatenate([head, rest[first + number]])[-len(whole[cut:]) :])
            for number, (whole, cut) in enumerate(question.answers)
        ])  # fmt: skip
    return found


def _decoded(
    context: Context, rows: Sequence[tuple[int, int, Sequence[int], int]]
) -> list[npt.NDArray[np.float32]]:
    """Feed texts as one batch; return of each the last logits, as many as stand beside it."""
    fed = [row for row in rows if row[2]]
    logits = np.empty((0, context.model.vocabulary), np.float32)
    if fed:
        context.decode_rows(fed)
        logits = context.logits(sum(keeps for *_, keeps in fed))
    if not np.isfinite(logits).all():
        raise StepFailed(
            "its logits are not finite while it answers questions: it overflows or is damaged",
            hint="choose another quantization, or check the published weights",
        )
    found, start = [], 0
    for *_, tokens, keeps in rows:
        count = keeps if tokens else 0
        found.append(logits[start : start + count].copy())
        start += count
    return found


def _sum(tokens: Sequence[int], logits: npt.NDArray[np.float32]) -> float:
    likely = log_softmax(logits)
    return float(likely[np.arange(len(tokens)), list(tokens)].sum())
