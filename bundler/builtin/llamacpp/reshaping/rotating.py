"""Rotate a model's residual stream, and its values head by head: QuaRot's R1 and R2. Pure.

(Ashkboos et al., arXiv 2404.00456.) With RMSNorm a rotation of the stream changes nothing once the
norms' gains stand in the matrices that read behind them: the norm of a rotated vector is that of
the vector. All that writes into the stream turns its rows, all that reads it turns its columns.
"""

from __future__ import annotations

from bundler.builtin.llamacpp.reshaping.changes import Change, Floats, Reshaping, Turn
from bundler.builtin.llamacpp.reshaping.wiring import Wiring


def rotation(
    wiring: Wiring, gains: dict[str, Floats], *, seed: int, values: bool = True
) -> Reshaping:
    """Return the changes that rotate a model.

    Args:
        wiring: who reads and writes.
        gains: of every norm, by name.
        seed: of the signs; another seed is another rotation.
        values: whether the values of each head turn, too.
    """
    stream, heads = Turn(wiring.hidden, seed), Turn(wiring.head, seed + 1)
    changes = {"token_embd.weight": Change(right=stream)}
    for norm, readers in wiring.norms.items():
        changes[norm] = Change(ones=True)
        for name in readers:
            changes[name] = Change(columns=gains[norm], right=stream)
    for name in wiring.writers:
        changes[name] = Change(left=stream, upright=name.endswith(".bias"))
    if values:
        _turn_values(changes, wiring, heads)
    untied = None
    if wiring.tied:
        untied = Change(columns=gains["output_norm.weight"], right=stream)
    return Reshaping(changes, untied, title=f"rotated, seed {seed}")


def _turn_values(changes: dict[str, Change], wiring: Wiring, heads: Turn) -> None:
    for made, biases, reader in wiring.values:
        old = changes[made.tensor]
        changes[made.tensor] = Change(
            columns=old.columns, right=old.right, left=heads, first=made.first, count=made.count
        )
        for bias in biases:
            changes[bias.tensor] = Change(
                left=heads, first=bias.first, count=bias.count, upright=True
            )
        changes[reader] = Change(left=changes[reader].left, right=heads)
