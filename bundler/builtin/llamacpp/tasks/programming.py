"""A model writes programs, which are run against their tests. Runs only in a child process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.prompts import question_tokens
from bundler.builtin.llamacpp.session import Model
from bundler.builtin.llamacpp.tasks.writing import answered
from bundler.tasks.items import CodeItem, asked_code, drawn
from bundler.tasks.programs.extracting import program_in
from bundler.tasks.programs.probing import sandbox_that_holds
from bundler.tasks.programs.running import Verdict, verdict_on
from bundler.tasks.programs.sandbox import Sandbox
from bundler.tasks.reading_code import read_code

_UNSOUND_ROWS = 10


def solutions_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return the rows whose own solution does not pass its own tests here.

    Arguments: file, path (its name), items, seed, cpu_seconds.

    Raises:
        StepFailed: there is no sandbox that holds.
    """
    sandbox = sandbox_that_holds()
    items = [item for item in _items(arguments) if item.solution]
    rows = []
    for item in items:
        if (
            verdict_on(item.solution, item, sandbox, int(arguments["cpu_seconds"])).ending
            != "passed"
        ):
            rows.append(item.row)
    return {"unsound": len(rows), "rows": rows[:_UNSOUND_ROWS], "with_solution": len(items)}


def program_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return of each task whether the model's program passes its tests, at its first try
    and with the likeliest tokens; of fewer where the time was over before.

    Arguments: as `writing.write_job`, and cpu_seconds (which each program has).

    Raises:
        RecipeError: a task does not fit the context.
        StepFailed: there is no sandbox that holds; then nothing was written.
    """
    sandbox = sandbox_that_holds()
    found: list[Verdict] = answered(
        arguments, report, _items(arguments),
        lambda model, item: _asked(model, item, str(arguments["prompt"])),
        lambda written, item: _verdict(written, item, sandbox, int(arguments["cpu_seconds"])),
    )  # fmt: skip
    return {
        "right": [verdict.ending == "passed" for verdict in found],
        "endings": dict(Counter(verdict.ending for verdict in found)),
    }


def _items(arguments: Mapping[str, Any]) -> Sequence[CodeItem]:
    data = Path(arguments["file"]).read_bytes()
    items = read_code(data, str(arguments["path"]))
    return drawn(items, int(arguments["items"]), int(arguments["seed"]))


def _asked(model: Model, item: CodeItem, prompt: str) -> list[int]:
    tokens, plain = question_tokens(model, asked_code(item, prompt, in_words=True))
    if not plain:
        return tokens
    return question_tokens(model, asked_code(item, prompt, in_words=False))[0]


def _verdict(written: str, item: CodeItem, sandbox: Sandbox, cpu_seconds: int) -> Verdict:
    return verdict_on(program_in(written, item), item, sandbox, cpu_seconds)
