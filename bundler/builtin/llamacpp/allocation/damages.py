"""What each choice is expected to do to the model: relative error times measured sensitivity. Pure.

The divergence that an error in one tensor causes grows in proportion to the squared error, whatever
type made it (the linearity theorem of HIGGS, arXiv 2411.17525; on our trained models the ratio was
the same within a fifth from IQ2_XXS to Q4_K). So one or two pokes give a tensor's sensitivity, and
the damage of a whole model is predicted as the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from bundler.builtin.llamacpp.allocation.tables import ErrorTable, Sensitivity

Costs = dict[str, dict[str, tuple[int, float]]]


def sensitivities(table: ErrorTable, measured: Sensitivity | None) -> dict[str, float]:
    """Return nats of divergence for each unit of relative error, by tensor.

    Without measurements every tensor counts alike. A tensor that was not among those measured (one
    that llama.cpp computes with in no text) counts as the median of the others.
    """
    names = list(table.tensors)
    if measured is None or measured.method == "none":
        return dict.fromkeys(names, 1.0)
    found: dict[str, float] = {}
    for group, pokes in measured.pokes.items():
        members = measured.groups[group]
        error = sum(poke.error for poke in pokes) * len(members)
        divergence = sum(poke.divergence for poke in pokes)
        for name in members:
            found[name] = divergence / error if error > 0 else 0.0
    usual = sorted(found.values())[len(found) // 2] if found else 1.0
    return {name: found.get(name, usual) for name in names}


def costs(table: ErrorTable, weights: Mapping[str, float]) -> Costs:
    """Return bytes and predicted damage of every choice."""
    return {
        name: {kind: (one.sizes[kind], one.errors[kind] * weights[name]) for kind in one.sizes}
        for name, one in table.tensors.items()
    }
