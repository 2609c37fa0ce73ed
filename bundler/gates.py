"""The limits of a recipe held against what was measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bundler.errors import Problem, ProofFailed
from bundler.lock import Measurement
from bundler.measured import GateResult
from bundler.recipe import Gates
from bundler.tasks.evidence import detail_of

if TYPE_CHECKING:
    from bundler.proof import Proof

DEVICE_GATES = frozenset({"min_tokens_per_second", "max_memory"})
"""Gates on figures that belong to the device of the proof; the others are the model's own."""
_AT_MOST = frozenset(
    {"max_kld_mean", "max_kld_p999", "max_perplexity_ratio", "max_memory", "max_new_loops"}
)
_HINTS = {
    "max_kld_mean": "allow a larger quantization, or raise the limit",
    "max_kld_p999": "allow a larger quantization, or raise the limit",
    "min_top1": "allow a larger quantization, or lower the limit",
    "max_perplexity_ratio": "allow a larger quantization, or raise the limit",
    "max_new_loops": "allow a larger quantization, or raise the limit; the report has the answers' tails",
    "min_tokens_per_second": "choose a smaller quantization or model, or lower the limit",
    "max_memory": "choose a smaller quantization, context or number of users",
    "min_embedding_cosine": "allow a larger quantization, or lower the limit",
    "max_loss": "allow a larger quantization, ask more questions, or raise the limit",
}
_LOSS = "max_loss"


def task_of(gate: str) -> str:
    """Return the task whose loss a gate limits; "" for every other gate."""
    name, _, task = gate.partition(".")
    return task if name == _LOSS else ""


def _limits(gates: Gates) -> dict[str, float]:
    """Return the limits that are set, in the order of the recipe's keys: `max_loss` one by one."""
    limits: dict[str, float] = {}
    for gate in Gates.model_fields:
        given = getattr(gates, gate)
        if gate == _LOSS:
            limits |= {f"{_LOSS}.{task}": float(limit) for task, limit in sorted(given.items())}
        elif given is not None:
            limits[gate] = float(given)
    return limits


def check_gates(proof: Proof, gates: Gates, model: str) -> tuple[GateResult, ...]:
    """Hold every gate that is set against the proof, in the order of the recipe's keys.

    A figure equal to its limit passes.

    Raises:
        ProofFailed: a gate is set on something that was not measured: it cannot be passed.
    """
    figures = measured_figures(proof)
    unmeasured = [
        _unmeasured(gate, model, proof) for gate in _limits(gates) if figures.get(gate) is None
    ]
    if unmeasured:
        raise ProofFailed(unmeasured)
    details = {f"{_LOSS}.{task.name}": task for task in proof.tasks}
    return tuple(
        result
        if result.gate not in details
        else result.model_copy(update={"detail": detail_of(details[result.gate], result.limit)})
        for result in held(figures, gates)
    )


def held(figures: Mapping[str, float | None], gates: Gates) -> tuple[GateResult, ...]:
    """Hold every gate that is set and was measured, in the order of the recipe's keys."""
    results = []
    for gate, limit in _limits(gates).items():
        figure = figures.get(gate)
        if figure is not None:
            at_most = gate in _AT_MOST or task_of(gate)
            passed = figure <= limit if at_most else figure >= limit
            results.append(GateResult(gate=gate, limit=limit, measured=figure, passed=passed))
    return tuple(results)


def measured_figures(proof: Proof | Measurement) -> dict[str, float | None]:
    """Return what each gate looks at; None where the proof has no such figure."""
    quality = proof.quality
    generates = proof.speed.generated_tokens > 0
    return {
        "max_kld_mean": quality.kld_mean if quality else None,
        "max_kld_p999": quality.kld_p999 if quality else None,
        "min_top1": quality.top1_agreement if quality else None,
        "max_perplexity_ratio": quality.perplexity / quality.reference_perplexity
        if quality
        else None,
        "max_new_loops": new_loop_share(proof),
        "min_tokens_per_second": proof.speed.generation_tokens_per_second if generates else None,
        "max_memory": float(proof.device.peak_memory_bytes)
        if proof.device.peak_memory_bytes
        else None,
        "min_embedding_cosine": proof.embedding_cosine_min,
        **_losses(proof),
    }


def _losses(proof: Proof | Measurement) -> dict[str, float | None]:
    if isinstance(proof, Measurement):
        return {f"{_LOSS}.{name}": task.at_most for name, task in proof.tasks.items()}
    return {f"{_LOSS}.{task.name}": task.loss_at_most for task in proof.tasks}


def new_loop_share(proof: Proof | Measurement) -> float | None:
    """Return how many more of the long answers loop than the control's; None if there are none."""
    if isinstance(proof, Measurement):
        return proof.new_loop_share
    return proof.long_answers.new_loop_share if proof.long_answers else None


def gate_problems(results: Iterable[GateResult], model: str) -> list[Problem]:
    """Return a problem for every gate that did not pass: figure, limit and what would help."""
    return [
        Problem(
            f"{result.gate}: measured {result.measured:.6g}, the recipe's limit is "
            f"{result.limit:.6g}{f' ({result.detail})' if result.detail else ''}",
            where=f"models.{model}",
            hint=_HINTS[result.gate.partition(".")[0]],
        )
        for result in results
        if not result.passed
    ]


def _unmeasured(gate: str, model: str, proof: Proof) -> Problem:
    why = "; ".join(proof.notes) or "the proof has no such figure"
    return Problem(
        f"{gate} was not measured ({why})",
        where=f"models.{model}.gates",
        hint="remove the gate, or give the build what it needs to measure it",
    )
