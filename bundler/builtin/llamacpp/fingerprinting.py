"""Making the fingerprint of a reference, and what the model that ships was found to be against it.

The top of the reference's distribution at each scored position goes into a file of a few megabytes
(`station.likelihoods`); with it a far end knows a lower bound of the divergence without the
unquantized model. Pure numpy but for the file; runs in a child process.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.divergence import likeliest
from bundler.station.likelihoods import (
    LIKELIEST,
    Likelihoods,
    encoded,
    least_divergence,
    sample_positions,
)

Floats = npt.NDArray[np.float64]
MOST_BYTES = 2 << 20
"""Of ids and log-probabilities: 128 tokens at each of 2,048 positions."""
MOST_TOP = 256
LEAST_TOP = 16
_LEAST = 1e-9
"""Of the rest: what is left of sums of float32. More than the truth makes the bound only smaller."""


def bounds(log_p: Floats, log_q: Floats, p_rest: Floats, q_rest: Floats) -> Floats:
    """Return lower bounds of the divergence, row by row, from the tokens that are known one by one."""
    known = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    p, q = np.maximum(p_rest, 0.0), np.maximum(q_rest, _LEAST)
    rest = np.where(p > _LEAST, p * np.log(np.maximum(p, _LEAST) / q), 0.0)
    found: Floats = np.maximum(known + rest, 0.0)
    return found


def top_bounds(ids: npt.NDArray[Any], log_p: Floats, model: Floats) -> Floats:
    """Return the bounds of rows whose top is known; `model` is whole."""
    log_q = np.take_along_axis(model, ids, -1)
    rest = 1.0 - np.exp(log_p).sum(axis=-1)
    others = model.copy()
    np.put_along_axis(others, ids, -np.inf, -1)  # summed themselves: 1 - sum loses small rests
    return bounds(log_p, log_q, rest, np.exp(others).sum(axis=-1))


def asked_as_a_server(reference: dict[int, float], model: Floats) -> float:
    """Return the bound that a server's answer would give: it names only the likeliest tokens."""
    ids = likeliest(model[None, :], LIKELIEST)[0]
    return least_divergence(reference, {int(one): float(model[one]) for one in ids})


class FingerprintMaker:
    """Is shown log-probabilities of reference and model, block by block, and keeps their tops."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._ids: list[npt.NDArray[np.uint32]] = []
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._model: list[npt.NDArray[np.float64]] = []
        self._served: list[dict[int, float]] = []

    def __call__(self, base: Floats, model: Floats) -> None:
        """Take some rows."""
        top = min(MOST_TOP, base.shape[-1])
        ids = likeliest(base, top)
        self._ids.append(ids.astype(np.uint32))
        self._logprobs.append(np.take_along_axis(base, ids, -1).astype(np.float32))
        for row, some in zip(model, ids, strict=True):
            self._model.append(row[some])
        best = likeliest(model, LIKELIEST)
        values = np.take_along_axis(model, best, -1)
        self._served += [
            dict(zip(map(int, one), map(float, two), strict=True))
            for one, two in zip(best, values, strict=True)
        ]

    def finish(
        self, path: Path, windows: Sequence[Sequence[int]], vocabulary: int, *,
        reference_sha256: str, text_sha256: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Write the file; return the facts of a `proof.Fingerprint` but for its name."""
        ids, log_p = np.concatenate(self._ids), np.concatenate(self._logprobs)
        fits = self._most_bytes // (8 * len(ids))
        top = int(min(ids.shape[1], max(LEAST_TOP, fits)))
        ids, log_p = ids[:, :top], np.minimum(log_p[:, :top], np.float32(0))
        first = len(windows[0]) // 2
        made = Likelihoods(
            vocabulary, len(windows), len(windows[0]), first, top, reference_sha256, text_sha256,
            array("I", [token for window in windows for token in window]),
            array("I", ids.astype("<u4").tobytes()), array("f", log_p.astype("<f4").tobytes()),
        )  # fmt: skip
        data = encoded(made)
        path.write_bytes(data)
        return {"fingerprint": self._facts(made, log_p.astype(np.float64), data)}

    def _facts(self, made: Likelihoods, log_p: Floats, data: bytes) -> dict[str, Any]:
        log_q = np.stack(self._model)[:, : made.top]
        # The rest is what the whole leaves: the same figure that any other reader of the file has.
        found = bounds(
            log_p, log_q, 1.0 - np.exp(log_p).sum(axis=-1), 1.0 - np.exp(log_q).sum(axis=-1)
        )
        picked = list(sample_positions(made.positions, made.rows))
        served = [least_divergence(made.likely(n), self._served[n]) for n in picked]
        return {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
            "positions": made.positions,
            "top": made.top,
            "bound_mean": float(found.mean()),
            "bound_standard_error": float(found.std(ddof=1) / np.sqrt(len(found)))
            if len(found) > 1
            else 0.0,
            "sample_positions": picked,
            "sample_bounds": [round(one, 6) for one in served],
        }
