"""A model's long answers against the control's: what it does that the unquantized one does not. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bundler.builtin.llamacpp.long_answers.asking import ENTROPY_EVERY
from bundler.builtin.llamacpp.long_answers.loops import loop_period, repetition
from bundler.proof import LongAnswers, Repetitiveness

_CONFIDENCE = 0.95
_ENDS_TOKENS = 256
"""Entropy is compared between the first and the last of so many tokens."""
Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def compared(model: Mapping[str, Any], control: Mapping[str, Any]) -> LongAnswers:
    """Return the verdict on the answers of two runs of `asking.ask_job` to the same questions.

    Answers are paired by question and seed. What one of both had no time for is left out, and of an
    answer that was cut off by the clock only as much counts as both have written.
    """
    theirs = {_key(answer): answer for answer in control["answers"]}
    pairs = [_alike(a, theirs[_key(a)]) for a in model["answers"] if _key(a) in theirs]
    loops = [tuple(loop_period(np.asarray(s["tokens"])) > 0 for s in pair) for pair in pairs]
    new = sum(mine and not its for mine, its in loops)
    gone = sum(its and not mine for mine, its in loops)
    return LongAnswers(
        answers=len(pairs),
        most_tokens=int(model["most_tokens"]),
        sampling={k: v for k, v in model["sampling"].items() if k != "source"},
        sampling_source=str(model["sampling"]["source"]),
        new_loops=new,
        loops_gone=gone,
        new_loops_p_value=at_least_so_many(new, new + gone),
        model=_summary([a for a, _ in pairs]),
        control=_summary([b for _, b in pairs]),
    )


def _key(answer: Mapping[str, Any]) -> tuple[int, int]:
    return int(answer["question"]), int(answer["seed"])


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pair:
    """Cut both answers to what both had time for."""
    cut = [len(side["tokens"]) for side in (one, other) if side["out_of_time"]]
    if not cut:
        return one, other
    return _first(one, min(cut)), _first(other, min(cut))


def _first(answer: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    if len(answer["tokens"]) <= most:
        return answer
    entropies = answer["entropies"][: -(-most // ENTROPY_EVERY)]
    return {**answer, "tokens": answer["tokens"][:most], "entropies": entropies, "ended": False}


def _summary(answers: Sequence[Mapping[str, Any]]) -> Repetitiveness:
    found = [repetition(answer["tokens"]) for answer in answers]
    each = _ENDS_TOKENS // ENTROPY_EVERY
    return Repetitiveness(
        tokens=sum(len(answer["tokens"]) for answer in answers),
        looped=sum(bool(one.loop_period_tokens) for one in found),
        ended_by_themselves=sum(bool(answer["ended"]) for answer in answers),
        repeated_share=_mean(one.repeated_share for one in found),
        distinct_pairs=_mean(one.distinct_pairs for one in found),
        compression_ratio=_mean(one.compression_ratio for one in found),
        entropy_first=_mean(_mean(answer["entropies"][:each]) for answer in answers),
        entropy_last=_mean(_mean(answer["entropies"][-each:]) for answer in answers),
    )


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return float(np.mean(given)) if given else 0.0


def at_least_so_many(new: int, discordant: int) -> float:
    """Return the one-sided p-value of McNemar's exact test.

    It is how often a fair coin gives `new` heads or more in `discordant` throws.

    >>> at_least_so_many(0, 0), at_least_so_many(5, 5)
    (1.0, 0.03125)
    """
    total = sum(math.comb(discordant, heads) for heads in range(new, discordant + 1))
    return float(total / 2**discordant)


def least_visible_share(answers: int) -> float:
    """Return the share of new loops that so many answers would very likely (95 %) have shown.

    If each answer loops with this probability, the chance to see none is 5 %.

    >>> round(least_visible_share(8), 2)
    0.31
    """
    return 1.0 - (1.0 - _CONFIDENCE) ** (1.0 / answers) if answers else 1.0


def answers_needed(share: float) -> int:
    """Return how many answers show a share of new loops with 95 % certainty.

    >>> answers_needed(0.1)
    29
    """
    return math.ceil(math.log(1.0 - _CONFIDENCE) / math.log1p(-share)) if 0 < share < 1 else 1
