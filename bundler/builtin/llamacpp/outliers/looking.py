"""One inspection: open the model whatever its form, look, perhaps mitigate, look again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.outliers.gated import gated_norms
from bundler.builtin.llamacpp.outliers.meaning import meaning
from bundler.builtin.llamacpp.reshaping.record import Way
from bundler.builtin.llamacpp.reshaping.trying import Jobs
from bundler.builtin.llamacpp.reshaping.wiring import refusals
from bundler.errors import Problem, RecipeError, UnsafeInput
from bundler.inspection import GatedNorm, Inspection, Outliers
from bundler.weights import read_safetensors_file
from bundler.weights.gguf import read_gguf_file
from bundler.weights.safetensors import parse_object

JOBS = "bundler.builtin.llamacpp"
_MOST_CONFIG_BYTES = 1 << 24
_CONFIG = "config.json"
_PROBE_TYPE = "Q4_K"
_NEEDED = (".json", ".safetensors", ".model", ".txt", ".jinja")
WAYS: tuple[Way, ...] = ("scale", "rotate", "rotate+scale")


@dataclass(frozen=True)
class Look:
    """What is asked."""

    model: Path
    """A GGUF file, or the folder of a published model."""
    text: Path
    title: str
    tokens: int
    mitigate: str
    """One of `WAYS`, or empty."""
    scratch: Path
    environment: Mapping[str, str]
    progress: Callable[..., None] | None = None


def look(asked: Look) -> Inspection:
    """Return what was seen.

    Raises:
        RecipeError: the way is not known, the model cannot be mitigated, or the text is too short.
        UnsafeInput: the model is damaged, of an unsafe format or of an unknown family.
    """
    if asked.mitigate and asked.mitigate not in WAYS:
        raise RecipeError(
            f"{asked.mitigate!r} is no way to mitigate", hint=f"there are: {', '.join(WAYS)}"
        )
    with tempfile.TemporaryDirectory(dir=asked.scratch, prefix="inspecting-") as name:
        folder = Path(name)
        gated = _gates(asked.model)
        model = _as_gguf(asked, folder, gated)
        header = read_gguf_file(model, where=asked.title)
        refused = refusals(header)
        if asked.mitigate and refused:
            raise RecipeError([Problem(f"cannot be reshaped: {r}", asked.title) for r in refused])
        before = _outliers(asked, model)
        after, sameness = None, None
        if asked.mitigate:
            made = _jobs(asked, folder).reshape(model, asked.mitigate, _PROBE_TYPE)
            after, sameness = _outliers(asked, made.path), made.sameness.worst
    return Inspection(
        before=before, after=after, way=asked.mitigate, sameness=sameness, refused=refused,
        gated=gated, meaning=meaning(before, after, gated, refused), text=asked.text.name,
    )  # fmt: skip


def _jobs(asked: Look, folder: Path) -> Jobs:
    return Jobs(
        asked.text, folder, asked.environment, window_tokens=min(512, max(64, asked.tokens // 2)),
        calibration_tokens=asked.tokens, progress=asked.progress,
    )  # fmt: skip


def _outliers(asked: Look, model: Path) -> Outliers:
    found = run_child(
        f"{JOBS}.outliers.measuring:outliers_job",
        {
            "model": str(model), "title": asked.title, "text": str(asked.text),
            "text_name": asked.text.name, "tokens": asked.tokens,
        },
        environment=asked.environment, progress=asked.progress,
    )  # fmt: skip
    return Outliers.model_validate(found)


def _gates(model: Path) -> tuple[GatedNorm, ...]:
    """Read configuration and tensor names before anything is converted: it may not be possible."""
    if model.is_dir():
        config, names = _published(model)
        return gated_norms(config, names)
    header = read_gguf_file(model)
    plain = {k: v for k, v in header.metadata.items() if isinstance(v, (str, int, float, bool))}
    return gated_norms(plain, [tensor.name for tensor in header.tensors])


def _published(folder: Path) -> tuple[dict[str, Any], list[str]]:
    path = folder / _CONFIG
    if not path.is_file():
        raise UnsafeInput(
            "there is no config.json, so it is no published model", where=str(folder),
            hint="name a GGUF file, the folder of a model from a hub, or a bundle",
        )  # fmt: skip
    if path.stat().st_size > _MOST_CONFIG_BYTES:
        raise UnsafeInput("config.json is far too large", where=str(folder))
    config = parse_object(path.read_bytes(), where=_CONFIG)
    inner = config.get("text_config")
    shards = sorted(folder.glob("model*.safetensors"))
    names = [tensor.name for shard in shards for tensor in read_safetensors_file(shard).tensors]
    return {**(inner if isinstance(inner, dict) else {}), **config}, names


def _as_gguf(asked: Look, folder: Path, gated: tuple[GatedNorm, ...]) -> Path:
    """Return the model as a GGUF file: converted into `folder` where it is none yet."""
    if asked.model.is_file():
        return asked.model
    output = folder / "converted.gguf"
    files = {
        path.name: str(path)
        for path in sorted(asked.model.iterdir())
        if path.is_file()
        and path.suffix in _NEEDED
        # Others hold the same weights once more, for other programs (`consolidated…`).
        and (path.suffix != ".safetensors" or path.name.startswith("model"))
    }
    try:
        run_child(
            f"{JOBS}.jobs:convert_job",
            {"files": files, "output": str(output), "output_type": "auto", "name": asked.title},
            environment=asked.environment, progress=asked.progress,
        )  # fmt: skip
    except UnsafeInput as error:
        # A family that is not known may be so because of its gates: say that first.
        told = [Problem(f"{one.kind} ({one.evidence}): {one.words}", asked.title) for one in gated]
        raise UnsafeInput([*told, *error.problems]) from error
    return output
