"""What a plan's steps ask of this package, each done in a child process; and the steps themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.allocation.planned import Mix
from bundler.builtin.llamacpp.child import run_child
from bundler.errors import PluginError
from bundler.hookspecs import Task
from bundler.plan import FileInput, Step, StepInput

PACKAGE = "bundler.builtin.llamacpp.allocation"
WINDOW_TOKENS, SCORED_TOKENS = 256, 2048
"""Eight windows: the standard error of a tensor's divergence is then a few percent of it."""
_MODEL = StepInput(step="convert", file="model.gguf")
_IMATRIX = StepInput(step="calibrate", file="imatrix.gguf")


def mixing_steps(
    mix: Mix, plugin: str, *, guided: bool, minutes: float, calibration: FileInput | None
) -> tuple[Step, ...]:
    """Return the steps that measure a model and make its mix, after it is converted and calibrated."""
    given: dict[str, FileInput | StepInput] = {"model.gguf": _MODEL}
    if guided:
        given["imatrix.gguf"] = _IMATRIX
    errors = Step(
        name="errors", plugin=plugin, action="errors", inputs=given,
        parameters={"types": list(mix.candidates)},
    )  # fmt: skip
    given = {**given, "errors.json": StepInput(step="errors", file="errors.json")}
    steps = [errors]
    if minutes > 0 and calibration is not None:
        steps.append(
            Step(
                name="sensitivity", plugin=plugin, action="sensitivity",
                inputs={**given, "calibration.txt": calibration},
                parameters={
                    "window_tokens": WINDOW_TOKENS, "tokens": SCORED_TOKENS, "minutes": minutes,
                },
            )
        )  # fmt: skip
        given["sensitivity.json"] = StepInput(step="sensitivity", file="sensitivity.json")
    mixed = Step(
        name="quantize", plugin=plugin, action="mix", inputs=given,
        parameters={"name": mix.name, "budget_bytes": mix.budget_bytes},
    )  # fmt: skip
    return (*steps, mixed)


def errors(task: Task) -> dict[str, Any]:
    """Leave `errors.json`: what each type does to each tensor. Parameters: types."""
    return _child(
        task, "errors:errors_job",
        {
            **_sources(task), "types": list(task.parameters["types"]),
            "output": str(task.output / "errors.json"),
        },
    )  # fmt: skip


def sensitivity(task: Task) -> dict[str, Any]:
    """Leave `sensitivity.json`. Parameters: window_tokens, tokens, minutes."""
    texts = {name: str(path) for name, path in task.inputs.items() if name.endswith(".txt")}
    return _child(
        task, "sensitivity:sensitivity_job",
        {
            **_sources(task), "errors": str(_needed(task, "errors.json")), "texts": texts,
            "output": str(task.output / "sensitivity.json"),
            "scratch": str(task.world.store.root / "work"),
            **{key: task.parameters[key] for key in ("window_tokens", "tokens", "minutes")},
        },
    )  # fmt: skip


def mix(task: Task) -> dict[str, Any]:
    """Leave `model.gguf` and `allocation.json`. Parameters: name, budget_bytes."""
    measured = task.inputs.get("sensitivity.json")
    return _child(
        task, "mixing:mix_job",
        {
            **_sources(task), "errors": str(_needed(task, "errors.json")),
            "sensitivity": str(measured) if measured else None,
            "name": task.parameters["name"], "budget_bytes": task.parameters["budget_bytes"],
            "output": str(task.output / "model.gguf"),
            "record": str(task.output / "allocation.json"),
        },
    )  # fmt: skip


def _sources(task: Task) -> dict[str, Any]:
    imatrix = task.inputs.get("imatrix.gguf")
    return {
        "model": str(_needed(task, "model.gguf")),
        "imatrix": str(imatrix) if imatrix else None,
    }


def _child(task: Task, job: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        run_child(
            f"{PACKAGE}.{job}", dict(arguments), environment=task.world.environment,
            progress=task.progress,
        )
    )  # fmt: skip


def _needed(task: Task, name: str) -> Path:
    if name not in task.inputs:
        raise PluginError(f"{task.action} needs an input called {name!r}")
    return task.inputs[name]
