"""Perplexity of a model, and its divergence from the unquantized one, on held-out text.

Runs only in a child process. As in llama-perplexity the text is cut into windows and the second
half of each is scored, so that every scored token has some context. The reference goes first and
leaves its scores on disk (`kept_scores`), where every other candidate of the model finds them; with
`mode` "lockstep" both models are open at once and nothing is kept. Both ways give the same figures
to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.divergence import Scores
from bundler.builtin.llamacpp.fingerprinting import FingerprintMaker
from bundler.builtin.llamacpp.kept_scores import (
    Kept,
    KeptFile,
    keep,
    kept_path,
    open_kept,
    write_kept,
)
from bundler.builtin.llamacpp.session import (
    Context,
    adapters_of,
    open_context,
    open_model,
    require_placement,
    usable_threads,
)
from bundler.builtin.llamacpp.texts import Texts, windows
from bundler.errors import RecipeError
from bundler.store import hash_file

Logits = npt.NDArray[np.float32]
Windows = Sequence[Sequence[int]]


def evaluate_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return the figures of a `proof.Quality`.

    Arguments: model, reference (or none), text, window_tokens, tokens, kv_cache, gpu, scratch (where
    the reference's scores are kept), gpu_layers, adapters (the reference gets both too), mode
    ("auto", "lockstep" or "two-pass", the default), tail (give `kld_p999`, too), further (give all
    figures), fingerprint (a file to leave the reference's fingerprint in; its facts are returned).
    """
    model_path = Path(arguments["model"])
    text = Path(arguments["text"])
    texts = {arguments.get("text_name", text.name): text}
    window = int(arguments["window_tokens"])
    most = max(1, int(arguments["tokens"]) // window)
    settings = {
        "kv_cache": arguments["kv_cache"], "gpu": bool(arguments["gpu"]), "window": window,
        "gpu_layers": int(arguments.get("gpu_layers", -1)), "adapters": adapters_of(arguments),
        "text_sha256": hash_file(text),
    }  # fmt: skip
    scores, more = Scores(), dict[str, Any]()
    if not arguments.get("reference"):
        mode = "alone"
        count = _alone(model_path, texts, most, settings, scores, report)
    else:
        mode = "lockstep" if arguments.get("mode") == "lockstep" else "two-pass"
        pair = Pair(model_path, Path(arguments["reference"]), texts, most, settings)
        maker = FingerprintMaker() if arguments.get("fingerprint") else None
        scores.watch = maker
        if mode == "lockstep":
            parts, vocabulary = _lockstep(pair, scores, report)
        else:
            parts, vocabulary = _two_pass(pair, scores, report, Path(arguments["scratch"]))
        count = len(parts)
        if maker is not None:
            more = maker.finish(
                Path(arguments["fingerprint"]), parts, vocabulary,
                reference_sha256=hash_file(pair.reference), text_sha256=settings["text_sha256"],
            )  # fmt: skip
    return {
        **scores.summary(),
        **_asked(arguments, scores, window),
        **more,
        "context_tokens": window,
        "windows": count,
        "mode": mode,
        "text_sha256": settings["text_sha256"],
    }


def _asked(arguments: Mapping[str, Any], scores: Scores, window: int) -> dict[str, Any]:
    """Return the figures that not every caller wants."""
    if arguments.get("further") and scores.divergences:
        return {**scores.further(), "by_position": scores.by_position(window)}
    return {"kld_p999": scores.quantile(0.999)} if arguments.get("tail") else {}


@dataclass(frozen=True)
class Pair:
    """A model, its reference, and what both are asked."""

    model: Path
    reference: Path
    texts: Texts
    most: int
    settings: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """Return all that the reference's scores depend on."""
        settings = self.settings
        return {
            "reference": hash_file(self.reference), "text": settings["text_sha256"],
            "window": settings["window"], "most": self.most, "gpu": settings["gpu"],
            "gpu_layers": settings["gpu_layers"] if settings["gpu"] else 0,
            "adapters": [[hash_file(path), scale] for path, scale in settings["adapters"]],
            "made_by": [native.fingerprint_job({}, None), usable_threads(self.reference)],
        }  # fmt: skip


class _Side:
    """One open model with a context of one window."""

    def __init__(
        self,
        stack: ExitStack,
        path: Path,
        kv_cache: str,
        settings: Mapping[str, Any],
        title: str = "model.gguf",
    ) -> None:
        layers = settings["gpu_layers"]
        self.model = stack.enter_context(
            open_model(
                path, gpu=settings["gpu"], title=title, gpu_layers=layers,
                adapters=settings["adapters"],
            )
        )  # fmt: skip
        if settings["gpu"]:
            require_placement(self.model, layers)
        window = settings["window"]
        self.context: Context = stack.enter_context(
            open_context(self.model, context_tokens=window, batch_tokens=window, kv_cache=kv_cache)
        )

    def windows(self, texts: Texts, settings: Mapping[str, Any], most: int) -> list[list[int]]:
        return windows(self.model, texts, window_tokens=settings["window"], most=most)

    def second_half(self, window: Sequence[int]) -> Logits:
        """Return the logits that predict the tokens of the window's second half (a view)."""
        first = len(window) // 2
        self.context.clear()
        self.context.decode(window, logits_from=first)
        return self.context.logits(len(window) - first)[:-1]


def _following(window: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(window[len(window) // 2 + 1 :], np.int64)


def _alone(
    model: Path, texts: Texts, most: int, settings: Mapping[str, Any],
    scores: Scores, report: Any,
) -> int:  # fmt: skip
    with ExitStack() as stack:
        side = _Side(stack, model, settings["kv_cache"], settings)
        parts = side.windows(texts, settings, most)
        for number, part in enumerate(parts):
            scores.add(None, side.second_half(part), _following(part))
            _tell(report, number + 1, len(parts), settings)
    return len(parts)


def _lockstep(pair: Pair, scores: Scores, report: Any) -> tuple[list[list[int]], int]:
    settings = pair.settings
    with ExitStack() as stack:
        # The reference keeps an F16 KV cache: what a quantized cache costs is part of the damage.
        base = _Side(stack, pair.reference, "f16", settings, "reference.gguf")
        side = _Side(stack, pair.model, settings["kv_cache"], settings)
        parts = base.windows(pair.texts, settings, pair.most)
        _same_tokens(parts, side.windows(pair.texts, settings, pair.most))
        _same_vocabulary(base.model.vocabulary, side.model.vocabulary)
        for number, part in enumerate(parts):
            following = _following(part)
            kept = keep(base.second_half(part), following)
            scores.add_kept(kept, side.second_half(part), following)
            _tell(report, number + 1, len(parts), settings)
    return parts, base.model.vocabulary


def _two_pass(
    pair: Pair, scores: Scores, report: Any, scratch: Path
) -> tuple[list[list[int]], int]:
    path = kept_path(scratch, pair.identity())
    known = open_kept(path)
    done = 0
    if known is None:
        known = _run_reference(pair, path, report)
        done = len(known.windows)
    settings, total = pair.settings, done + len(known.windows)
    with ExitStack() as stack:
        side = _Side(stack, pair.model, settings["kv_cache"], settings)
        _same_tokens(known.windows, side.windows(pair.texts, settings, pair.most))
        _same_vocabulary(known.vocabulary, side.model.vocabulary)
        for number, part in enumerate(known.windows):
            kept, following = known.read(number), _following(part)
            scores.add_kept(kept, side.second_half(part), following)
            _tell(report, done + number + 1, total, settings)
    return known.windows, known.vocabulary


def _run_reference(pair: Pair, path: Path, report: Any) -> KeptFile:
    """Run the reference over the text and keep its scores."""
    settings = pair.settings
    with ExitStack() as stack:
        base = _Side(stack, pair.reference, "f16", settings, "reference.gguf")
        parts = base.windows(pair.texts, settings, pair.most)

        def scored() -> Iterator[Kept]:
            for number, part in enumerate(parts):
                yield keep(base.second_half(part), _following(part))
                _tell(report, number + 1, 2 * len(parts), settings)

        return write_kept(path, parts, base.model.vocabulary, scored())


def _same_vocabulary(reference: int, model: int) -> None:
    if reference != model:
        raise RecipeError(
            f"the model knows {model} tokens and its reference {reference}: they are no pair",
            hint="compare a model only with the one that it was made from",
        )


def _same_tokens(reference: Windows, model: Windows) -> None:
    if [list(part) for part in reference] != [list(part) for part in model]:
        raise RecipeError(
            "the model and its reference cut the text into different tokens: they are no pair",
            hint="compare a model only with the one that it was made from",
        )


def _tell(report: Callable[..., None], done: int, total: int, settings: Mapping[str, Any]) -> None:
    report(done * settings["window"], total * settings["window"], "tokens")
