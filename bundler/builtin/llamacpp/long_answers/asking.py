"""A model writes long answers, several at once. Runs only in a child process."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.long_answers.picking import Sampling, entropy, pick, recommended
from bundler.builtin.llamacpp.long_answers.questions import LEAST_ROUNDS, MOST_ROUNDS
from bundler.builtin.llamacpp.prompts import question_tokens
from bundler.builtin.llamacpp.session import (
    Context,
    Model,
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.errors import StepFailed

AT_ONCE = 4
"""One round of questions."""
ENTROPY_EVERY = 8
"""A softmax over 152k words costs about as much as drawing: every eighth is enough for an average."""
_HEADER_VALUE_BYTES = 64


@dataclass
class Answer:
    """One answer under way."""

    question: int
    seed: int
    prompt: list[int]
    chances: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    ended: bool = False
    row: int = 0


def ask_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return each answer, as tokens, and how they were drawn.

    Arguments: model, questions, rounds (0: as many as it takes until all answers together have
    `tokens`), tokens (most of one answer), seconds (of all), context_tokens and parallel (what the
    plan gives: no more cache is taken), kv_cache, gpu, gpu_layers, adapters, sampling (of the other
    model, for both to be drawn alike; else the model's own).
    """
    gpu, layers = bool(arguments["gpu"]), int(arguments.get("gpu_layers", -1))
    room, users = int(arguments["context_tokens"]), int(arguments["parallel"])
    adapters = adapters_of(arguments)
    with open_model(
        Path(arguments["model"]), gpu=gpu, gpu_layers=layers, adapters=adapters
    ) as model:
        if gpu:
            require_placement(model, layers)
        sampling = Sampling(**arguments["sampling"]) if arguments.get("sampling") else (
            recommended(lambda key: _header_value(model, key))
        )  # fmt: skip
        asked_as = [question_tokens(model, str(question)) for question in arguments["questions"]]
        prompts = [tokens for tokens, _ in asked_as]
        longest = max(len(prompt) for prompt in prompts)
        most = min(int(arguments["tokens"]), room - longest)
        if most < 1:
            raise StepFailed(f"a question has {longest} tokens; the context holds {room}")
        at_once = max(1, min(AT_ONCE, room * users // (longest + most)))
        deadline = time.monotonic() + float(arguments["seconds"])
        with open_context(
            model, context_tokens=(longest + most) * at_once, sequences=at_once,
            kv_cache=str(arguments["kv_cache"]),
            flash_attention="auto" if arguments["kv_cache"] == "f16" else "on",
        ) as context:  # fmt: skip
            writer = Writer(model, context, sampling, most, deadline)
            answers = _ask(writer, prompts, at_once, arguments, report)
        return {
            "answers": [_said(answer, most) for answer in answers if answer.tokens],
            "rounds": len(answers) // len(prompts),
            "sampling": asdict(sampling),
            "most_tokens": most,
            "out_of_time": writer.out_of_time,
            "why_plain": asked_as[0][1],
        }


def _ask(
    writer: Writer, prompts: Sequence[list[int]], at_once: int, arguments: Mapping[str, Any],
    report: Any,
) -> list[Answer]:  # fmt: skip
    """Ask all questions, round after round."""
    wanted, rounds = int(arguments["tokens"]), int(arguments["rounds"])
    answers: list[Answer] = []
    for number in range(1, (rounds or MOST_ROUNDS) + 1):
        asked = [
            Answer(question, number, prompt, np.random.default_rng([number, question]))
            for question, prompt in enumerate(prompts)
        ]
        for first in range(0, len(asked), at_once):
            writer.write(asked[first : first + at_once])
        answers += asked
        done = sum(len(answer.tokens) for answer in answers)
        report(number if rounds else min(done, wanted), rounds or wanted,
               "rounds" if rounds else "tokens")  # fmt: skip
        enough = not rounds and number >= LEAST_ROUNDS and done >= wanted
        if enough or writer.out_of_time:
            break
    return answers


class Writer:
    """Draws the answers of one group side by side: each step decodes one token of each."""

    def __init__(
        self, model: Model, context: Context, sampling: Sampling, most: int, deadline: float
    ) -> None:
        self.model, self.context, self.sampling = model, context, sampling
        self.most, self.deadline = most, deadline
        self.out_of_time = False

    def write(self, group: Sequence[Answer]) -> None:
        """Write the answers of a group until each has ended, is long enough, or time is up."""
        self.context.clear()
        if time.monotonic() > self.deadline:
            self.out_of_time = True
            return
        for row, answer in enumerate(group):
            answer.row = row
            self._read_prompt(answer)
        while open_ones := [a for a in group if not a.ended and len(a.tokens) < self.most]:
            if time.monotonic() > self.deadline:
                self.out_of_time = True
                return
            self.context.decode_each([
                (a.tokens[-1], len(a.prompt) + len(a.tokens) - 1, a.row) for a in open_ones
            ])  # fmt: skip
            logits = self.context.logits(len(open_ones))
            for row, answer in enumerate(open_ones):
                self._draw(answer, logits[row])

    def _read_prompt(self, answer: Answer) -> None:
        size = self.context.batch_tokens
        for first in range(0, len(answer.prompt), size):
            part = answer.prompt[first : first + size]
            self.context.decode(part, start=first, sequence=answer.row)
        self._draw(answer, self.context.logits(1)[0])

    def _draw(self, answer: Answer, logits: Any) -> None:
        if not np.isfinite(logits).all():
            raise StepFailed(
                f"its logits are not finite after {len(answer.tokens)} tokens of an answer: it "
                "overflows or is damaged",
                hint="choose another quantization, or check the published weights",
            )
        if len(answer.tokens) % ENTROPY_EVERY == 0:
            answer.entropies.append(entropy(logits))
        token = pick(logits, self.sampling, float(answer.chances.random()))
        if native.llama().llama_vocab_is_eog(self.model.vocab_pointer, token):
            answer.ended = True
            # An answer that ends at once is an answer, too.
            answer.tokens = answer.tokens or [token]
            return
        answer.tokens.append(token)


def _said(answer: Answer, most: int) -> dict[str, Any]:
    return {
        "question": answer.question,
        "seed": answer.seed,
        "tokens": answer.tokens,
        "entropies": [round(each, 4) for each in answer.entropies],
        "ended": answer.ended,
        "out_of_time": not answer.ended and len(answer.tokens) < most,
    }


def _header_value(model: Model, key: str) -> str | None:
    buffer = ctypes.create_string_buffer(_HEADER_VALUE_BYTES)
    size = native.llama().llama_model_meta_val_str(
        model.pointer, key.encode(), buffer, _HEADER_VALUE_BYTES
    )
    return buffer.value.decode("ascii", "replace") if size >= 0 else None
