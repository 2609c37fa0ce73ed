"""What is kept of proofs beside the lock, and what of it concerns a model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bundler.gates import new_loop_share
from bundler.lock import Lock, Measurement, TaskLoss, files_digest, model_digest
from bundler.plan import FileInput, Offer, Step, step_keys
from bundler.tasks.asked import digests_of_step
from bundler.value import digest

if TYPE_CHECKING:
    from bundler.proof import Proof

PROOF_ACTION = "prove"
"""Action of the steps whose facts are a `proof.Proof`."""

# -- what is kept ----------------------------------------------------------------------------------


def making_digest(offer: Offer) -> str:
    """Return the digest of how a model would be made: its steps up to the proof, and their inputs.

    Not of the tools that do them: planning does not know those, and another build of a tool makes
    a model that is as good.
    """
    steps = tuple(step for step in offer.steps if step.action != PROOF_ACTION)
    keys = step_keys(steps, {step.plugin: "" for step in steps})
    beside = [[one.kind, one.file.sha256, one.scale] for one in offer.companions]
    beside += [[one.sha256] for one in offer.other_shards]
    # Cutting changes no weight: what was measured of the whole file holds for its shards.
    made = offer.output if offer.cut is None else offer.cut.whole
    if isinstance(made, FileInput):
        return digest([offer.engine, made.sha256, *beside])
    return digest([offer.engine, keys[made.step], made.file, *beside])


def measurement_of(
    offer: Offer, step: Step, proof: Proof, tool: str, lock: Lock, model: str, role: str
) -> Measurement:
    """Return what is kept of a proof.

    Args:
        offer: what was proved.
        step: the plan's step that proved it.
        proof: what it measured.
        tool: fingerprint of the engine.
        lock: what it was made from.
        model: its name in the lock.
        role: what the recipe wants it for.
    """
    locked = lock.models[model]
    predicted = offer.quality if offer.predicted_quality is None else offer.predicted_quality
    return Measurement(
        model=model_digest(locked),
        reference=locked.resolution.reference,
        made_by=making_digest(offer),
        role=role,
        engine=offer.engine,
        tool=tool,
        quant=offer.quant,
        kv_cache=offer.kv_cache,
        context_tokens=offer.context_tokens,
        parallel=offer.parallel,
        gpu_layers=offer.gpu_layers,
        text=_text_of(lock),
        asked_tokens=int(step.parameters.get("tokens", 0)),
        predicted_quality=predicted,
        predicted_kv_cache_quality=offer.kv_cache_quality,
        predicted_memory_bytes=(offer.predicted_memory or offer.memory).total_bytes,
        model_sha256=proof.model_sha256,
        device=proof.device,
        context_filled=proof.settings.get("context_filled") is True,
        speed=proof.speed,
        quality=proof.quality,
        embedding_cosine_min=proof.embedding_cosine_min,
        new_loop_share=new_loop_share(proof),
        tasks=_task_losses(proof, step),
    )


def _task_losses(proof: Proof, step: Step) -> dict[str, TaskLoss]:
    asked = digests_of_step(step)
    return {
        task.name: TaskLoss(asked=asked[task.name], at_most=task.loss_at_most)
        for task in proof.tasks
        if task.name in asked
    }


def _text_of(lock: Lock) -> str | None:
    return files_digest(lock.texts["heldout"]) if "heldout" in lock.texts else None


def learned(lock: Lock, found: Iterable[Measurement]) -> Lock:
    """Return the lock with more measurements: a later one of the same replaces the earlier."""
    by_key = {one.key: one for one in (*lock.measured, *found)}
    measured = tuple(by_key[key] for key in sorted(by_key))
    return lock if measured == lock.measured else lock.model_copy(update={"measured": measured})


def still_true(measured: Iterable[Measurement], lock: Lock) -> tuple[Measurement, ...]:
    """Return the measurements of models that are in the lock as they were measured."""
    models = {model_digest(model) for model in lock.models.values()}
    return tuple(one for one in measured if one.model in models)


# -- what is known ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What was measured of one model in one role, and on what its quality would be measured now."""

    measurements: tuple[Measurement, ...]
    text: str | None = None
    """Digest of the held-out text of today."""
    asked_tokens: int = 0
    """How many of its tokens the recipe wants evaluated today."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """Task → digest of what the recipe wants asked today."""

    def of_making(self, made_by: str) -> list[Measurement]:
        """Return those of a model that was made the same way."""
        return [one for one in self.measurements if one.made_by == made_by]

    def of_offer(self, offer: Offer) -> list[Measurement]:
        """Return those of exactly this offer: made and run the same way."""
        alike = [one for one in self.measurements if runs_alike(one, offer)]
        made_by = self.making_of(offer) if alike else ""
        return [one for one in alike if one.made_by == made_by]

    def making_of(self, offer: Offer) -> str:
        """Return the digest of an offer's making; empty where no such quant was measured.

        Digests of a thousand offers take longer than the choice among them.
        """
        measured = any(one.quant == offer.quant for one in self.measurements)
        return making_digest(offer) if measured else ""

    def tells_task(self, one: Measurement, task: str) -> bool:
        """Tell whether a measurement asked what the recipe wants asked today."""
        return task in one.tasks and one.tasks[task].asked == self.tasks.get(task)

    def tells_quality(self, one: Measurement) -> bool:
        """Tell whether a measurement's quality can be compared: it is of today's text."""
        return one.text == self.text


def known_of(
    lock: Lock, model: str, role: str, *, asked_tokens: int = 0,
    tasks: Mapping[str, str] | None = None,
) -> Known:  # fmt: skip
    """Return what a lock knows of one of its models."""
    files = model_digest(lock.models[model]) if lock.measured else ""
    found = tuple(one for one in lock.measured if one.model == files and one.role == role)
    return Known(found, _text_of(lock), asked_tokens, tasks or {})


def runs_alike(one: Measurement, offer: Offer) -> bool:
    """Tell whether a measurement is of an offer's own settings."""
    return (one.quant, one.kv_cache, one.context_tokens, one.parallel) == (
        offer.quant, offer.kv_cache, offer.context_tokens, offer.parallel,
    )  # fmt: skip
