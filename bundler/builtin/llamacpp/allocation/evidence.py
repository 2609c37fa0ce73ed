"""What a proof says of a mix: the decision, and where it is asked for, the two controls measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bundler.builtin.llamacpp.allocation.record import Control, Record
from bundler.builtin.llamacpp.asking import answered_once
from bundler.builtin.llamacpp.child import run_child
from bundler.hookspecs import Task
from bundler.measured import Quality

PACKAGE = "bundler.builtin.llamacpp"
_ALLOCATION = "allocation.json"


class Evidence(NamedTuple):
    """What is added to a proof."""

    settings: dict[str, str | int | float | bool]
    notes: list[str]


def evidence(
    task: Task, evaluation: Mapping[str, Any], quality: Quality | None, *, controls: bool
) -> Evidence:
    """Return what the proof of a mix says beside the figures; nothing for other models.

    `evaluation` holds the arguments with which the model itself was compared; the controls are
    compared with the same.
    """
    if _ALLOCATION not in task.inputs:
        return Evidence({}, [])
    text = task.inputs[_ALLOCATION].read_text("utf-8")
    record = Record.from_json(text, _ALLOCATION)
    settings = _settings(record)
    notes = [_decision(record)]
    if controls and quality is not None:
        for control in record.controls:
            figures = _measured_once(task, control, evaluation)
            settings |= _control_settings(control, figures)
            notes.append(_comparison(control, figures, quality))
    return Evidence(settings, notes)


def _settings(record: Record) -> dict[str, str | int | float | bool]:
    return {
        "mix": record.name,
        "mix_budget_bytes": record.budget_bytes,
        "mix_tensor_bytes": record.size_bytes,
        "mix_types": ", ".join(f"{count} x {kind}" for kind, count in record.counts.items()),
        "mix_predicted_damage": record.predicted_damage,
        "mix_gap": record.gap,
        "mix_sensitivity": record.sensitivity,
    }


def _decision(record: Record) -> str:
    proved = (
        "no other choice of types has less"
        if record.gap == 0
        else f"another choice could have at most {100 * record.gap:.2f} % less"
    )
    how = {
        "each": f"measured for every tensor alone ({record.evaluations} evaluations of "
        f"{record.evaluation_tokens} tokens of the calibration text)",
        "groups": f"measured for groups of tensors, since {record.sensitivity_reason}",
        "none": f"not measured, since {record.sensitivity_reason}",
    }[record.sensitivity]
    others = "".join(
        f"; {_title(control)} in as many bytes: {control.predicted_damage:.5f}"
        for control in record.controls
        if control.predicted_damage is not None
    )
    return (
        f"{record.name}: predicted damage {record.predicted_damage:.5f}, {proved}; sensitivity "
        f"{how}{others}"
    )


def _title(control: Control) -> str:
    return f"llama.cpp's {control.name}" if control.kind == "llama.cpp" else f"all {control.name}"


def _measured_once(task: Task, control: Control, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a control's figures; they are kept until the proof is whole."""
    question = {"control": control.scheme, "overrides": sorted(control.overrides.items())}
    return dict(
        answered_once(
            task, {**question, **evaluation}, lambda: _measured(task, control, evaluation)
        )
    )


def _measured(task: Task, control: Control, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Make a control, compare it with the reference, and throw it away."""
    imatrix = task.inputs.get("imatrix.gguf")
    scratch = task.world.store.root / "work"
    with tempfile.TemporaryDirectory(prefix="control-", dir=scratch) as folder:
        output = Path(folder) / "model.gguf"
        run_child(
            f"{PACKAGE}.quantize:quantize_job",
            {
                "model": str(task.inputs["reference.gguf"]), "output": os.fspath(output),
                "imatrix": str(imatrix) if imatrix else None, "quant": control.scheme,
                "overrides": sorted(control.overrides.items()),
            },
            environment=task.world.environment,
        )  # fmt: skip
        return dict(
            run_child(
                f"{PACKAGE}.evaluate:evaluate_job",
                {**evaluation, "model": os.fspath(output)},
                environment=task.world.environment,
            )
        )


def _control_settings(
    control: Control, figures: Mapping[str, Any]
) -> dict[str, str | int | float | bool]:
    key = "control_stock" if control.kind == "llama.cpp" else "control_uniform"
    return {
        key: control.name,
        f"{key}_tensor_bytes": control.size_bytes,
        f"{key}_kld_mean": float(figures["kld_mean"]),
        f"{key}_kld_p99": float(figures["kld_p99"]),
        f"{key}_top1_agreement": float(figures["top1_agreement"]),
    }


def _comparison(control: Control, figures: Mapping[str, Any], quality: Quality) -> str:
    theirs = float(figures["kld_mean"])
    ratio = quality.kld_mean / theirs if theirs > 0 else float("inf")
    return (
        f"control: {_title(control)} in no more bytes has a mean KLD of {theirs:.5f} and agrees in "
        f"{100 * float(figures['top1_agreement']):.1f} %; this mix {quality.kld_mean:.5f} "
        f"({ratio:.2f} times) and {100 * quality.top1_agreement:.1f} %"
    )
