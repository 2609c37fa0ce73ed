"""Whether a model is reshaped before it is quantized, and how: tried, measured, and mostly left alone.

Each way is taken only where it helps: the channels must be uneven to begin with, the changed model
must be the same function, and its quantized form must be better than that of the model as it was by
more than both measurements are uncertain, without being larger. Measured on calibration text, never
on what scores the final model. All heavy work is done in child processes.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler.builtin.llamacpp.reshaping.record import Decision, Trial, Way
from bundler.builtin.llamacpp.reshaping.trying import Jobs, Reshaped
from bundler.builtin.llamacpp.reshaping.wiring import refusals, wiring_of
from bundler.builtin.llamacpp.schemes import scheme_named
from bundler.errors import RecipeError
from bundler.inspection import UNEVEN_RATIO
from bundler.store import hash_file
from bundler.weights.gguf import read_gguf_file

STANDARD_ERRORS = 2.0
"""By how many standard errors of the difference a way must be better: the best of several trials is
flattered by chance."""
WAYS: tuple[Way, ...] = ("scale", "rotate", "rotate+scale")
MEASURED_SHARE = 0.3
"""The last part of the calibration text, which no importance matrix sees, measures the ways."""
GROWTH = 1.01
"""A way may make the quantized file larger by this. A rotated model needs an output matrix of its own
where the embedding was both: those bytes would be worth more as bits."""
_BESIDE = {
    "adapter": "a LoRA adapter goes with it, which was made for the model as it was",
    "projector": "a projector goes with it, which writes into the residual stream",
}


@dataclass(frozen=True)
class Trying:
    """What is given to a decision."""

    model: Path
    """As it was converted, in floats."""
    calibration: Path
    quant: str
    environment: Mapping[str, str]
    folder: Path
    """Where intermediate files go: each takes four bytes for every weight."""
    window_tokens: int = 512
    calibration_tokens: int = 65_536
    measured_tokens: int = 8_192
    growth: float = GROWTH
    progress: Callable[..., None] | None = None
    beside: Sequence[str] = ()
    """What goes with the model: `adapter`, `projector`."""


def decide(trying: Trying, output: Path, ways: Sequence[Way] = WAYS) -> Decision:
    """Try ways to reshape a model; leave the best at `output` if it helps, else nothing.

    Raises:
        RecipeError: the calibration text is too short to be divided.
        ProofFailed: a reshaped model is not the same function: a fault of ours, never passed over.
    """
    reason = why_not(trying.model, trying.beside)
    if reason:
        return Decision(way="off", reason=reason, outlier_ratio=0.0, outlier_site="")
    with tempfile.TemporaryDirectory(dir=trying.folder, prefix="reshaping-") as name:
        return _Work(trying, Path(name)).decide(output, ways)


def why_not(model: Path, beside: Sequence[str] = ()) -> str:
    """Return why a model cannot be reshaped, or nothing."""
    reasons = [_BESIDE[kind] for kind in dict.fromkeys(beside)]
    reasons += refusals(read_gguf_file(model, where="model.gguf"))
    return "; ".join(reasons)


class _Work:
    """One decision's intermediate files."""

    def __init__(self, trying: Trying, folder: Path) -> None:
        self._given = trying
        self._folder = folder
        front, self._back = divide_text(trying.calibration, folder)
        self._jobs = Jobs(
            front, folder, trying.environment, trying.window_tokens, trying.calibration_tokens,
            trying.progress,
        )  # fmt: skip

    def decide(self, output: Path, ways: Sequence[Way]) -> Decision:
        model = self._given.model
        imatrix = self._jobs.calibrate(model, "original")
        ratio, site = outlier_ratio(model, imatrix)
        text, rounded = hash_file(self._back), round(ratio, 3)
        if ratio < UNEVEN_RATIO:
            reason = (
                f"its channels are even: the worst is {ratio:.1f} times the median one ({site}), "
                f"and under {UNEVEN_RATIO:g} nothing is to be gained"
            )
            return Decision(
                way="off", reason=reason, outlier_ratio=rounded, outlier_site=site, text_sha256=text
            )
        trials = [self._measure("off", model, imatrix)]
        made: dict[Way, Reshaped] = {}
        for way in ways:
            made[way] = self._jobs.reshape(model, way, scheme_named(self._given.quant).base_type)
            trials.append(self._try(way, made[way]))
        best, reason = choose(trials, self._given.growth)
        if best != "off":
            shutil.move(made[best].path, output)
        return Decision(
            way=best, reason=reason, outlier_ratio=rounded, outlier_site=site, text_sha256=text,
            trials=tuple(trials),
        )  # fmt: skip

    def _try(self, way: Way, made: Reshaped) -> Trial:
        trial = self._measure(way, made.path, self._jobs.calibrate(made.path, way))
        return trial.model_copy(
            update={"sameness": made.sameness, "scaled": made.scaled, "seed": made.seed}
        )

    def _measure(self, way: Way, model: Path, imatrix: Path) -> Trial:
        given, quantized = self._given, self._folder / "quantized.gguf"
        made = self._jobs.run("quantize:quantize_job", {
            "model": str(model), "imatrix": str(imatrix), "output": str(quantized),
            "quant": given.quant, "allow_fallback": True,
        })  # fmt: skip
        found = self._jobs.run("evaluate:evaluate_job", {
            "model": str(quantized), "reference": str(given.model), "text": str(self._back),
            "window_tokens": given.window_tokens, "tokens": given.measured_tokens,
            "kv_cache": "f16", "gpu": False, "scratch": str(self._folder),
        })  # fmt: skip
        quantized.unlink()
        kept = ("kld_mean", "kld_standard_error", "top1_agreement", "perplexity")
        return Trial(
            way=way, quant=given.quant, size_bytes=made["size_bytes"],
            **{name: found[name] for name in kept},
        )  # fmt: skip


def choose(trials: Sequence[Trial], growth: float = GROWTH) -> tuple[Way, str]:
    """Return the way to take among trials, the first of which is the model left alone, and why."""
    plain = trials[0]
    fitting = [trial for trial in trials[1:] if trial.size_bytes <= plain.size_bytes * growth]
    larger = [trial.way for trial in trials[1:] if trial not in fitting]
    aside = f" ({', '.join(larger)} would make it larger)" if larger else ""
    best = min(fitting, key=lambda trial: trial.kld_mean, default=plain)
    if best is plain:
        return "off", f"no way keeps its size{aside}"
    drop = plain.kld_mean - best.kld_mean
    noise = STANDARD_ERRORS * math.hypot(plain.kld_standard_error, best.kld_standard_error)
    said = (
        f"{plain.quant} diverges by {plain.kld_mean:.5f} as it is and by {best.kld_mean:.5f} with "
        f"{best.way!r}"
    )
    if drop > noise:
        return best.way, f"{said}: better by {drop:.5f}, the noise is {noise:.5f}{aside}"
    return "off", f"{said}: not better by more than the noise of {noise:.5f}, so left alone{aside}"


def outlier_ratio(model: Path, imatrix: Path) -> tuple[float, str]:
    """Return the worst channel's root mean square over the median one's, and where that is.

    Only of inputs that a way could change; a mixture's experts count one by one.
    """
    import numpy as np

    from bundler.builtin.llamacpp.imatrix import read_imatrix

    header = read_gguf_file(model, where="model.gguf")
    lengths = {
        name: tensor_shape[-1]
        for name, tensor_shape in wiring_of(header).shapes.items()
        if len(tensor_shape) > 1
    }
    readers = {name for site in wiring_of(header).sites for name in site.readers}
    worst, where = 0.0, ""
    for name, means in read_imatrix(imatrix).items():
        if name not in readers:
            continue
        rows = np.sqrt(means.reshape(-1, lengths.get(name, means.size)))
        ratio = float((rows.max(axis=1) / np.maximum(np.median(rows, axis=1), 1e-30)).max())
        if ratio > worst:
            worst, where = ratio, name
    return worst, where


def divide_text(text: Path, folder: Path) -> tuple[Path, Path]:
    """Cut a calibration text at the end of a line or a word: what calibrates, and what measures.

    Raises:
        RecipeError: there are not two parts.
    """
    raw = text.read_bytes()
    most = int(len(raw) * (1 - MEASURED_SHARE))
    at = (raw.rfind(b"\n", most // 2, most) + 1) or (raw.rfind(b" ", 0, most) + 1)
    if not raw[:at].strip() or not raw[at:].strip():
        raise RecipeError(
            "is too short to calibrate with one part and measure with the other",
            where=text.name, hint="give some pages of text",
        )  # fmt: skip
    parts = folder / "calibrating.txt", folder / "measuring.txt"
    for path, part in zip(parts, (raw[:at], raw[at:]), strict=True):
        path.write_bytes(part)
    return parts
