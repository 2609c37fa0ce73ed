"""The job that makes a reshaped model: read, change, write, check. Runs only in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.allocation.matrices import Weights
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.builtin.llamacpp.reshaping.changes import Reshaping
from bundler.builtin.llamacpp.reshaping.record import Scaled
from bundler.builtin.llamacpp.reshaping.rewriting import rewrite
from bundler.builtin.llamacpp.reshaping.rotating import rotation
from bundler.builtin.llamacpp.reshaping.scaling import scaling
from bundler.builtin.llamacpp.reshaping.wiring import Wiring, wiring_of

DEFAULT_SEED = 1


def reshape_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: write a scaled or rotated model; returns `size_bytes` and `scaled`.

    Arguments: model, output, way ("scale" or "rotate"), seed, imatrix (to scale), probe_type.

    Raises:
        RecipeError: the model cannot be reshaped, with every reason.
        UnsafeInput: its weights are not all finite numbers.
    """
    weights = Weights(Path(arguments["model"]))
    wiring = wiring_of(weights.header)
    weights.check_finite()
    reshaping, scaled = _reshaping(weights, wiring, arguments, report)
    size = rewrite(weights, reshaping, Path(arguments["output"]), report)
    return {"size_bytes": size, "scaled": [one.model_dump(mode="json") for one in scaled]}


def _reshaping(
    weights: Weights, wiring: Wiring, arguments: Mapping[str, Any], report: Any
) -> tuple[Reshaping, list[Scaled]]:
    if arguments["way"] == "rotate":
        gains = {norm: weights.matrix(norm).read(slice(None)).reshape(-1) for norm in wiring.norms}
        return rotation(wiring, gains, seed=int(arguments.get("seed", DEFAULT_SEED))), []
    native.llama()  # ggml's rounding
    means = read_imatrix(Path(arguments["imatrix"]))
    return scaling(weights, wiring, means, str(arguments["probe_type"]), report)
