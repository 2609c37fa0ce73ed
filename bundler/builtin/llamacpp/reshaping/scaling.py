"""Scale channels so that those which matter lose less when weights are rounded: AWQ's idea.

(Lin et al., arXiv 2306.00978.) A channel whose inputs are large is made smaller where it comes from
and larger in the matrices that read it: within a block of weights it then gets more of the few
steps there are. How far to go is searched: `s = rms^exponent` for ten exponents; behind a norm the
gain, which moves it into the matrices; and outliers alone, cut to some times the median. Judged by the error of the readers' outputs
after rounding with ggml's own code. Runs only in a child process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from bundler.builtin.llamacpp.allocation.matrices import Matrix, Weights
from bundler.builtin.llamacpp.allocation.rounding import round_trip
from bundler.builtin.llamacpp.reshaping.changes import Change, Floats, Reshaping
from bundler.builtin.llamacpp.reshaping.record import Scaled
from bundler.builtin.llamacpp.reshaping.wiring import Site, Wiring
from bundler.weights.ggml_types import BY_NAME

EXPONENTS = tuple(step / 10 for step in range(1, 11))
CUTS = (1.5, 3.0, 6.0)
"""Times the median channel to which outliers are cut, and nothing else is changed."""
SAMPLED_VALUES = 1 << 16
"""Weights of a matrix that are rounded for each candidate: rows do not depend on each other."""
_LEAST_ROWS = 64
_EXPERTS_SAMPLED = 4
_WORTH = 0.995
"""A site is scaled when its error falls below this share of the unscaled one: less is noise."""
_NARROW = "Q4_0"
"""What is tried for rows that no K-quant fits."""
_LEAST, _MOST = 1e-4, 1e4
"""Factors beyond would cost float32 some of its digits."""

Means = Mapping[str, Floats]
"""Matrix → mean squares of its inputs, expert after expert (an importance matrix as it is read)."""


@dataclass(frozen=True)
class _Candidate:
    of: str
    exponent: float
    factors: Floats
    """(experts, channels)"""


def scaling(
    weights: Weights, wiring: Wiring, means: Means, probe_type: str, report: Callable[..., None]
) -> tuple[Reshaping, list[Scaled]]:
    """Return the changes that scale a model, and what was found at each site.

    Args:
        weights: the model's file.
        wiring: who reads and writes.
        means: the importance matrix. A site without an entry stays as it is.
        probe_type: what the candidates are rounded to: `Q4_K`.
        report: is told of sites done.
    """
    sites = [site for site in wiring.sites if all(name in means for name in site.readers)]
    done = 0
    changes: dict[str, Change] = {}
    found: list[Scaled] = []
    with ThreadPoolExecutor(_threads()) as pool:
        searched = pool.map(lambda site: _search(weights, site, means, probe_type), sites)
        for site, (best, scaled) in zip(sites, searched, strict=True):
            done += 1
            report(done, len(sites), "places")
            found.append(scaled)
            if best is not None:
                _apply(changes, wiring, site, best.factors)
    return Reshaping(changes, title=f"scaled for {probe_type}"), found


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def _search(
    weights: Weights, site: Site, means: Means, probe_type: str
) -> tuple[_Candidate | None, Scaled]:
    """Return the best factors of a site, or None where nothing is gained."""
    readers = [weights.matrix(name) for name in site.readers]
    plain = _error(readers, site, means, None, probe_type)
    best, least = None, plain
    for candidate in _candidates(weights, site, means):
        error = _error(readers, site, means, candidate.factors, probe_type)
        if error < least:
            best, least = candidate, error
    if best is None or least > plain * _WORTH:
        return None, Scaled(site=site.name, kind=site.kind, error_before=plain, error_after=plain)
    return best, Scaled(
        site=site.name, kind=site.kind, of=best.of, exponent=best.exponent,
        error_before=plain, error_after=least,
    )  # fmt: skip


def _candidates(weights: Weights, site: Site, means: Means) -> list[_Candidate]:
    rms = np.sqrt(_channel_means(site, means))
    found = [_Candidate("activations", e, _level(rms, e)) for e in EXPONENTS]
    found += [_Candidate("outliers", times, _level(_excess(rms, times), 1)) for times in CUTS]
    if site.kind == "norm":
        gain = np.abs(weights.matrix(site.divided.tensor).read(slice(None))).reshape(1, -1)
        found += [_Candidate("gain", e, _level(gain, e)) for e in (0.5, 1.0)]
    return found


def _excess(rms: Floats, times: float) -> Floats:
    """Return by how much each channel is more than some times the median one; 1 for all others."""
    excess: Floats = np.maximum(rms / (times * np.median(rms, axis=1, keepdims=True) + 1e-30), 1)
    return excess


def _level(values: Floats, exponent: float) -> Floats:
    """Return `values^exponent` of a geometric mean of one in each row, within bounds."""
    typical = np.median(values, axis=1, keepdims=True)
    logs = exponent * np.log(np.maximum(values, np.maximum(typical * 1e-4, 1e-30)))
    logs -= logs.mean(axis=1, keepdims=True)
    factors: Floats = np.clip(np.exp(logs), _LEAST, _MOST).astype(np.float32)
    return factors


def _channel_means(site: Site, means: Means) -> Floats:
    """Return the mean squares of a site's channels: (experts, channels)."""
    # A mixture's router sees every token; each of its experts only those that were sent to it.
    shared = [means[name] for name in site.readers if means[name].size == site.channels]
    if site.kind == "norm":
        rows = shared[0] if shared else means[site.readers[0]].reshape(-1, site.channels).mean(0)
        return rows.reshape(1, -1)
    if site.kind == "value":
        by_head = means[site.readers[0]].reshape(-1, site.groups, site.head)
        averaged: Floats = by_head.mean(axis=1).reshape(1, -1)
        return averaged
    return means[site.readers[0]].reshape(site.experts, site.channels)


def _columns(site: Site, factors: Floats) -> Floats:
    """Return the factors of a reader's columns; a channel of values is read by several heads."""
    if site.kind != "value":
        return factors
    heads = factors.reshape(-1, 1, site.head)
    return np.repeat(heads, site.groups, axis=1).reshape(1, -1)


def _error(
    readers: Sequence[Matrix], site: Site, means: Means, factors: Floats | None, probe_type: str
) -> float:
    """Return the readers' relative errors, added up, when their columns are scaled by `factors`."""
    columns = None if factors is None else _columns(site, factors)
    return sum(_reader_error(reader, means[reader.name], columns, probe_type) for reader in readers)


def _reader_error(matrix: Matrix, means: Floats, columns: Floats | None, probe_type: str) -> float:
    kind = probe_type if matrix.row_values % BY_NAME[probe_type].block_values == 0 else _NARROW
    if matrix.row_values % BY_NAME[kind].block_values or len(matrix.shape) < 2:
        return 0.0  # a router or the like, which is never quantized
    noise = signal = 0.0
    experts: list[int] = _spread(matrix.experts, _EXPERTS_SAMPLED).tolist()
    per_expert = matrix.rows // matrix.experts
    wanted = max(_LEAST_ROWS, SAMPLED_VALUES // matrix.row_values // len(experts))
    for expert in experts:
        rows = _spread(per_expert, wanted) + expert * per_expert
        values = matrix.read(rows)
        squares = _of(means.reshape(-1, matrix.row_values), expert)
        factor = np.float32(1) if columns is None else _of(columns, expert)
        back = round_trip(values * factor, kind, squares / factor**2) / factor
        noise += _weighted(values - back, squares)
        signal += _weighted(values, squares)
    return noise / signal if signal else 0.0


def _of(rows: Floats, expert: int) -> Floats:
    row: Floats = rows[expert if len(rows) > 1 else 0]
    return row


def _weighted(values: Floats, squares: Floats) -> float:
    sums = np.einsum("ij,ij->j", values, values, dtype=np.float64)
    return float(sums @ squares.astype(np.float64))


def _spread(total: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))


def _apply(changes: dict[str, Change], wiring: Wiring, site: Site, factors: Floats) -> None:
    """Add a site's division and multiplication to what its tensors already become."""
    divided = site.divided
    inverse: Floats = np.float32(1) / factors
    rows = inverse if site.experts > 1 else inverse[0]
    _merge(changes, divided.tensor, Change(
        rows=rows, first=divided.first, count=divided.count, upright=site.kind == "norm"
    ))  # fmt: skip
    bias = divided.tensor.removesuffix(".weight") + ".bias"
    if site.kind != "norm" and bias in wiring.shapes:
        _merge(changes, bias, Change(
            rows=rows, first=divided.first, count=divided.count, upright=True
        ))  # fmt: skip
    columns = _columns(site, factors)
    for name in site.readers:
        _merge(changes, name, Change(columns=columns if site.experts > 1 else columns[0]))


def _merge(changes: dict[str, Change], name: str, new: Change) -> None:
    old = changes.get(name)
    if old is None:
        changes[name] = new
    elif new.columns is not None:
        assert old.columns is None
        changes[name] = replace(old, columns=new.columns)
    else:
        assert old.rows is None
        changes[name] = replace(
            old, rows=new.rows, first=new.first, count=new.count, upright=new.upright
        )
