"""A model of a bundle held again against what its proof says, with llama.cpp here.

Runs in a child process, two minutes at most: the windows that hold the sampled positions first, then
others while there is time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.divergence import checked, log_softmax
from bundler.builtin.llamacpp.fingerprinting import asked_as_a_server, top_bounds
from bundler.builtin.llamacpp.prompts import template_sha256
from bundler.builtin.llamacpp.session import adapters_of, open_context, open_model
from bundler.errors import DamagedError, ProofFailed
from bundler.station.likelihoods import FingerprintUnusable, Likelihoods, read_likelihoods

SECONDS = 120.0


def recheck_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return the bounds at the sampled positions, and over all windows that were run.

    Arguments: model, fingerprint, title, kv_cache, adapters, sample_positions, seconds, threads (0: as proved).
    """
    where = str(arguments["title"])
    try:
        known = read_likelihoods(Path(arguments["fingerprint"]))
    except FingerprintUnusable as error:
        raise DamagedError(f"the fingerprint {error}", where=where) from error
    places = [int(place) for place in arguments["sample_positions"]]
    if any(not 0 <= place < known.positions for place in places):
        raise DamagedError("the fingerprint lacks positions that the manifest names", where=where)
    with ExitStack() as stack:
        model = stack.enter_context(
            open_model(
                Path(arguments["model"]), gpu=False, title=where, adapters=adapters_of(arguments)
            )
        )
        if model.vocabulary != known.vocabulary:
            raise ProofFailed(
                f"the model knows {model.vocabulary} tokens, the one that it was made from "
                f"{known.vocabulary}: the fingerprint is another model's",
                where=where,
            )
        context = stack.enter_context(
            open_context(
                model, context_tokens=known.window_tokens, batch_tokens=known.window_tokens,
                kv_cache=str(arguments["kv_cache"]), threads=int(arguments.get("threads", 0)),
            )
        )  # fmt: skip
        found = _bounds(context, known, places, float(arguments.get("seconds", SECONDS)), report)
        return {**found, "template_sha256": template_sha256(model)}


def _bounds(
    context: Any, known: Likelihoods, places: list[int], seconds: float, report: Any
) -> dict[str, Any]:
    begun = time.monotonic()
    first = sorted({place // known.rows for place in places})
    order = [*first, *(n for n in range(known.windows) if n not in first)]
    sample: dict[int, float] = {}
    sums: list[float] = []
    for done, window in enumerate(order):
        if done >= len(first) and time.monotonic() - begun > seconds:
            break
        model = _log_probabilities(context, known, window)
        rows = [place for place in places if place // known.rows == window]
        sample |= {
            place: asked_as_a_server(known.likely(place), model[place % known.rows])
            for place in rows
        }
        part = slice(window * known.rows * known.top, (window + 1) * known.rows * known.top)
        ids = np.array(known.ids[part], np.int64).reshape(known.rows, known.top)
        log_p = np.array(known.logprobs[part], np.float64).reshape(known.rows, known.top)
        sums.append(float(top_bounds(ids, log_p, model).mean()))
        report((done + 1) * known.window_tokens, len(order) * known.window_tokens, "tokens")
    return {
        "sample_bounds": [sample[place] for place in places],
        "bound_mean": sum(sums) / len(sums),
        "windows": len(sums),
    }


def _log_probabilities(context: Any, known: Likelihoods, window: int) -> Any:
    start = window * known.window_tokens
    context.clear()
    context.decode(list(known.tokens[start : start + known.window_tokens]), logits_from=known.first)
    return log_softmax(checked(context.logits(known.rows + 1)[:-1], "the model"))
