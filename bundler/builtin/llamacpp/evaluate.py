"""Perplexity of a model, and its divergence from the unquantized one, on held-out text.

Runs only in a child process. As in llama-perplexity the text is cut into windows and the second
half of each is scored, so that every scored token has some context. Both models are open at once
and go through the text window by window where memory allows; otherwise the reference goes first
and leaves its logits on disk, whole (float32): both ways give the same figures to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.divergence import Scores
from bundler.builtin.llamacpp.session import (
    Context,
    adapters_of,
    open_context,
    open_model,
    require_placement,
)
from bundler.builtin.llamacpp.texts import Texts, windows
from bundler.errors import RecipeError
from bundler.store import full_disk_is_an_error, hash_file

Logits = npt.NDArray[np.float32]
Windows = Sequence[Sequence[int]]
_MARGIN = 1.15
"""Two models side by side need their files' sizes and about this much more (buffers, KV cache)."""


def evaluate_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return the figures of a `proof.Quality`.

    Arguments: model, reference (or none), text, window_tokens, tokens, kv_cache, gpu, scratch,
    gpu_layers, adapters (the reference gets both too), mode ("auto", "lockstep" or "two-pass").
    """
    model_path = Path(arguments["model"])
    reference_path = Path(arguments["reference"]) if arguments.get("reference") else None
    text = Path(arguments["text"])
    texts = {arguments.get("text_name", text.name): text}
    window = int(arguments["window_tokens"])
    most = max(1, int(arguments["tokens"]) // window)
    gpu = bool(arguments["gpu"])
    settings = {
        "kv_cache": arguments["kv_cache"], "gpu": gpu, "window": window,
        "gpu_layers": int(arguments.get("gpu_layers", -1)), "adapters": adapters_of(arguments),
    }  # fmt: skip
    scores = Scores()
    if reference_path is None:
        mode = "alone"
        count = _alone(model_path, texts, most, settings, scores, report)
    else:
        mode = _mode(arguments.get("mode", "auto"), model_path, reference_path, gpu)
        run = _lockstep if mode == "lockstep" else _two_pass
        count = run(
            model_path, reference_path, texts, most, settings, scores, report,
            Path(arguments["scratch"]),
        )  # fmt: skip
    return {
        **scores.summary(),
        "context_tokens": window,
        "windows": count,
        "mode": mode,
        "text_sha256": hash_file(text),
    }


def _mode(asked: str, model: Path, reference: Path, gpu: bool) -> str:
    """Choose lockstep when both models fit side by side in what is free now."""
    if asked != "auto":
        return asked
    free = psutil.virtual_memory().available
    if gpu:
        free = sum(device.free_bytes for device in native.best_devices())
    needed = _MARGIN * (model.stat().st_size + reference.stat().st_size)
    return "lockstep" if needed < free else "two-pass"


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


def _lockstep(
    model: Path, reference: Path, texts: Texts, most: int, settings: Mapping[str, Any],
    scores: Scores, report: Any, _scratch: Path,
) -> int:  # fmt: skip
    with ExitStack() as stack:
        # The reference keeps an F16 KV cache: what a quantized cache costs is part of the damage.
        base = _Side(stack, reference, "f16", settings, "reference.gguf")
        side = _Side(stack, model, settings["kv_cache"], settings)
        parts = base.windows(texts, settings, most)
        _same_tokens(parts, side.windows(texts, settings, most))
        for number, part in enumerate(parts):
            scores.add(base.second_half(part), side.second_half(part), _following(part))
            _tell(report, number + 1, len(parts), settings)
    return len(parts)


def _two_pass(
    model: Path, reference: Path, texts: Texts, most: int, settings: Mapping[str, Any],
    scores: Scores, report: Any, scratch: Path,
) -> int:  # fmt: skip
    with (
        full_disk_is_an_error(scratch, "the reference model's logits"),
        tempfile.TemporaryFile(dir=scratch) as stream,
    ):
        with ExitStack() as stack:
            base = _Side(stack, reference, "f16", settings, "reference.gguf")
            parts = base.windows(texts, settings, most)
            for number, part in enumerate(parts):
                stream.write(base.second_half(part).tobytes())
                _tell(report, number + 1, 2 * len(parts), settings)
            vocabulary = base.model.vocabulary
        stream.seek(0)
        with ExitStack() as stack:
            side = _Side(stack, model, settings["kv_cache"], settings)
            _same_tokens(parts, side.windows(texts, settings, most))
            for number, part in enumerate(parts):
                following = _following(part)
                kept = np.frombuffer(stream.read(4 * following.size * vocabulary), np.float32)
                scores.add(
                    kept.reshape(following.size, vocabulary), side.second_half(part), following
                )
                _tell(report, len(parts) + number + 1, 2 * len(parts), settings)
    return len(parts)


def _same_tokens(reference: Windows, model: Windows) -> None:
    if [list(part) for part in reference] != [list(part) for part in model]:
        raise RecipeError(
            "the model and its reference cut the text into different tokens: they are no pair",
            hint="compare a model only with the one that it was made from",
        )


def _tell(report: Callable[..., None], done: int, total: int, settings: Mapping[str, Any]) -> None:
    report(done * settings["window"], total * settings["window"], "tokens")
