"""Hold a reshaped model's logits to the original's, both run by llama.cpp in single precision.

Runs only in a child process. The original's weights are widened to F32 for it: with F16 weights
llama.cpp rounds every activation to F16 on the way, which is a thousand times what is looked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp.allocation.matrices import Weights
from bundler.builtin.llamacpp.reshaping.record import Sameness
from bundler.builtin.llamacpp.reshaping.rewriting import UNCHANGED, rewrite
from bundler.builtin.llamacpp.session import open_context, open_model
from bundler.builtin.llamacpp.texts import windows
from bundler.errors import ProofFailed

LIMIT = 1e-4
WINDOWS = 4
WINDOW_TOKENS = 128

Logits = npt.NDArray[np.float32]


def check_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: return a `Sameness`.

    Arguments: model, original, text, scratch (a folder), limit.

    Raises:
        ProofFailed: the logits differ by more than the limit.
    """
    text = Path(arguments["text"])
    with tempfile.TemporaryDirectory(dir=arguments["scratch"]) as folder:
        widened = Path(folder) / "original.gguf"
        rewrite(Weights(Path(arguments["original"])), UNCHANGED, widened, lambda *_: None)
        report(1, 3, "models")
        before = _all_logits(widened, text)
    report(2, 3, "models")
    after = _all_logits(Path(arguments["model"]), text)
    report(3, 3, "models")
    found = compare(before, after, float(arguments.get("limit", LIMIT)))
    if not found.holds:
        raise ProofFailed(
            f"the reshaped model is not the same function: a logit moved by {found.worst:.2g} of its "
            f"row's spread over {found.tokens} tokens, at most {found.limit:.0e} may be rounding",
            where=Path(arguments["model"]).name,
            hint='leave it as it is (reshape = "off"), and report this: it is a fault of bundler',
        )
    return found.model_dump(mode="json")


def compare(before: Sequence[Logits], after: Sequence[Logits], limit: float = LIMIT) -> Sameness:
    """Compare logits row by row, each less its mean: a shift of a whole row changes no prediction."""
    worst, squares, count, tokens = 0.0, 0.0, 0, 0
    for old, new in zip(before, after, strict=True):
        base, other = _centred(old), _centred(new)
        spread = np.maximum(base.std(axis=1, keepdims=True), 1e-12)
        difference = (other - base) / spread
        # A NaN compares as neither more nor less: it must not pass as "not more".
        largest = float(np.abs(difference).max())
        worst = max(worst, largest) if np.isfinite(largest) else float("inf")
        squares += float((difference**2).sum()) if np.isfinite(largest) else float("inf")
        count, tokens = count + difference.size, tokens + len(difference)
    typical = float(np.sqrt(squares / max(1, count)))
    return Sameness(worst=worst, typical=typical, tokens=tokens, limit=limit)


def _centred(logits: Logits) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    centred: npt.NDArray[np.float64] = wide - wide.mean(axis=1, keepdims=True)
    return centred


def _all_logits(path: Path, text: Path) -> list[Logits]:
    with (
        open_model(path, gpu=False) as model,
        open_context(
            model, context_tokens=WINDOW_TOKENS, batch_tokens=WINDOW_TOKENS, kv_cache="f32",
            flash_attention="off",
        ) as context,
    ):  # fmt: skip
        found = []
        for window in windows(model, {text.name: text}, window_tokens=WINDOW_TOKENS, most=WINDOWS):
            context.clear()
            context.decode(window, logits_from=0)
            found.append(context.logits(len(window)).copy())
    return found
