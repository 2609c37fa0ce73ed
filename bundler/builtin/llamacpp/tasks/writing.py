"""A model writes answers to questions. Runs only in a child process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.chat import limited_seconds
from bundler.builtin.llamacpp.long_answers.asking import AT_ONCE, Answer, Writer
from bundler.builtin.llamacpp.long_answers.picking import Sampling
from bundler.builtin.llamacpp.prompts import question_tokens
from bundler.builtin.llamacpp.session import (
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.builtin.llamacpp.tasks.asking import require_room
from bundler.errors import RecipeError
from bundler.tasks.items import WrittenItem, asked_written, drawn
from bundler.tasks.judging import is_right
from bundler.tasks.reading import read_written

_LIKELIEST = Sampling(temperature=0, source="the likeliest token")
_JUDGING_SECONDS = 5
"""A stranger's regular expression may take for ever over one answer."""


def write_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return of each question whether the model's answer is right; of fewer where the time
    was over before.

    Arguments: as `asking.choose_job`, and extract, tokens, parallel.

    Raises:
        RecipeError: a question does not fit the context, or a regular expression takes too long.
    """
    gpu, layers = bool(arguments["gpu"]), int(arguments["gpu_layers"])
    path, most = str(arguments["path"]), int(arguments["tokens"])
    room = int(arguments["context_tokens"])
    deadline = time.monotonic() + float(arguments["seconds"])
    data = Path(arguments["file"]).read_bytes()
    items = drawn(
        read_written(data, path, patterns=arguments["scoring"] == "regex"),
        int(arguments["items"]), int(arguments["seed"]),
    )  # fmt: skip
    with open_model(
        Path(arguments["model"]), gpu=gpu, gpu_layers=layers, adapters=adapters_of(arguments),
        title=str(arguments["title"]),
    ) as model:  # fmt: skip
        if gpu:
            require_placement(model, layers)
        prompts = [
            question_tokens(model, asked_written(item, str(arguments["prompt"])))[0]
            for item in items
        ]
        require_room([len(prompt) + most for prompt in prompts], items, path, room)
        longest = max(map(len, prompts)) + most
        at_once = max(1, min(AT_ONCE, room * int(arguments["parallel"]) // longest))
        right: list[bool] = []
        with open_context(
            model, context_tokens=longest * at_once, sequences=at_once,
            kv_cache=str(arguments["kv_cache"]),
            flash_attention="auto" if arguments["kv_cache"] == "f16" else "on",
        ) as context:  # fmt: skip
            writer = Writer(model, context, _LIKELIEST, most, math.inf)
            for first in range(0, len(items), at_once):
                some = slice(first, first + at_once)
                group = _answers(prompts[some], first)
                writer.write(group)
                written = [model.text(answer.tokens) for answer in group]
                right += _judged(written, items[some], path, arguments)
                report(len(right), len(items), "questions")
                if time.monotonic() > deadline:
                    break
    return {"right": right}


def _answers(prompts: Sequence[list[int]], first: int) -> list[Answer]:
    return [
        Answer(number, 0, prompt, np.random.default_rng(number))
        for number, prompt in enumerate(prompts, first)
    ]


def _judged(
    written: Sequence[str], items: Sequence[WrittenItem], path: str, arguments: Mapping[str, Any]
) -> list[bool]:
    found = []
    for text, item in zip(written, items, strict=True):
        try:
            with limited_seconds(_JUDGING_SECONDS):
                found.append(
                    is_right(
                        text, item, scoring=str(arguments["scoring"]),
                        extract=str(arguments["extract"]),
                    )
                )  # fmt: skip
        except TimeoutError as error:
            raise RecipeError(
                f"its regular expression, or the recipe's `extract`: for one answer {error}",
                where=f"{path}:{item.row}",
                hint="write it without repetitions inside of repetitions",
            ) from error
    return found
