"""The long answers of a proof: two children, the model's and the control's, and what to note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundler.builtin.llamacpp.asking import ask_once
from bundler.builtin.llamacpp.long_answers.questions import questions_for
from bundler.builtin.llamacpp.long_answers.verdict import (
    answers_needed,
    compared,
    least_visible_share,
)
from bundler.hookspecs import Task
from bundler.proof import LongAnswers

_JOB = "bundler.builtin.llamacpp.long_answers.asking:ask_job"
_USUAL_SHARE = 0.1
"""A share of new loops that a person would mind; the note says how many answers would show it."""


def long_answers(
    task: Task, parameters: Mapping[str, Any], notes: list[str],
    adapters: Sequence[tuple[str, float]], *, gpu: bool,
) -> LongAnswers | None:  # fmt: skip
    """Let the model and the unquantized one write; None when none are asked for or there is no control.

    Args:
        task: with `model.gguf` and `reference.gguf`.
        parameters: of the proof: role, long_tokens, long_minutes, context_tokens, parallel, kv_cache.
        notes: what a reader of the report should know is added here.
        adapters: LoRA adapters that both get.
        gpu: whether both are run on the accelerator.
    """
    if not int(parameters["long_tokens"]) or "reference.gguf" not in task.inputs:
        return None
    model = _written(task, "model.gguf", parameters, str(parameters["kv_cache"]), adapters, gpu=gpu)
    # The control keeps an F16 KV cache: what a quantized cache does is part of what is judged.
    control = _written(
        task, "reference.gguf", parameters, "f16", adapters, gpu=gpu,
        sampling=model["sampling"], rounds=int(model["rounds"]),
    )  # fmt: skip
    found = compared(model, control)
    notes += _notes(model, control, found)
    return found


def _written(
    task: Task, name: str, parameters: Mapping[str, Any], kv_cache: str,
    adapters: Sequence[tuple[str, float]], *, gpu: bool, sampling: Mapping[str, Any] | None = None,
    rounds: int = 0,
) -> dict[str, Any]:  # fmt: skip
    return dict(
        ask_once(
            task,
            _JOB,
            {
                "model": str(task.inputs[name]),
                "questions": questions_for(str(parameters["role"])),
                "rounds": rounds,
                "tokens": int(parameters["long_tokens"]),
                # Half of the time for each: the control of a small quantization is slower.
                "seconds": 30 * float(parameters["long_minutes"]),
                "context_tokens": int(parameters["context_tokens"]),
                "parallel": int(parameters["parallel"]),
                "kv_cache": kv_cache,
                "gpu": gpu,
                "gpu_layers": int(parameters["gpu_layers"]),
                "adapters": list(adapters),
                "sampling": sampling,
            },
            progress=task.progress,
        )
    )


def _notes(model: Mapping[str, Any], control: Mapping[str, Any], found: LongAnswers) -> list[str]:
    """Return what a reader must know to judge the figures by."""
    notes = []
    for words, side in (("the model's", model), ("the unquantized model's", control)):
        if side["out_of_time"]:
            notes.append(
                f"{words} long answers were cut off when their time was over: verify.long_minutes"
            )
    if found.answers and found.most_tokens:
        visible = least_visible_share(found.answers)
        notes.append(
            f"{found.answers} long answers would very likely (95 %) show it if {visible:.0%} of all "
            f"fell into new loops; {answers_needed(_USUAL_SHARE)} show {_USUAL_SHARE:.0%}"
        )
    return notes
