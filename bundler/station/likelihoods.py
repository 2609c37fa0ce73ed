"""The fingerprint of a reference: what the unquantized model found likely, position by position.

It comes with a bundle, so that a model can be held against the unquantized one where that is not.
A file, all little-endian, sizes exact, nothing behind the end::

    8 bytes   BDLTOPK1
    5 x u32   vocabulary, windows, window_tokens, first, top
    32 bytes  SHA-256 of the reference model's file
    32 bytes  SHA-256 of the text
    u32       tokens of the windows, one window after the other
    u32       ids of the `top` likeliest tokens of each scored position, likeliest first
    f32       their natural log-probabilities, in the same order

Scored are the positions `first` to `window_tokens - 2` of each window: what is likely after them.
Standard library only: it is read where a bundle is used.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

MOST_FILE_BYTES = 64 << 20
_MAGIC = b"BDLTOPK1"
_HEAD = struct.Struct("<8s5I32s32s")
_MOST_VOCABULARY = 1 << 22
_MOST_TOP = 4096
_LEAST_PROBABILITY = 1e-6
"""Of the rest under the model in question: sums of probabilities in float32 tell no less. Taking it
for more than it is makes the divergence smaller, so the bound stays one."""
_SUM_TOLERANCE = 1e-3


class FingerprintUnusable(Exception):
    """A file is no fingerprint, or a damaged one."""


@dataclass(frozen=True)
class Likelihoods:
    """An open fingerprint."""

    vocabulary: int
    windows: int
    window_tokens: int
    first: int
    top: int
    reference_sha256: str
    text_sha256: str
    tokens: array[int]
    ids: array[int]
    logprobs: array[float]

    @property
    def rows(self) -> int:
        """Scored positions of each window."""
        return self.window_tokens - 1 - self.first

    @property
    def positions(self) -> int:
        """Scored positions of all windows."""
        return self.windows * self.rows

    def before(self, position: int) -> list[int]:
        """Return the tokens of its window up to a scored position, itself included."""
        window, row = divmod(position, self.rows)
        start = window * self.window_tokens
        return list(self.tokens[start : start + self.first + row + 1])

    def likely(self, position: int) -> dict[int, float]:
        """Return log-probabilities by token at a scored position, likeliest first.

        Raises FingerprintUnusable when they cannot be such.
        """
        part = slice(position * self.top, (position + 1) * self.top)
        found = dict(zip(self.ids[part], self.logprobs[part], strict=True))
        values = list(found.values())
        if (
            len(found) != self.top
            or not all(math.isfinite(v) and v <= 0 for v in values)
            or any(a < b for a, b in pairwise(values))
            or math.fsum(map(math.exp, values)) > 1 + _SUM_TOLERANCE
        ):
            raise FingerprintUnusable(f"position {position} holds no probabilities")
        return found


def encoded(found: Likelihoods) -> bytes:
    """Return the file of a fingerprint."""
    head = _HEAD.pack(
        _MAGIC, found.vocabulary, found.windows, found.window_tokens, found.first, found.top,
        bytes.fromhex(found.reference_sha256), bytes.fromhex(found.text_sha256),
    )  # fmt: skip
    return head + _little(found.tokens) + _little(found.ids) + _little(found.logprobs)


def _little(values: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def read_likelihoods(path: Path) -> Likelihoods:
    """Open a fingerprint's file. Raises FingerprintUnusable."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise FingerprintUnusable(f"cannot be read: {error.strerror or error}") from error
    return decoded(data)


def decoded(data: bytes) -> Likelihoods:
    """Return what a fingerprint's file holds. Raises FingerprintUnusable."""
    if len(data) > MOST_FILE_BYTES:
        raise FingerprintUnusable(f"is larger than {MOST_FILE_BYTES >> 20} MiB")
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise FingerprintUnusable("is no fingerprint of a reference")
    _, *counts, reference, text = _HEAD.unpack_from(data)
    vocabulary, windows, window_tokens, first, top = counts
    if not (
        0 < vocabulary <= _MOST_VOCABULARY and windows > 0 and first + 2 <= window_tokens
        and 0 < top <= min(vocabulary, _MOST_TOP)
    ):  # fmt: skip
        raise FingerprintUnusable("its counts cannot be right")
    rows = windows * (window_tokens - 1 - first)
    sizes = (windows * window_tokens, rows * top, rows * top)
    if len(data) != _HEAD.size + 4 * sum(sizes):
        raise FingerprintUnusable(f"has {len(data)} bytes, not as many as it says")
    tokens, ids, logprobs = array("I"), array("I"), array("f")
    at = _HEAD.size
    parts: tuple[array[int] | array[float], ...] = (tokens, ids, logprobs)
    for values, size in zip(parts, sizes, strict=True):
        values.frombytes(data[at : at + 4 * size])
        if sys.byteorder == "big":
            values.byteswap()
        at += 4 * size
    if max(tokens) >= vocabulary or max(ids) >= vocabulary:
        raise FingerprintUnusable("names tokens that its vocabulary does not have")
    return Likelihoods(
        vocabulary, windows, window_tokens, first, top, reference.hex(), text.hex(),
        tokens, ids, logprobs,
    )  # fmt: skip


def least_divergence(reference: Mapping[int, float], model: Mapping[int, float]) -> float:
    """Return what the divergence of two distributions is at least, in nats.

    Both are log-probabilities by token, of some tokens. Those that both name count one by one and
    all others together: what is put together can only look more alike (data-processing inequality).

    >>> round(least_divergence({1: -0.1, 2: -3.0}, {1: -0.2, 2: -3.0}), 3)
    0.031
    """
    both = [token for token in reference if token in model]
    p, q = [reference[t] for t in both], [model[t] for t in both]
    known = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    p_rest = max(1.0 - math.fsum(map(math.exp, p)), 0.0)
    q_rest = max(1.0 - math.fsum(map(math.exp, q)), _LEAST_PROBABILITY)
    rest = p_rest * math.log(p_rest / q_rest) if p_rest > _LEAST_PROBABILITY else 0.0
    return max(known + rest, 0.0)


def sample_positions(positions: int, rows: int) -> Sequence[int]:
    """Return which positions are asked again: of two windows far apart, evenly through each."""
    windows = positions // rows
    picked = sorted({0, windows // 2})
    step = max(1, rows // SAMPLED_PER_WINDOW)
    each = range(0, rows, step)[:SAMPLED_PER_WINDOW]
    return [window * rows + row for window in picked for row in each]


SAMPLED_PER_WINDOW = 16
LIKELIEST = 64
"""Tokens that a server is asked the likelihood of; the build asks its own model the same way."""
