"""A model writes answers to questions. Runs only in a child process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bundler.builtin.llamacpp.chat import limited_seconds
from bundler.builtin.llamacpp.long_answers.asking import AT_ONCE, Answer, Writer
from bundler.builtin.llamacpp.long_answers.picking import Sampling
from bundler.builtin.llamacpp.prompts import question_tokens
from bundler.builtin.llamacpp.session import (
    Model,
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.builtin.llamacpp.tasks.asking import require_room
from bundler.errors import RecipeError
from bundler.tasks.items import Asked, FormItem, Item, WrittenItem, asked_written, drawn
from bundler.tasks.judging import is_right
from bundler.tasks.reading import read_questions

_Judged = TypeVar("_Judged")

_LIKELIEST = Sampling(temperature=0, source="the likeliest token")
_JUDGING_SECONDS = 5
"""A stranger's regular expression may take for ever over one answer."""


def write_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return of each question whether the model's answer is right; of fewer where the time
    was over before.

    Arguments: as `asking.choose_job`, and kind, extract, tokens, parallel, schema and language if the
    recipe says them.

    Raises:
        RecipeError: a question does not fit the context, or a regular expression or schema takes too
            long.
    """
    path = str(arguments["path"])
    data = Path(arguments["file"]).read_bytes()
    items = drawn(
        read_questions(data, path, Asked.of(arguments)),
        int(arguments["items"]), int(arguments["seed"]),
    )  # fmt: skip

    def asked(model: Model, item: WrittenItem | FormItem) -> list[int]:
        return question_tokens(model, asked_written(item, str(arguments["prompt"])))[0]

    def judged(written: str, item: WrittenItem | FormItem) -> bool:
        return _judged(written, item, path, arguments)

    return {"right": answered(arguments, report, items, asked, judged)}


def answered(
    arguments: Mapping[str, Any], report: Any, items: Sequence[Item],
    asked: Callable[[Model, Any], list[int]], judged: Callable[[str, Any], _Judged],
) -> list[_Judged]:  # fmt: skip
    """Return how the answers that a model writes are judged; of fewer items where the time is over.

    Args:
        arguments: as `write_job`.
        report: is told how far it is.
        items: what is asked.
        asked: the tokens by which a model is asked one.
        judged: judges what was written.

    Raises:
        RecipeError: a question does not fit the context; and what `judged` raises.
    """
    gpu, layers = bool(arguments["gpu"]), int(arguments["gpu_layers"])
    path, most = str(arguments["path"]), int(arguments["tokens"])
    room = int(arguments["context_tokens"])
    deadline = time.monotonic() + float(arguments["seconds"])
    with open_model(
        Path(arguments["model"]), gpu=gpu, gpu_layers=layers, adapters=adapters_of(arguments),
        title=str(arguments["title"]),
    ) as model:  # fmt: skip
        if gpu:
            require_placement(model, layers)
        prompts = [asked(model, item) for item in items]
        require_room([len(prompt) + most for prompt in prompts], items, path, room)
        longest = max(map(len, prompts)) + most
        at_once = max(1, min(AT_ONCE, room * int(arguments["parallel"]) // longest))
        found: list[_Judged] = []
        with open_context(
            model, context_tokens=longest * at_once, sequences=at_once,
            kv_cache=str(arguments["kv_cache"]),
            flash_attention="auto" if arguments["kv_cache"] == "f16" else "on",
        ) as context:  # fmt: skip
            writer = Writer(model, context, _LIKELIEST, most, math.inf)
            for first in range(0, len(items), at_once):
                group = _answers(prompts[first : first + at_once], first)
                writer.write(group)
                for answer in group:
                    found.append(judged(model.text(answer.tokens), items[answer.question]))
                report(len(found), len(items), "questions")
                if time.monotonic() > deadline:
                    break
    return found


def _answers(prompts: Sequence[list[int]], first: int) -> list[Answer]:
    return [
        Answer(number, 0, prompt, np.random.default_rng(number))
        for number, prompt in enumerate(prompts, first)
    ]


def _judged(
    written: str, item: WrittenItem | FormItem, path: str, arguments: Mapping[str, Any]
) -> bool:
    what = "its schema" if isinstance(item, FormItem) else "its regular expression"
    try:
        with limited_seconds(_JUDGING_SECONDS):
            return is_right(
                written, item, scoring=str(arguments["scoring"]), extract=str(arguments["extract"])
            )
    except TimeoutError as error:
        raise RecipeError(
            f"{what}, or the recipe's `extract`: for one answer {error}",
            where=f"{path}:{item.row}",
            hint="write it without repetitions inside of repetitions",
        ) from error
    except ValueError as error:
        raise RecipeError(
            str(error), where=f"{path}:{item.row}", hint="mend the schema, or leave the row out"
        ) from error
