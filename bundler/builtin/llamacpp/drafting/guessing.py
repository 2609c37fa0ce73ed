"""A draft guesses, its model checks: greedy answers of the pair and of the model alone. Runs only in
a child process.

As llama.cpp's server does it (`common_speculative_impl_draft_simple`): the draft writes its likeliest
words one by one, the model reads them in one pass, and what it would not have said is taken back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.drafting.counting import DRAFTED_TOKENS
from bundler.builtin.llamacpp.long_answers.loops import loop_period
from bundler.builtin.llamacpp.prompts import question_tokens
from bundler.builtin.llamacpp.session import (
    Context,
    Model,
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.builtin.llamacpp.texts import windows
from bundler.errors import StepFailed

Rows = npt.NDArray[np.float32]
PASSAGES, PASSAGE_TOKENS = 8, 64
"""Passages of the held-out text that are written on: evenly over all of it."""
_MOST_WINDOWS = 1024
LOOP_TOKENS = 24
"""An answer whose tail repeats itself for so long tells nothing of a draft: loops are guessed by any."""


class Reader:
    """What one model has read, and can take back."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model, self.context = model, context
        self.read: list[int] = []

    def follow(self, text: Sequence[int], rows: int = 1) -> Rows:
        """Read up to `text`, keeping what is the same; return the logits after its last `rows` tokens.

        The last `rows` tokens are always read anew, together.
        """
        same = 0
        most = min(len(self.read), len(text) - rows)
        while same < most and self.read[same] == text[same]:
            same += 1
        self._forget(same)
        fresh, size = text[same:], self.context.batch_tokens
        for first in range(0, len(fresh) - rows, size):
            part = fresh[first : min(first + size, len(fresh) - rows)]
            self.context.decode(part, start=same + first)
        self.context.decode(fresh[-rows:], start=len(text) - rows, logits_from=0)
        self.read = list(text)
        logits = self.context.logits(rows)
        if not np.isfinite(logits).all():
            raise StepFailed("its logits are not finite: it overflows or is damaged",
                             where=self.model.title)  # fmt: skip
        return logits

    def _forget(self, kept: int) -> None:
        library = native.llama()
        memory = library.llama_get_memory(self.context.pointer)
        if not library.llama_memory_seq_rm(memory, 0, kept, -1):
            raise StepFailed("it cannot take back what it read", where=self.model.title)
        del self.read[kept:]

    def ends(self, token: int) -> bool:
        """Tell whether a token ends an answer."""
        return bool(native.llama().llama_vocab_is_eog(self.model.vocab_pointer, token))


@dataclass
class Answer:
    """One greedy answer, and what became of the guesses."""

    tokens: list[int] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    """Of the model alone: the logits from which each token was taken."""
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    """Of the model, after it had read the question."""


def alone(model: Reader, prompt: Sequence[int], most: int) -> Answer:
    """Return the model's own greedy answer of at most `most` tokens."""
    answer = Answer()
    while len(answer.tokens) < most:
        row = model.follow([*prompt, *answer.tokens])[0].copy()
        answer.rows.append(row)
        answer.tokens.append(int(row.argmax()))
        if model.ends(answer.tokens[-1]):
            break
    return answer


def together(model: Reader, draft: Reader, prompt: Sequence[int], most: int) -> Answer:
    """Return the greedy answer of a model with its draft."""
    answer = Answer([int(model.follow(prompt)[0].argmax())])
    while len(answer.tokens) < most and not model.ends(answer.tokens[-1]):
        text = [*prompt, *answer.tokens]
        # The last word is always the model's own: one guess less than there is room for.
        guesses = guess(draft, text, min(DRAFTED_TOKENS, most - len(answer.tokens) - 1))
        said = model.follow([*text, *guesses], rows=len(guesses) + 1).argmax(axis=1)
        right = next((n for n, one in enumerate(guesses) if one != said[n]), len(guesses))
        taken = [int(token) for token in said[: right + 1]]
        # What was guessed right beyond the end of the answer saved no pass.
        end = next((n for n, token in enumerate(taken) if model.ends(token)), right)
        answer.tokens += taken[: end + 1]
        answer.passes += 1
        answer.drafted += len(guesses)
        answer.accepted += end
    return answer


def guess(draft: Reader, text: Sequence[int], count: int) -> list[int]:
    """Return the draft's likeliest next tokens, one after the other."""
    guesses: list[int] = []
    while len(guesses) < count:
        # A vocabulary may be longer than the model's by a few tokens that mean nothing to it.
        guesses.append(int(draft.follow([*text, *guesses])[0].argmax()))
    return guesses


def parted(own: Answer, paired: Answer) -> float | None:
    """Return by how much the model alone preferred its word where the answers part; None if never.

    In units of its logits, so that 0 is two words that are equally likely.
    """
    if own.tokens == paired.tokens:
        return None
    both = zip(own.tokens, paired.tokens, strict=False)
    shorter = min(len(own.tokens), len(paired.tokens))
    where = next((n for n, (a, b) in enumerate(both) if a != b), shorter)
    if where == shorter:  # one ends where the other goes on: no word of both differs
        return float("inf")
    row = own.rows[where]
    return float(row[own.tokens[where]] - row[paired.tokens[where]])


def draft_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return what was guessed, accepted and written, and where answers parted.

    Arguments: model, draft, questions, text (a file that is written on, or None), tokens (most of an
    answer), seconds (after which no further question is asked), context_tokens, kv_cache,
    draft_kv_cache, gpu, gpu_layers, draft_gpu_layers, adapters (of the model).
    """
    gpu = bool(arguments["gpu"])
    with (
        _opened(arguments, "model", "", gpu=gpu) as model,
        _opened(arguments, "draft", "draft_", gpu=gpu) as draft,
    ):
        prompts = [question_tokens(model, question)[0] for question in arguments["questions"]]
        prompts += _passages(model, arguments.get("text"))
        most = _most(prompts, arguments)
        room = max(map(len, prompts)) + most + DRAFTED_TOKENS
        with (
            _context(model, room, str(arguments["kv_cache"])) as main_context,
            _context(draft, room, str(arguments["draft_kv_cache"])) as draft_context,
        ):
            readers = Reader(model, main_context), Reader(draft, draft_context)
            return _asked(*readers, prompts, most, float(arguments["seconds"]), report)


@contextlib.contextmanager
def _opened(arguments: Mapping[str, Any], name: str, prefix: str, *, gpu: bool) -> Iterator[Model]:
    layers = int(arguments[f"{prefix}gpu_layers"])
    adapters = adapters_of(arguments) if name == "model" else []
    path, title = Path(arguments[name]), f"{name}.gguf"
    with open_model(path, gpu=gpu, gpu_layers=layers, title=title, adapters=adapters) as model:
        if gpu and layers:
            require_placement(model, layers)
        yield model


def _context(model: Model, room: int, kv_cache: str) -> contextlib.AbstractContextManager[Context]:
    return open_context(
        model, context_tokens=room, kv_cache=kv_cache,
        flash_attention="auto" if kv_cache == "f16" else "on",
    )  # fmt: skip


def _passages(model: Model, text: str | None) -> list[list[int]]:
    """Return passages of a text to be written on, evenly over all of it; none of too short a text."""
    if text is None:
        return []
    found = windows(
        model, {"heldout.txt": Path(text)}, window_tokens=PASSAGE_TOKENS, most=_MOST_WINDOWS
    )  # fmt: skip
    return found[:: max(1, len(found) // PASSAGES)][:PASSAGES]


def _loops(answer: Answer) -> bool:
    return loop_period(np.asarray(answer.tokens, np.int64), LOOP_TOKENS) > 0


def _most(prompts: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> int:
    """Return how long answers may get in the context that the plan gives."""
    longest, room = max(map(len, prompts)), int(arguments["context_tokens"])
    most = min(int(arguments["tokens"]), room - longest - DRAFTED_TOKENS)
    if most < 2:
        raise StepFailed(f"a question has {longest} tokens; the context holds {room}")
    return most


def _asked(
    model: Reader, draft: Reader, prompts: Sequence[list[int]], most: int, seconds: float,
    report: Any,
) -> dict[str, Any]:  # fmt: skip
    """Ask one question after the other, of the model alone and of both."""
    deadline = time.monotonic() + seconds
    pairs: list[Answer] = []
    gaps: list[float] = []
    for number, prompt in enumerate(prompts):
        if pairs and time.monotonic() > deadline:
            break
        own, paired = alone(model, prompt, most), together(model, draft, prompt, most)
        pairs.append(paired)
        gap = parted(own, paired)
        gaps += [] if gap is None else [gap]
        report(number + 1, len(prompts), "questions")
    counted = [pair for pair in pairs if not _loops(pair)]
    return {
        "answers": len(pairs),
        "asked": len(prompts),
        "looping": len(pairs) - len(counted),
        "tokens": sum(len(pair.tokens) - 1 for pair in counted),
        "drafted": sum(pair.drafted for pair in counted),
        "accepted": sum(pair.accepted for pair in counted),
        "passes": sum(pair.passes for pair in counted),
        "gaps": [gap if np.isfinite(gap) else None for gap in gaps],
    }
