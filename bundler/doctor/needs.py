"""A recipe's plan against this machine: building, proving, and how long models take to load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from bundler.doctor.findings import Finding
from bundler.doctor.software import EngineAnswers
from bundler.errors import BundlerError
from bundler.lock import Lock
from bundler.machine.values import Card, Machine
from bundler.plan import Choice, Plan
from bundler.recipe import Recipe
from bundler.value import format_bytes, format_size

_DOES_NOT_FIT, _PROOF_FAILED, _STEP_FAILED = 4, 9, 1
# A tensor is read as it is stored, turned into F32, and written in its new type.
_WORK_BYTES_PER_WEIGHT = 4 + 4 + 2
_PROCESS_BYTES = 512 * 2**20
"""Python, numpy and llama.cpp beside the tensors: 171 MiB for a converter, more for a proof."""


def needs(
    recipe: Recipe, lock: Lock, plan: Plan, machine: Machine, answers: EngineAnswers
) -> Iterator[Finding]:
    """Yield what the recipe needs that this machine has, or has not."""
    yield from _engines(recipe, answers)
    yield from _accelerator(recipe, answers)
    yield from _conversion(lock, plan, machine)
    yield from _proofs(plan, machine)
    yield from _loading(plan, machine)


def budget_bytes(plan: Plan, name: str) -> int:
    """Return what a plan's budget of this name uses. Every plan has those that are asked for."""
    return {budget.name: budget.used_bytes for budget in plan.budgets}[name]


def _engines(recipe: Recipe, answers: EngineAnswers) -> Iterator[Finding]:
    """Say so when an engine that the recipe's models need cannot be used."""
    for engine in sorted({model.engine for model in recipe.models.values()}):
        answer = answers.get(engine)
        if isinstance(answer, BundlerError):
            models = ", ".join(n for n, m in recipe.models.items() if m.engine == engine)
            yield Finding(
                topic="recipe", name=engine, state="missing",
                said=f"models.{models}: cannot be built here, since {engine} cannot be used",
                remedy=answer.problems[0].hint or "install it, or build on another machine",
                exit_code=_STEP_FAILED,
            )  # fmt: skip


def _accelerator(recipe: Recipe, answers: EngineAnswers) -> Iterator[Finding]:
    """Hold `verify.require = "gpu"` against what engines run on."""
    if recipe.verify.require != "gpu" or not recipe.models:
        return
    seen = [
        str(device["description"])
        for answer in answers.values() if isinstance(answer, Mapping)
        for device in answer["devices"] if device["is_gpu"]
    ]  # fmt: skip
    if seen:
        said = f'require = "gpu": proofs would run on {", ".join(seen)}'
        yield Finding(topic="recipe", name="proofs", state="good", said=said)
        return
    yield Finding(
        topic="recipe", name="proofs", state="missing",
        said='verify.require = "gpu", and no engine sees an accelerator here',
        remedy="install a llama-cpp-python built for it, check the driver, or set "
        'verify.require = "any" to prove on the processor',
        exit_code=_PROOF_FAILED,
    )  # fmt: skip


def _conversion(lock: Lock, plan: Plan, machine: Machine) -> Iterator[Finding]:
    """Hold the largest tensor, which is handled whole, against free memory."""
    if machine.ram_free is None:
        return
    largest = {
        choice.model: max(
            (prod(t.shape) for t in lock.models[choice.model].facts.tensors), default=0
        )
        for choice in plan.choices if choice.offer.steps
    }  # fmt: skip
    if not largest:
        return
    name = max(largest, key=lambda model: largest[model])
    need = largest[name] * _WORK_BYTES_PER_WEIGHT + _PROCESS_BYTES
    said = (
        f"converting and quantizing: about {format_bytes(need)} for the largest tensor "
        f"({name}, {largest[name] / 1e6:,.0f} million weights); "
        f"{format_bytes(machine.ram_free.value)} free"
    )
    if need <= machine.ram_free.value:
        yield Finding(topic="recipe", name="RAM", state="good", said=said)
    else:
        yield Finding(
            topic="recipe", name="RAM", state="missing", said=said,
            remedy="close other programs, raise the container's limit, or build on a larger machine",
            exit_code=_DOES_NOT_FIT,
        )  # fmt: skip


def _proofs(plan: Plan, machine: Machine) -> Iterator[Finding]:
    """Hold each model as it will be run against the device its proof would run on."""
    card = max(machine.cards, key=lambda c: c.free_bytes, default=None)
    free, word = _proving_memory(machine, card)
    if free is None:
        return
    for choice in plan.choices:
        need = choice.offer.memory.total_bytes
        if need <= free:
            continue
        yield Finding(
            topic="recipe", name="proofs", state="warning",
            said=f"models.{_name(choice)} needs {format_bytes(need)} at its full context, "
            f"{format_bytes(free)} of {word} are free here",
            remedy="its proof would swap or fail: build on a machine like the target, or close "
            "other programs",
        )  # fmt: skip


def _proving_memory(machine: Machine, card: Card | None) -> tuple[int | None, str]:
    if card is not None:
        return card.free_bytes, f"{card.name}'s memory"
    return (machine.ram_free.value if machine.ram_free else None), "main memory"


def _loading(plan: Plan, machine: Machine) -> Iterator[Finding]:
    """Say how long each model takes to load, here and on the machine it is for."""
    here = machine.disk_read.value if machine.disk_read else 0
    for tier in plan.tiers:
        title, there = tier.target.title or tier.target.name, tier.target.disk_read_bytes_per_second
        for choice in tier.choices:
            size = choice.offer.disk_bytes
            times = [
                f"{loading_seconds(size, speed)} {where} ({speed / 1e9:.2g} GB/s)"
                for where, speed in (("here", here), (f"on {title}", there)) if speed
            ]  # fmt: skip
            if times:
                yield Finding(
                    topic="recipe", name="loading", state="note",
                    said=f"{_name(choice)}: {format_size(size)} take {', '.join(times)}",
                )  # fmt: skip


def _name(choice: Choice) -> str:
    return f"{choice.model} for {choice.tier}" if choice.tier else choice.model


def loading_seconds(size_bytes: int, bytes_per_second: int) -> str:
    """Write how long bytes take to read, with no more digits than are meant."""
    seconds = size_bytes / bytes_per_second
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
