"""Jobs of the tests of reshaping, several in one child: starting one takes longer than its work."""

from __future__ import annotations

from pathlib import Path

from bundler.builtin.llamacpp.calibrate import calibrate_job
from bundler.builtin.llamacpp.reshaping.checking import check_job
from bundler.builtin.llamacpp.reshaping.making import reshape_job
from bundler.errors import ProofFailed


def every_family(arguments, report):
    """Reshape models in every way; return by name how far the logits moved."""
    return {
        name: every_way(model, Path(model).parent, arguments["text"])
        for name, model in arguments["models"].items()
    }


def every_check(arguments, report):
    """Check models against an original; return what was said of each."""
    said = {}
    for name, model in arguments["models"].items():
        try:
            said[name] = check_job({**arguments["common"], "model": model}, report)["worst"]
        except ProofFailed as error:
            said[name] = str(error)
    return said


def every_way(model, folder, text):
    """Reshape one model in every way and check each."""

    def tell(*_):
        return None

    def calibrated(path):
        calibrate_job(
            {"model": str(path), "texts": {"t": text}, "output": str(folder / "imatrix.gguf"),
             "context_tokens": 64, "chunks": 4}, tell,
        )  # fmt: skip
        return str(folder / "imatrix.gguf")

    def checked(path):
        return check_job(
            {"model": str(path), "original": model, "text": text, "scratch": str(folder)}, tell
        )["worst"]

    found = {}
    for source, way, name in (
        (model, "scale", "scaled"), (model, "rotate", "rotated"),
        (folder / "rotated.gguf", "scale", "both"),
    ):  # fmt: skip
        made = folder / f"{name}.gguf"
        facts = reshape_job(
            {"model": str(source), "output": str(made), "way": way, "seed": 5,
             "imatrix": calibrated(source) if way == "scale" else None, "probe_type": "Q4_0"}, tell,
        )  # fmt: skip
        found[name] = checked(made)
        found[f"{name} places"] = sum(one["of"] != "" for one in facts["scaled"])
    return found
