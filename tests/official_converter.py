"""llama.cpp's own converter as an oracle: where it comes from, and running it.

It needs torch and transformers, so it lives in an environment of its own, never in ours:
`.cache/official-converter/` (a venv, and `llama.cpp/` out of the llama-cpp-python sdist), made on
first use. `BUNDLER_OFFICIAL_CONVERTER` names a ready one of the same layout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent
SDIST = "llama-cpp-python==0.3.36"
PACKAGES = (
    "torch==2.13.0", "transformers==4.57.6", "sentencepiece==0.2.3", "protobuf", "numpy==2.4.6",
    "safetensors",
)  # fmt: skip

RUN_JOBS = """
import json, logging, sys
logging.disable(logging.WARNING)
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf as converter
for job in json.load(sys.stdin):
    sys.argv = ["convert", job["folder"], "--outtype", job["type"], "--outfile", job["output"],
                "--model-name", job["name"]]
    converter.main()
"""


@dataclass(frozen=True)
class OfficialConverter:
    """A ready environment."""

    python: Path
    source: Path
    """The llama.cpp tree of the sdist."""

    @property
    def vocabularies(self) -> Path:
        """Real vocabularies with expected tokenizations beside them."""
        return self.source / "models"

    def run(self, jobs: list[dict[str, str]]) -> None:
        """Convert `folder` as `type` to `output` under `name`, for each job, in one process."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [self.python, "-c", RUN_JOBS, str(self.source)],
            input=json.dumps(jobs), capture_output=True, text=True, env=environment, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-6000:]


def official_converter() -> OfficialConverter:
    """Return the environment, making it if need be; skip the test when it cannot be had.

    With BUNDLER_REQUIRE_ORACLES=1 (continuous integration) that is a failure instead.
    """
    folder = Path(os.environ.get("BUNDLER_OFFICIAL_CONVERTER", ROOT / ".cache/official-converter"))
    ready = OfficialConverter(folder / "bin/python", folder / "llama.cpp")
    if "BUNDLER_OFFICIAL_CONVERTER" not in os.environ:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "complete").exists() and (reason := _make(folder)):
                _give_up(reason)
    elif not ready.python.exists():
        _give_up(f"{ready.python} does not exist")
    return ready


def _give_up(reason: str) -> None:
    message = f"the official converter cannot be set up: {reason}"
    if os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1":
        pytest.fail(message)
    pytest.skip(message)


def _make(folder: Path) -> str:
    """Make the environment; return why it could not be made, or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    steps: tuple[list[str | Path], ...] = (
        [sys.executable, "-m", "venv", folder],
        [*pip, "install", "-q", *PACKAGES],
        [*pip, "download", "-q", "--no-deps", "--no-binary", ":all:", SDIST, "-d", folder],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(map(str, step))}: {done.stderr.strip()[-500:]}"
    _extract(next(folder.glob("llama_cpp_python-*.tar.gz")), folder)
    (folder / "complete").touch()
    return ""


def _extract(archive: Path, folder: Path) -> None:
    """Take the converter, its library and the vocabularies out of the sdist."""
    wanted = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "models/")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        prefix = f"{members[0].name.split('/')[0]}/vendor/llama.cpp/"
        chosen = [m for m in members if m.name.startswith(tuple(prefix + name for name in wanted))]
        tar.extractall(folder / "unpacked", members=chosen, filter="data")
    (folder / "unpacked" / prefix).rename(folder / "llama.cpp")
