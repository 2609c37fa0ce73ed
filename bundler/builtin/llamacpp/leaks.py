"""Held-out text that was calibrated on: figures on it flatter. Found by runs of words in common."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bundler.errors import RecipeError

RUN_WORDS = 13
"""As GPT-3's authors did (arXiv 2005.14165, appendix C): shorter runs are common speech."""
WARN_SHARE = 0.01
REFUSE_SHARE = 0.3
_MOST_BYTES = 64 << 20
_WORD = re.compile(r"\w+")


def shared_runs(calibration: Path, heldout: Path) -> float:
    """Return the share of the held-out text's runs of 13 words that the calibration text has, too.

    Each run counts once: a frame around every question ("answer from the passages…") is no leak.
    """
    known, asked = set(_runs(calibration)), set(_runs(heldout))
    return len(asked & known) / len(asked) if asked else 0.0


def with_known_runs(calibration: Path, texts: Iterable[str]) -> list[bool]:
    """Tell of each text whether a run of 13 of its words is in the calibration text.

    One with fewer words has no such run: what short texts share is common speech.
    """
    known = set(_runs(calibration))
    return [not known.isdisjoint(_runs_of(text)) for text in texts]


def _runs(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        return _runs_of(stream.read(_MOST_BYTES).decode("utf-8", "replace"))


def _runs_of(text: str) -> Iterator[bytes]:
    words = _WORD.findall(text.casefold())
    for first in range(len(words) - RUN_WORDS + 1):
        run = " ".join(words[first : first + RUN_WORDS])
        yield hashlib.blake2b(run.encode(), digest_size=8).digest()


def leak_notes(inputs: Mapping[str, Path]) -> list[str]:
    """Return what a proof has to say of texts that overlap; nothing where only one is known.

    Raises:
        RecipeError: so much of the held-out text was calibrated on that its figures mean nothing.
    """
    if "calibration.txt" not in inputs or "heldout.txt" not in inputs:
        return []
    share = shared_runs(inputs["calibration.txt"], inputs["heldout.txt"])
    said = f"{100 * share:.1f} % of the held-out text is in the calibration text"
    if share > REFUSE_SHARE:
        raise RecipeError(
            f"leaked calibration text: {said}, so what is measured on it says nothing",
            where="verify.heldout",
            hint="name another text as verify.heldout or as verify.calibration",
        )
    return [f"leaked calibration text: {said}; the figures flatter"] if share > WARN_SHARE else []
