"""The tasks of a proof: the model's answers beside the unquantized one's, and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.asking import ask_once
from bundler.builtin.llamacpp.leaks import RUN_WORDS, with_known_runs
from bundler.hookspecs import Task
from bundler.proof import TaskResult
from bundler.store import hash_file
from bundler.tasks.evidence import loss_at_most, mcnemar_p
from bundler.tasks.items import Asked, Item, chance_of, drawn, words_of
from bundler.tasks.reading import read_questions

_JOBS = {
    "choice": "bundler.builtin.llamacpp.tasks.asking:choose_job",
    "written": "bundler.builtin.llamacpp.tasks.writing:write_job",
    "code": "bundler.builtin.llamacpp.tasks.programming:program_job",
}
_SOLUTIONS_JOB = "bundler.builtin.llamacpp.tasks.programming:solutions_job"
_DRAWS = 10_000
_DRAWS_SEED = 20
_INTERVAL = (2.5, 97.5)


def task_results(
    task: Task, parameters: Mapping[str, Any], notes: list[str],
    adapters: Sequence[tuple[str, float]], *, gpu: bool,
) -> tuple[TaskResult, ...]:  # fmt: skip
    """Put every task's questions to the model and to the unquantized one.

    Args:
        task: with `model.gguf`, `reference.gguf` and `tasks/<name>` for each task.
        parameters: of the proof; `tasks` says what each one is.
        notes: what a reader of the report should know is added here.
        adapters: LoRA adapters that both get.
        gpu: whether both are run on the accelerator.
    """
    asked = parameters["tasks"]
    if asked and "reference.gguf" not in task.inputs:
        notes.append("tasks were not asked: there is no unquantized model to compare with")
        return ()
    items = [_items(task, told) for told in asked]
    counter = _Counter(task, 2 * sum(map(len, items)))
    return tuple(
        _result(task, told, some, parameters, notes, adapters, counter, gpu=gpu)
        for told, some in zip(asked, items, strict=True)
    )


class _Counter:
    """Counts the questions of all children of a proof as one."""

    def __init__(self, task: Task, total: int) -> None:
        self._task, self._total, self._before = task, total, 0

    def progress(self, done: float, *_: Any) -> None:
        """Say how far the child at work is."""
        self._task.progress(self._before + done, self._total, "questions")

    def finished(self, count: int, found: dict[str, Any]) -> dict[str, Any]:
        """Return what a child found, and count on behind its questions, come to or not."""
        self._before += count
        return found


def _items(task: Task, told: Mapping[str, Any]) -> tuple[Item, ...]:
    data = task.inputs[f"tasks/{told['name']}"].read_bytes()
    items = read_questions(data, str(told["file"]), Asked.of(told))
    return drawn(items, int(told["items"]), int(told["seed"]))


def _result(
    task: Task, told: Mapping[str, Any], asked: Sequence[Item], parameters: Mapping[str, Any],
    notes: list[str], adapters: Sequence[tuple[str, float]], counter: _Counter, *, gpu: bool,
) -> TaskResult:  # fmt: skip
    name = str(told["name"])
    if told["kind"] == "code":
        notes += _solution_notes(task, told)
    model, control = (
        counter.finished(
            len(asked), _chosen(task, told, parameters, adapters, counter, side, kv_cache, gpu=gpu)
        )
        # The control keeps an F16 KV cache: what a quantized cache costs is part of the damage.
        for side, kv_cache in (
            ("model.gguf", str(parameters["kv_cache"])), ("reference.gguf", "f16"),
        )
    )  # fmt: skip
    mine, its = _right(model), _right(control)
    reached = min(len(mine), len(its))
    notes += _time_note(name, reached, len(asked))
    mine, its, asked = mine[:reached], its[:reached], asked[:reached]
    lost, gained, items = int((its & ~mine).sum()), int((mine & ~its).sum()), len(mine)
    low, high = drawn_anew(lost, gained, items)
    chance = float(np.mean([chance_of(item) for item in asked]))
    notes += _chance_note(name, its, chance)
    notes += _stopped_note(name, model, control)
    leaked = _leaked(task, asked)
    if leaked:
        notes.append(
            f"leaked calibration text: {leaked} of the {items} questions of {name} have a run of "
            f"{RUN_WORDS} words in it; the figures flatter"
        )
    return TaskResult(
        name=name, kind=str(told["kind"]), scoring=str(told["scoring"]),
        file_sha256=hash_file(task.inputs[f"tasks/{name}"]), items=items, seed=int(told["seed"]),
        chance=chance, model_right=int(mine.sum()), control_right=int(its.sum()),
        lost=lost, gained=gained, p_value=mcnemar_p(lost, gained), loss_low=low, loss_high=high,
        loss_at_most=loss_at_most(lost, gained, items), leaked=leaked,
    )  # fmt: skip


def _chosen(
    task: Task, told: Mapping[str, Any], parameters: Mapping[str, Any],
    adapters: Sequence[tuple[str, float]], counter: _Counter, side: str, kv_cache: str,
    *, gpu: bool,
) -> dict[str, Any]:  # fmt: skip
    arguments = {
        "model": str(task.inputs[side]), "title": side,
        "file": str(task.inputs[f"tasks/{told['name']}"]), "path": told["file"],
        "items": told["items"], "seed": told["seed"], "scoring": told["scoring"],
        "prompt": told["prompt"], "context_tokens": parameters["context_tokens"],
        # Half of the time for each: the control of a small quantization is slower.
        "seconds": 30 * float(told["minutes"]), "kv_cache": kv_cache,
        "gpu": gpu, "gpu_layers": parameters["gpu_layers"], "adapters": list(adapters),
    }  # fmt: skip
    if told["kind"] != "choice":
        own = ("kind", "extract", "tokens", "schema", "language")
        arguments |= {key: told[key] for key in own if key in told}
        arguments["parallel"] = parameters["parallel"]
    if told["kind"] == "code":
        arguments["cpu_seconds"] = told["seconds"]
    return dict(ask_once(task, _JOBS[told["kind"]], arguments, progress=counter.progress))


def _solution_notes(task: Task, told: Mapping[str, Any]) -> list[str]:
    """Run the file's own solutions: tests that not even those pass tell nothing of a model."""
    arguments = {
        "file": str(task.inputs[f"tasks/{told['name']}"]), "path": told["file"],
        "items": told["items"], "seed": told["seed"], "cpu_seconds": told["seconds"],
    }  # fmt: skip
    found = ask_once(task, _SOLUTIONS_JOB, arguments)
    if not found["unsound"]:
        return []
    rows = ", ".join(map(str, found["rows"]))
    return [
        f"{told['name']}: {found['unsound']} of {found['with_solution']} of the file's own solutions do "
        f"not pass their own tests here (rows {rows}{', …' * (found['unsound'] > len(found['rows']))}): "
        "those tell nothing of a model"
    ]


def _stopped_note(name: str, model: Mapping[str, Any], control: Mapping[str, Any]) -> list[str]:
    """Say how many programs were stopped: on a slower machine it may be more."""
    stopped = [int(one.get("endings", {}).get("time", 0)) for one in (model, control)]
    if not any(stopped):
        return []
    return [
        f"{name}: programs that took too long were stopped: {stopped[0]} of the model's, {stopped[1]} of "
        f"the unquantized model's. More time: verify.tasks.{name}.seconds"
    ]


def _right(chosen: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if "right" in chosen:
        return np.array(chosen["right"], np.bool_)
    right: np.ndarray[Any, np.dtype[np.bool_]] = np.equal(chosen["picks"], chosen["answers"])
    return right


def drawn_anew(lost: int, gained: int, items: int) -> tuple[float, float]:
    """Return the interval of 95 % of the lost share: percentiles of a bootstrap over the questions.

    Each question is lost, gained or neither, so drawing them anew is drawing these three counts.
    """
    shares = np.array([lost, gained, items - lost - gained]) / items
    counts = np.random.default_rng(_DRAWS_SEED).multinomial(items, shares, _DRAWS)
    low, high = np.percentile((counts[:, 0] - counts[:, 1]) / items, _INTERVAL)
    return float(low), float(high)


def _time_note(name: str, reached: int, wanted: int) -> list[str]:
    if reached == wanted:
        return []
    return [
        f"{name}: the time was over after {reached:,} of {wanted:,} questions; only those count. More "
        f"time: verify.tasks.{name}.minutes"
    ]


def _chance_note(
    name: str, control: np.ndarray[Any, np.dtype[np.bool_]], chance: float
) -> list[str]:
    """Say so when the unquantized model itself only guesses: then nothing can be lost."""
    share = float(control.mean())
    error = (chance * (1 - chance) / len(control)) ** 0.5
    if share > chance + 2 * error:
        return []
    return [
        f"{name}: the unquantized model answers {share:.0%} rightly, who guesses {chance:.0%}: this "
        "task cannot show what it loses"
    ]


def _leaked(task: Task, items: Sequence[Item]) -> int:
    """Return how many of the questions asked were calibrated on."""
    if "calibration.txt" not in task.inputs:
        return 0
    return sum(with_known_runs(task.inputs["calibration.txt"], map(words_of, items)))
