"""`bundler verify --proofs`: do the models of a bundle still do what their proofs say?

The core knows what was recorded and what may differ; an engine that can measure a model again has a
method `recheck`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundler.errors import PluginError, Problem, ProofFailed
from bundler.manifest import BundledModel, Manifest
from bundler.value import Value

if TYPE_CHECKING:
    from bundler.plugins import Plugins

SPREAD_SHARE = 0.25
SPREAD_NATS = 0.001
"""As the station has it; the reasons are in docs/decisions/0019-a-fingerprint-of-the-reference.md."""


class Rechecked(Value):
    """One model, held against its proof once more."""

    model: str
    tier: str
    positions: int
    expected: float
    """Mean of the recorded bounds at the sampled positions, in nats."""
    found: float
    spread: float
    """Mean distance of the bounds now and then."""
    allowed: float
    bound_mean: float
    """Over all positions of the windows that there was time for."""
    windows: int

    @property
    def passed(self) -> bool:
        return self.spread <= self.allowed


def recheck_models(
    root: Path, manifest: Manifest, plugins: Plugins, progress: Callable[..., None]
) -> tuple[tuple[Rechecked, ...], tuple[str, ...]]:
    """Measure each model with a fingerprint again; return what was found, and who has none.

    Raises:
        ProofFailed: one is not what its proof says; all are named.
        PluginError: its engine cannot.
    """
    done, without, problems = list[Rechecked](), list[str](), list[Problem]()
    for model in manifest.models:
        if model.proof is None or model.proof.fingerprint is None:
            without.append(model.name)
            continue
        found, problem = _one(root, model, plugins, progress)
        if found is not None:
            done.append(found)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise ProofFailed(problems)
    return tuple(done), tuple(without)


def _one(
    root: Path, model: BundledModel, plugins: Plugins, progress: Callable[..., None]
) -> tuple[Rechecked | None, Problem | None]:
    assert model.proof is not None
    assert model.proof.fingerprint is not None
    known = model.proof.fingerprint
    engines = (plugins.engines[name] for name in sorted(plugins.engines))
    engine = next((one for one in engines if one.name == model.engine), None)
    ask = getattr(engine, "recheck", None)
    if ask is None:
        raise PluginError(
            f"no engine that is installed can measure a model of {model.engine} again",
            where=f"models.{model.name}", hint="see `bundler plugins`",
        )  # fmt: skip
    answer: Mapping[str, Any] = ask(
        root / model.file, root / known.file, title=f"models.{model.name}",
        kv_cache=model.kv_cache,
        adapters=[(root / c.file, c.scale) for c in model.companions if c.kind == "adapter"],
        sample_positions=known.sample_positions, environment=os.environ, progress=progress,
    )  # fmt: skip
    found = _judged(model, [float(one) for one in answer["sample_bounds"]], answer)
    said = model.proof.selftest.template_sha256 if model.proof.selftest else ""
    where = f"models.{model.name}"
    if said and answer.get("template_sha256") != said:
        return found, Problem("its chat template is not the one that was proved", where)
    if not found.passed:
        return found, Problem(
            f"it diverges from the unquantized model otherwise than its proof says: at "
            f"{found.positions} places by at least {found.found:.5f} nats, then "
            f"{found.expected:.5f}; {found.spread:.5f} apart on average, {found.allowed:.5f} is "
            f"allowed",
            where, "it is another model, or llama.cpp computes otherwise here",
        )  # fmt: skip
    return found, None


def _judged(model: BundledModel, bounds: list[float], answer: Mapping[str, Any]) -> Rechecked:
    assert model.proof is not None
    assert model.proof.fingerprint is not None
    expected = model.proof.fingerprint.sample_bounds
    count = len(expected)
    mean = sum(expected) / count
    return Rechecked(
        model=model.name,
        tier=model.tier,
        positions=count,
        expected=mean,
        found=sum(bounds) / count,
        spread=sum(abs(a - b) for a, b in zip(expected, bounds, strict=True)) / count,
        allowed=SPREAD_NATS + SPREAD_SHARE * mean,
        bound_mean=float(answer["bound_mean"]),
        windows=int(answer["windows"]),
    )
