"""Which offers are out of the question after what was measured. Pure.

An offer that was measured to fail a gate of the recipe is not tried again while the gate stands:
the figures are held against the recipe's gates of today, so a loosened gate lets it in again. With
it go offers that are predicted to do no better in what failed: damage for a gate of quality, bytes
to read for speed, memory for memory. An offer that was measured itself is judged by that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bundler.feedback.measurements import Known
from bundler.gates import DEVICE_GATES, held, measured_figures, task_of
from bundler.lock import Measurement
from bundler.measured import GateResult
from bundler.plan import Offer
from bundler.recipe import Gates


@dataclass(frozen=True)
class Failure:
    """An offer that was measured to fail, and the gates it fails."""

    offer: Offer
    gates: tuple[GateResult, ...]

    def __str__(self) -> str:
        figures = ", ".join(
            f"{gate.gate}: measured {gate.measured:.6g}, the limit is {gate.limit:.6g}"
            for gate in self.gates
        )
        return f"{described(self.offer)} ({figures})"


@dataclass(frozen=True)
class Ruling:
    """What is left of a model's offers."""

    allowed: tuple[Offer, ...]
    hopeful: tuple[Offer, ...]
    """The allowed ones less those that the model's own measurements predict to fail."""
    failures: tuple[Failure, ...] = ()
    dropped: int = 0
    """How many offers went with the failures, being predicted to do no better."""

    def of(self, allows: Callable[[Offer], bool]) -> Ruling:
        """Return what is left of it among the offers that may be taken at all."""
        return replace(
            self,
            allowed=tuple(filter(allows, self.allowed)),
            hopeful=tuple(filter(allows, self.hopeful)),
        )


def described(offer: Offer) -> str:
    """Name an offer for people: `Q4_K_M with f16 KV cache`, and its layers where it is split."""
    split = f", {offer.gpu_layers} layers on the accelerator" if offer.gpu_layers > 0 else ""
    return f"{offer.quant} with {offer.kv_cache} KV cache{split}"


def rule(offers: Sequence[Offer], known: Known, gates: Gates, tool: Callable[[], str]) -> Ruling:
    """Return which offers are left for one model.

    Args:
        offers: all of them, with what was measured (`measured.informed`).
        known: what was measured of the model.
        gates: the recipe's limits for it.
        tool: gives the fingerprint of the engine here; asked only where a figure that failed
            belongs to a device, since another device may do better.
    """
    if not known.measurements:
        return Ruling(tuple(offers), tuple(offers))
    verdicts = [_verdict(offer, known, gates, tool) for offer in offers]
    failures = [
        Failure(offer, tuple(gate for gate in verdict if not gate.passed))
        for offer, verdict in zip(offers, verdicts, strict=True)
        if not all(gate.passed for gate in verdict)
    ]
    allowed, hopeful = [], []
    for offer, verdict in zip(offers, verdicts, strict=True):
        if not all(gate.passed for gate in verdict) or _goes_with(offer, verdict, failures):
            continue
        allowed.append(offer)
        if not _foreseen_to_fail(offer, verdict, gates):
            hopeful.append(offer)
    dropped = len(offers) - len(allowed) - len(failures)
    return Ruling(tuple(allowed), tuple(hopeful), tuple(failures), dropped)


def _verdict(
    offer: Offer, known: Known, gates: Gates, tool: Callable[[], str]
) -> tuple[GateResult, ...]:
    """Hold the gates against all that was measured of exactly this offer and still counts."""
    return tuple(
        gate
        for one in known.of_offer(offer)
        for gate in held(measured_figures(one), gates)
        if _counts(gate, one, known, tool)
    )


def _counts(gate: GateResult, one: Measurement, known: Known, tool: Callable[[], str]) -> bool:
    """Tell whether a figure says what a proof here and now would: device, text and length."""
    if gate.gate in DEVICE_GATES:
        return one.tool == tool()
    task = task_of(gate.gate)
    if task:
        return known.tells_task(one, task)
    return known.tells_quality(one) and one.asked_tokens >= known.asked_tokens


def _goes_with(offer: Offer, verdict: Sequence[GateResult], failures: Sequence[Failure]) -> bool:
    measured = {gate.gate for gate in verdict}
    return any(
        gate.gate not in measured and _no_better(offer, failure.offer, gate.gate)
        for failure in failures
        for gate in failure.gates
    )


def _no_better(offer: Offer, failed: Offer, gate: str) -> bool:
    """Tell whether an offer is predicted to do no better than a failed one in what failed."""
    if gate == "min_tokens_per_second":
        # Each token reads the whole file once, wherever it lies.
        return offer.disk_bytes >= failed.disk_bytes
    if gate == "max_memory":
        same_side = (offer.gpu_layers == 0) == (failed.gpu_layers == 0)
        return same_side and offer.memory.total_bytes >= failed.memory.total_bytes
    return offer.quality >= failed.quality


def _foreseen_to_fail(offer: Offer, verdict: Sequence[GateResult], gates: Gates) -> bool:
    """Tell whether measurements of the model's other quants put an offer beyond the damage gate.

    A bare prediction does not: it is of another model.
    """
    limit = gates.max_kld_mean
    return (
        limit is not None
        and offer.predicted_quality is not None
        and offer.quality > limit
        and "max_kld_mean" not in {gate.gate for gate in verdict}
    )
