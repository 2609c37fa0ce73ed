"""A model held against the fingerprint of the unquantized one, through its server.

The build asked its own model for the 64 likeliest tokens after some positions of the held-out text
and noted how far they are from the reference's, at least. The server here is asked the same; what
it is found to diverge must be what was noted, position by position. Better is as wrong as worse:
then it is another model.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundler.station.likelihoods import (
    LIKELIEST,
    MOST_FILE_BYTES,
    FingerprintUnusable,
    Likelihoods,
    decoded,
    least_divergence,
)
from bundler.station.problems import ModelUnavailable
from bundler.station.relay import Endpoint, ask_json

SECONDS = 120.0
"""After which no further position is asked."""
LEAST_POSITIONS = 8
MOST_POSITIONS = 256
STEP_SECONDS = 300.0
SPREAD_SHARE = 0.25
SPREAD_NATS = 0.001
"""Mean distance of the bounds now and then: a quarter of what they are, and a thousandth. See
docs/decisions/0019-a-fingerprint-of-the-reference.md for what was measured."""


def allowed_spread(expected: Sequence[float]) -> float:
    """Return how far bounds may be from those of then, on average, in nats."""
    return SPREAD_NATS + SPREAD_SHARE * math.fsum(expected) / len(expected)


def judged_bounds(expected: Sequence[float], found: Sequence[float]) -> tuple[bool, str]:
    """Return the verdict on bounds then and now, in words.

    >>> judged_bounds([0.01, 0.02], [0.0101, 0.0199])[0]
    True
    >>> judged_bounds([0.01, 0.02], [0.001, 0.0002])[0]
    False
    """
    count = len(found)
    pairs = list(zip(expected, found, strict=True))
    spread, most = math.fsum(abs(a - b) for a, b in pairs) / count, allowed_spread(expected)
    words = (
        f"at {count} places of a known text it diverges from the unquantized model by at least "
        f"{math.fsum(found) / count:.5f} nats (then {math.fsum(expected) / count:.5f}; "
        f"{spread:.5f} apart on average, at most {most:.5f} is allowed)"
    )
    # Written so that a figure that is none does not pass.
    return spread <= most, words


async def recheck(
    root: Path, endpoint: Endpoint, known: Mapping[str, Any], template_sha256: str = ""
) -> tuple[bool, str]:
    """Ask a server what the build asked its model, and judge it; pass and words.

    Raises ModelUnavailable when it gives no probabilities.
    """
    try:
        fingerprint, places, expected = _wanted(root, known)
    except FingerprintUnusable as error:
        return False, f"the fingerprint of the unquantized model {error}"
    if template_sha256 and not await _same_template(endpoint, template_sha256):
        return False, "its chat template is not the one that it was made with"
    begun, found = time.monotonic(), list[float]()
    for place in places:
        if len(found) >= LEAST_POSITIONS and time.monotonic() - begun > SECONDS:
            break
        try:
            reference = fingerprint.likely(place)
        except FingerprintUnusable as error:
            return False, f"the fingerprint of the unquantized model is damaged: {error}"
        found.append(
            least_divergence(reference, await _likely(endpoint, fingerprint.before(place)))
        )
    return judged_bounds(expected[: len(found)], found)


def _wanted(root: Path, known: Mapping[str, Any]) -> tuple[Likelihoods, list[int], list[float]]:
    """Return the fingerprint, the positions to ask and the bounds that were noted.

    Raises FingerprintUnusable.
    """
    places, bounds = known.get("sample_positions"), known.get("sample_bounds")
    if not (
        isinstance(places, list) and isinstance(bounds, list)
        and 0 < len(places) == len(bounds) <= MOST_POSITIONS
        and all(type(n) is int for n in places)
        and all(type(b) in (int, float) and 0 <= b < 1e6 for b in bounds)
    ):  # fmt: skip
        raise FingerprintUnusable("has a record in the manifest that cannot be read")
    data = _bytes_of(root, str(known.get("file", "")))
    if hashlib.sha256(data).hexdigest() != known.get("sha256"):
        raise FingerprintUnusable("is not the one that the manifest names")
    found = decoded(data)
    if not all(0 <= place < found.positions for place in places):
        raise FingerprintUnusable("does not have the positions that the manifest names")
    return found, places, [float(bound) for bound in bounds]


def _bytes_of(root: Path, name: str) -> bytes:
    folder = (root / "proofs").resolve()
    path = (root / name).resolve()
    if not name or path.parent != folder:
        raise FingerprintUnusable("does not lie where one belongs")
    try:
        with path.open("rb") as file:
            return file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise FingerprintUnusable(f"cannot be read: {error.strerror or error}") from error


async def _same_template(endpoint: Endpoint, sha256: str) -> bool:
    status, answer = await ask_json(endpoint, "GET", "/props", None, STEP_SECONDS)
    template = answer.get("chat_template") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(template, str):
        raise ModelUnavailable(f"Its server does not say its chat template (status {status}).")
    return hashlib.sha256(template.encode()).hexdigest() == sha256


async def _likely(endpoint: Endpoint, tokens: list[int]) -> dict[int, float]:
    """Return what a server finds likely after tokens. Raises ModelUnavailable."""
    body = {
        "prompt": tokens, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0,
        "cache_prompt": True,
    }  # fmt: skip
    status, answer = await ask_json(endpoint, "POST", "/completion", body, STEP_SECONDS)
    try:
        (first, *_) = answer["completion_probabilities"]
        likely = {int(one["id"]): float(one["logprob"]) for one in first["top_logprobs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"Its server gave no probabilities (status {status}).") from error
    if not likely or not all(math.isfinite(v) and v <= 1e-3 for v in likely.values()):
        raise ModelUnavailable("Its server gave probabilities that are none.")
    return likely
