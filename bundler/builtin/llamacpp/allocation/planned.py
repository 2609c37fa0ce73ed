"""A mix before anything is measured: how large it will be and what it takes, for the plan. Pure.

The plan must know a model's size and memory at once, while measuring takes minutes. So it holds the
mix to its budget: the later choice has the same budget, and the plan counts all of it. For the
split between accelerator and main memory it counts on the worst: that an embedding which stays in
main memory gets the fewest bits, and the layers all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bundler.builtin.llamacpp.allocation.budgets import Asked, asked, written
from bundler.builtin.llamacpp.allocation.candidates import Choice, all_choices, candidate_types
from bundler.builtin.llamacpp.allocation.relaxing import Relaxed
from bundler.builtin.llamacpp.placement import tied_copy_bytes
from bundler.builtin.llamacpp.types import Inventory, choose_types, data_section_bytes
from bundler.errors import DoesNotFit, Problem
from bundler.hardware import Target
from bundler.plan import Memory
from bundler.value import format_size

USUAL_ERRORS = {
    "IQ2_XXS": 0.100, "IQ2_XS": 0.077, "IQ2_S": 0.055, "Q2_K": 0.062, "IQ3_XXS": 0.028,
    "Q3_K": 0.019, "IQ3_S": 0.016, "IQ4_XS": 0.0052, "IQ4_NL": 0.0050, "Q4_K": 0.0044,
    "Q5_0": 0.0013, "Q5_1": 0.0012, "Q5_K": 0.0011, "Q6_K": 0.00027, "Q8_0": 0.000028,
}  # fmt: skip
"""Median relative error of each type over the tensors of our example model, by `errors`."""
_EMBEDDING = "token_embd.weight"
_LADDER_BITS = (2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0)
"""What `mixed` alone offers: the planner takes the largest that fits beside everything else."""


@dataclass(frozen=True)
class Mix:
    """One mix that could be made."""

    name: str
    budget_bytes: int
    """For the data of all tensors, padding included."""
    free_bytes: int
    """What of that the tensors of open type have."""
    types: Mapping[str, str]
    """Types that plan and memory reckon with; what is measured may say otherwise."""
    spare_bytes: int
    """What these types leave of the budget."""
    bits_per_weight: float
    candidates: tuple[str, ...]


def planned_mixes(
    name: str, inventory: Inventory, header_bytes: int, target: Target, *, guided: bool
) -> Iterator[Mix]:
    """Give the mixes that a recipe's word means for a model.

    Raises:
        RecipeError: the word cannot be read.
        DoesNotFit: the budget is below the smallest mix there is; says how large that is.
    """
    wanted = asked(name)
    if wanted == Asked():
        least = _Open(inventory, target, guided=guided, bits=None).least_bits
        for bits in _LADDER_BITS:
            if bits >= least:
                yield _mix(written(bits), Asked(bits_per_weight=bits), inventory, header_bytes, target,
                           guided=guided)  # fmt: skip
        return
    yield _mix(name, wanted, inventory, header_bytes, target, guided=guided)


class _Open:
    """The tensors of a model whose types are open, with what the others take."""

    def __init__(
        self, inventory: Inventory, target: Target, *, guided: bool, bits: float | None
    ) -> None:
        facts = inventory.facts
        self.candidates = candidate_types(bits)
        self.stored = dict(choose_types(inventory, inventory.stored, has_imatrix=False).types)
        named = {entry.name: entry.name for entry in inventory.quantizable}
        tensors = [
            entry.fact.model_copy(update={"type": self.stored[entry.name]})
            for entry in inventory.quantizable
        ]
        # Embeddings get an entry only where they are the output as well; see `calibrate`.
        if not inventory.tied:
            named.pop(_EMBEDDING, None)
        self.choices = all_choices(tensors, self.candidates, named if guided else None)
        whole = data_section_bytes(facts, self.stored)
        self.fixed_bytes = whole - sum(found[-1].size_bytes for found in self.choices.values())
        self.facts = facts
        self._host_embedding = not inventory.tied and target.accelerator != "none"

    @property
    def least_bytes(self) -> int:
        return self.fixed_bytes + sum(found[0].size_bytes for found in self.choices.values())

    @property
    def least_bits(self) -> float:
        return self.least_bytes * 8 / self.facts.parameters

    @property
    def most_bytes(self) -> int:
        return self.fixed_bytes + sum(found[-1].size_bytes for found in self.choices.values())

    def spend(self, free_bytes: int) -> tuple[dict[str, str], int]:
        """Return types for a budget by usual errors, and what they take."""
        options = {name: self._options(name, found) for name, found in self.choices.items()}
        spent = Relaxed(options).quick(free_bytes)
        return {**self.stored, **spent.types}, spent.size_bytes

    def _options(self, name: str, found: tuple[Choice, ...]) -> dict[str, tuple[int, float]]:
        if name == _EMBEDDING and self._host_embedding:
            found = found[:1]
        return {one.type: (one.size_bytes, USUAL_ERRORS.get(one.type, 0.0)) for one in found}


def _mix(
    name: str, wanted: Asked, inventory: Inventory, header_bytes: int, target: Target, *, guided: bool
) -> Mix:  # fmt: skip
    parameters = inventory.facts.parameters
    if wanted.bits_per_weight is not None:
        budget = int(wanted.bits_per_weight * parameters / 8)
    else:
        budget = (wanted.file_bytes or 0) - header_bytes
    model = _Open(inventory, target, guided=guided, bits=budget * 8 / parameters)
    if budget < model.least_bytes:
        raise _too_small(name, model, header_bytes)
    budget = min(budget, model.most_bytes)
    free = budget - model.fixed_bytes
    types, used = model.spend(free)
    spare = free - used + _repacked_more(model, types, target)
    return Mix(
        name, budget, free, types, spare, budget * 8 / parameters, model.candidates
    )  # fmt: skip


def _repacked_more(model: _Open, types: Mapping[str, str], target: Target) -> int:
    """Return how much larger the copy of a tied output could be than with the types reckoned with."""
    copies = [
        tied_copy_bytes(model.facts, {**types, _EMBEDDING: one.type}, target)
        for one in model.choices.get(_EMBEDDING, ())
    ]
    return max(copies, default=0) - tied_copy_bytes(model.facts, types, target) if copies else 0


def _too_small(name: str, model: _Open, header_bytes: int) -> DoesNotFit:
    least = model.least_bytes
    bits = -(-model.least_bits * 100 // 1) / 100
    return DoesNotFit(
        Problem(
            f"{name}: the smallest mix of this model takes {format_size(least + header_bytes)} "
            f"({model.least_bits:.3f} bits per weight)",
            hint=f"quant = '{written(bits)}' or more, or a smaller model",
            key="quant",
        )
    )


def reckoned(memory: Memory, mix: Mix) -> Memory:
    """Return a model's memory with all of the budget spent."""
    return memory.model_copy(update={"weights_bytes": memory.weights_bytes + mix.spare_bytes})
