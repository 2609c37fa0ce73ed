"""Make one way of reshaping a model and see that it is the same function; all in child processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.reshaping.record import Sameness, Scaled, Way

JOBS = "bundler.builtin.llamacpp"
# Our own threads work on several matrices at once. NumPy's would spin while they wait for each other:
# on a busy machine a correction was seen to take twenty times as long with two of them.
_ONE_EACH = {"OPENBLAS_NUM_THREADS": "1"}
SEED = 1


@dataclass(frozen=True)
class Reshaped:
    """A reshaped model that was checked."""

    path: Path
    sameness: Sameness
    scaled: tuple[Scaled, ...]
    seed: int | None


@dataclass(frozen=True)
class Jobs:
    """Where child processes work, and what they calibrate with."""

    text: Path
    """The importance matrix is made of it, and the function is checked on it."""
    folder: Path
    environment: Mapping[str, str]
    window_tokens: int = 512
    calibration_tokens: int = 65_536
    progress: Callable[..., None] | None = None

    def run(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one job of the engine."""
        return dict(
            run_child(
                f"{JOBS}.{name}",
                arguments,
                environment={**_ONE_EACH, **self.environment},
                progress=self.progress,
            )
        )

    def calibrate(self, model: Path, name: str) -> Path:
        """Return an importance matrix of a model."""
        output = self.folder / f"{name.replace('+', '-')}-imatrix.gguf"
        self.run("calibrate:calibrate_job", {
            "model": str(model), "texts": {self.text.name: str(self.text)}, "output": str(output),
            "context_tokens": self.window_tokens,
            "chunks": max(1, self.calibration_tokens // self.window_tokens),
        })  # fmt: skip
        return output

    def reshape(self, model: Path, way: Way, probe_type: str, *, seed: int = SEED) -> Reshaped:
        """Make a way's parts one after the other, and check the whole.

        Raises:
            RecipeError: the model cannot be reshaped.
            ProofFailed: what came out is not the same function.
        """
        source = model
        scaled: tuple[Scaled, ...] = ()
        for part in way.split("+"):
            made = self.folder / f"{way.replace('+', '-')}-after-{part}.gguf"
            imatrix = self.calibrate(source, f"{way}-{part}") if part == "scale" else None
            facts = self.run("reshaping.making:reshape_job", {
                "model": str(source), "output": str(made), "way": part, "seed": seed,
                "imatrix": str(imatrix) if imatrix else None, "probe_type": probe_type,
            })  # fmt: skip
            if source != model:
                source.unlink()
            source = made
            scaled = scaled or tuple(Scaled(**one) for one in facts["scaled"])
        same = self.run("reshaping.checking:check_job", {
            "model": str(source), "original": str(model), "text": str(self.text),
            "scratch": str(self.folder),
        })  # fmt: skip
        return Reshaped(
            source, Sameness(**same), scaled, seed if "rotate" in way.split("+") else None
        )
