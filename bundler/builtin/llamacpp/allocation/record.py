"""What was decided about a mix and why, as a value that is kept beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bundler.builtin.llamacpp.allocation.tables import Kept


class Control(Kept):
    """What else the same bytes could have been spent on, without measuring."""

    kind: Literal["llama.cpp", "uniform"]
    """llama.cpp's own mix, or one type for all tensors."""
    name: str
    """`Q4_K_M`; the type, where it is uniform."""
    scheme: str
    """What llama.cpp is asked for."""
    overrides: Mapping[str, str]
    """Tensor → type, beside the scheme."""
    size_bytes: int
    """Of the tensors' data, padding included; never more than the mix may have."""
    predicted_damage: float | None = None
    """As the mix's own; None where it has types that were not measured."""


class Record(Kept):
    """One decision."""

    version: Literal[1] = 1
    name: str
    """What the recipe asked for: `mixed@4.6bpw`."""
    budget_bytes: int
    """For the data of all tensors, padding included."""
    size_bytes: int
    """What was spent."""
    types: Mapping[str, str]
    """Tensor → type, for every tensor whose type was open."""
    predicted_damage: float
    """Sum over all tensors of relative error times sensitivity: nats of mean KL divergence where the
    sensitivity was measured, otherwise a sum of relative errors."""
    bound: float
    """No choice within the budget has less predicted damage."""
    gap: float
    """(predicted_damage - bound) / predicted_damage: 0 where the choice is proved to be the best."""
    sensitivity: Literal["each", "groups", "none"]
    """Measured for every tensor alone, for groups of them, or not at all."""
    sensitivity_reason: str = ""
    evaluations: int = 0
    evaluation_tokens: int = 0
    controls: tuple[Control, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors got each type, by the type's name."""
        found: dict[str, int] = {}
        for kind in self.types.values():
            found[kind] = found.get(kind, 0) + 1
        return dict(sorted(found.items()))
