"""A model picks answers to questions of several choices. Runs only in a child process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.session import (
    Model,
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.builtin.llamacpp.tasks.likelihoods import Question, encoded, log_likelihoods
from bundler.errors import Problem, RecipeError
from bundler.tasks.items import ChoiceItem, Item, asked_letters, asked_texts, drawn
from bundler.tasks.reading import read_choices

BATCH_TOKENS = 2048
AT_ONCE = 32
"""Answers that are decoded side by side."""
_QUESTIONS_AT_ONCE = 16
_SHOWN_PROBLEMS = 20


def choose_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return which choice the model takes for each question, and which is right.

    Both are shorter than the list of questions where the time was over before; some are always asked.

    Arguments: model, title, file, path (the file's name), items, seed, scoring, prompt, seconds,
    context_tokens (what the plan gives one user), kv_cache, gpu, gpu_layers, adapters.

    Raises:
        RecipeError: a question does not fit the context.
    """
    gpu, layers = bool(arguments["gpu"]), int(arguments["gpu_layers"])
    path, room = str(arguments["path"]), int(arguments["context_tokens"])
    deadline = time.monotonic() + float(arguments["seconds"])
    items = drawn(
        read_choices(Path(arguments["file"]).read_bytes(), path),
        int(arguments["items"]), int(arguments["seed"]),
    )  # fmt: skip
    with open_model(
        Path(arguments["model"]), gpu=gpu, gpu_layers=layers, adapters=adapters_of(arguments),
        title=str(arguments["title"]),
    ) as model:  # fmt: skip
        if gpu:
            require_placement(model, layers)
        asked = [_question(model, item, arguments) for item in items]
        lengths = [max(len(whole) for whole, _ in question.answers) for question in asked]
        require_room(lengths, items, path, room)
        cells = max(BATCH_TOKENS, *lengths)
        with open_context(
            model, context_tokens=cells, batch_tokens=BATCH_TOKENS, sequences=AT_ONCE, kv_unified=True,
            kv_cache=str(arguments["kv_cache"]),
            flash_attention="auto" if arguments["kv_cache"] == "f16" else "on",
        ) as context:  # fmt: skip
            picks: list[int] = []
            for first in range(0, len(items), _QUESTIONS_AT_ONCE):
                some = slice(first, first + _QUESTIONS_AT_ONCE)
                scores = log_likelihoods(
                    context, asked[some], most_sequences=AT_ONCE, most_cells=cells
                )
                picks += _picked(items[some], scores, str(arguments["scoring"]))
                report(len(picks), len(items), "questions")
                if time.monotonic() > deadline:
                    break
    return {"picks": picks, "answers": [item.answer for item in items[: len(picks)]]}  # fmt: skip


def _question(model: Model, item: ChoiceItem, arguments: Mapping[str, Any]) -> Question:
    if arguments["scoring"] == "letters":
        prompt, continuations = asked_letters(item)
    else:
        prompt, continuations = asked_texts(item, str(arguments["prompt"]))
    return Question(tuple(encoded(model, prompt, one) for one in continuations))


def require_room(lengths: Sequence[int], items: Sequence[Item], path: str, room: int) -> None:
    """Raise RecipeError where questions with their answers do not fit the model's context."""
    problems = [
        Problem(
            f"a question has {length:,} tokens with its longest answer; the model's context holds "
            f"{room:,}",
            where=f"{path}:{item.row}",
            hint="leave that question out, or give the model more context_tokens",
        )
        for item, length in zip(items, lengths, strict=True)
        if length > room
    ]
    if len(problems) > _SHOWN_PROBLEMS:
        more = len(problems) - _SHOWN_PROBLEMS
        problems[_SHOWN_PROBLEMS:] = [Problem(f"{more:,} more do not fit it either", where=path)]
    if problems:
        raise RecipeError(problems)


def _picked(
    items: Sequence[ChoiceItem], scores: Iterable[Sequence[float]], scoring: str
) -> list[int]:
    """Return the likeliest choice of each question, the first among equals.

    Texts are compared by their likelihood per character, as lm-evaluation-harness's `acc_norm` does.
    """
    picks = []
    for item, given in zip(items, scores, strict=True):
        some = list(given)
        if scoring == "texts":
            some = [
                score / len(text.strip()) for score, text in zip(some, item.choices, strict=True)
            ]
        picks.append(max(range(len(some)), key=lambda number: some[number]))
    return picks
