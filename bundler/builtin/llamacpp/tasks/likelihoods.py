"""Log-likelihoods of the answers to questions, several questions at once. Runs only in a child.

What the answers of a question have in common at their beginning is decoded once, then each goes on
from there in a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.divergence import ROWS, log_softmax
from bundler.builtin.llamacpp.session import Context, Model
from bundler.errors import StepFailed

_MOST_LOGITS_BYTES = 128 << 20
"""What is kept of one batch: 220 rows of 152k words. More tokens are scored in several batches."""
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
    context: Context, questions: Sequence[Question], *, most_sequences: int, most_cells: int
) -> Iterator[list[float]]:
    """Yield for each question the natural logarithm of each answer's probability.

    As many questions go together as `most_sequences` and the cache's `most_cells` allow; the answers
    of one that is too large for it are scored one after the other.

    Raises:
        StepFailed: the model's logits are not finite.
    """
    parts = [_parts(question, most_cells) for question in questions]
    scores = chain.from_iterable(
        _read(context, group)
        for group in _groups(list(chain.from_iterable(parts)), most_cells, most_sequences)
    )
    for some in parts:
        yield list(chain.from_iterable(islice(scores, len(some))))


def _parts(question: Question, most_cells: int) -> list[Question]:
    if question.cells <= most_cells:
        return [question]
    return [Question((one,)) for one in question.answers]


def _groups(
    questions: Sequence[Question], most_cells: int, most_sequences: int
) -> Iterator[list[Question]]:
    group: list[Question] = []
    cells = sequences = 0
    for question in questions:
        cells += question.cells
        sequences += len(question.answers)
        if group and (cells > most_cells or sequences > most_sequences):
            yield group
            group, cells, sequences = [], question.cells, len(question.answers)
        group.append(question)
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _Cell:
    """One token that is fed, and what is to be read from its logits."""

    token: int
    position: int
    sequence: int
    wanted: tuple[tuple[int, int], ...]
    """(sequence of an answer, its next token): its log-probability counts for that answer."""


def _read(context: Context, group: Sequence[Question]) -> list[list[float]]:
    """Decode one group: first what the answers share, then how each goes on."""
    context.clear()
    firsts = [0, *accumulate(len(question.answers) for question in group)]
    scores = [0.0] * firsts[-1]
    asked = list(zip(group, firsts, strict=False))
    _add(context, [cell for one, first in asked for cell in _heads(one, first)], scores)
    for question, first in asked:
        for number in range(1, len(question.answers)):
            context.share(first, first + number)
    _add(context, [cell for one, first in asked for cell in _tails(one, first)], scores)
    return [scores[first : first + len(question.answers)] for question, first in asked]


def _heads(question: Question, first: int) -> Iterator[_Cell]:
    """Yield what all answers begin with; of each answer's own tokens the first may follow it."""
    tokens = question.answers[0][0]
    for place in range(question.common):
        wanted = tuple(
            (first + number, whole[place + 1])
            for number, (whole, cut) in enumerate(question.answers)
            if place + 1 >= cut
        )
        yield _Cell(tokens[place], place, first, wanted)


def _tails(question: Question, first: int) -> Iterator[_Cell]:
    common = question.common
    for number, (whole, cut) in enumerate(question.answers, first):
        for place in range(common, len(whole) - 1):
            wanted = ((number, whole[place + 1]),) if place + 1 >= cut else ()
            yield _Cell(whole[place], place, number, wanted)


def _add(context: Context, cells: Sequence[_Cell], scores: list[float]) -> None:
    """Feed cells, and add what is read to the score of each answer."""
    most_rows = max(1, _MOST_LOGITS_BYTES // (4 * context.model.vocabulary))
    for some in _batches(cells, context.batch_tokens, most_rows):
        context.decode_cells([(c.token, c.position, c.sequence, bool(c.wanted)) for c in some])
        kept = [cell for cell in some if cell.wanted]
        if not kept:
            continue
        logits = context.logits(len(kept))
        for first in range(0, len(kept), ROWS):
            likely = log_softmax(_finite(logits[first : first + ROWS]))
            for row, cell in zip(likely, kept[first : first + ROWS], strict=True):
                for sequence, token in cell.wanted:
                    scores[sequence] += float(row[token])


def _batches(cells: Sequence[_Cell], most_cells: int, most_rows: int) -> Iterator[list[_Cell]]:
    batch: list[_Cell] = []
    rows = 0
    for cell in cells:
        if batch and (len(batch) == most_cells or rows + bool(cell.wanted) > most_rows):
            yield batch
            batch, rows = [], 0
        batch.append(cell)
        rows += bool(cell.wanted)
    if batch:
        yield batch


def _finite(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise StepFailed(
            "its logits are not finite while it answers questions: it overflows or is damaged",
            hint="choose another quantization, or check the published weights",
        )
    return logits
