"""Holds the plan's memory to llama.cpp's own account, and times the planner.

    make bench-plan                                 # every cell, without weights: under a minute
    .venv/bin/python bench/plan_memory.py --each-layer    # without leaving repeated layers out
    .venv/bin/python bench/plan_memory.py --device        # on a GPU, loaded and run, against NVML

Each cell is a model of its published shape, a quantization, a context, a KV cache, a batch, flash
attention on or off, and a number of users. llama.cpp opens a file that has the model's headers and
a hole for its weights, without allocating, and says what it would allocate. Small models are loaded
for real as well. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bundler.builtin.llamacpp.caches import NO_CACHE, kv_cache_bytes
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.graph.reserve import Placement, compute_buffers
from bundler.builtin.llamacpp.graph.shape import Run
from bundler.builtin.llamacpp.memory import model_memory, place_weights
from bundler.builtin.llamacpp.types import tensor_types
from bundler.hardware import Target
from bundler.lock import ModelFacts
from tests.odd_shapes import ODD
from tests.published_shapes import CELLS, ENCODER_CELLS, PUBLISHED, QUANTS, Cell, cell
from tests.shapes import facts_of, write_header_gguf

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
CPU = Target(name="cpu", ram_bytes=1 << 40)
REALLY_LOADED = ("Qwen2.5-0.5B", "Qwen3-0.6B", "bge-small", "bge-large")
LOADED_CELLS = (cell(2048, "f16", True, 512, 1), cell(1024, "q8_0", True, 256, 2))


@dataclass(frozen=True)
class Row:
    """One cell: what llama.cpp allocates, and what we say."""

    model: str
    quant: str
    cell: Cell
    real: bool
    theirs: tuple[int, int, int]
    """Weights, cache, compute buffers."""
    ours: tuple[int, int, int]

    @property
    def compute_error(self) -> float:
        return abs(self.ours[2] / self.theirs[2] - 1) * 100

    @property
    def total_error(self) -> float:
        return abs(sum(self.ours) / sum(self.theirs) - 1) * 100

    @property
    def under_bytes(self) -> int:
        return max(0, sum(self.theirs) - sum(self.ours))


def rows(*, all_layers: bool) -> Iterator[Row]:
    """Compare every cell."""
    with tempfile.TemporaryDirectory() as scratch:
        shapes = {**{name: facts_of(config) for name, config in PUBLISHED.items()}, **ODD}
        for number, (name, facts) in enumerate(shapes.items()):
            quant = QUANTS[number % len(QUANTS)] if name in PUBLISHED else "F16"
            cells = ENCODER_CELLS if facts.architecture in NO_CACHE else CELLS
            yield from _compared(Path(scratch), name, facts, quant, cells, all_layers, real=False)
            if name in REALLY_LOADED:
                cells = ENCODER_CELLS[:3] if facts.architecture in NO_CACHE else LOADED_CELLS
                yield from _compared(Path(scratch), name, facts, "Q4_K_M", cells, all_layers, True)


def _compared(
    folder: Path, name: str, facts: ModelFacts, quant: str, cells: tuple[Cell, ...],
    all_layers: bool, real: bool,
) -> Iterator[Row]:  # fmt: skip
    types = {tensor.name: tensor.type for tensor in facts.tensors}
    if facts.format == "safetensors":  # else it is a file that is taken as it comes
        types = tensor_types(facts, quant, has_imatrix=True)
    path = folder / "model.gguf"
    write_header_gguf(path, facts, types, quant)
    found = run_child(
        "tests.sizing_jobs:breakdowns",
        {"path": str(path), "cells": list(cells), "repack": True, "allocate": real},
        environment=_environment(),
    )
    for each, buffers in zip(cells, found, strict=True):
        weights, cache, compute = (sum(kind) for kind in zip(*buffers.values(), strict=True))
        ours = _ours(facts, types, Run(**each), all_layers)
        yield Row(name, quant, each, real, (weights, cache, compute), ours)


def _ours(
    facts: ModelFacts, types: dict[str, str], run: Run, all_layers: bool
) -> tuple[int, int, int]:
    placed = place_weights(facts, types, gpu_layers=0, target=CPU)
    buffers = compute_buffers(facts, run, Placement.on_cpu(facts), types, all_layers=all_layers)
    return placed.host_bytes, sum(kv_cache_bytes(facts, run)), sum(buffers)


def show(row: Row) -> None:
    """Print one line of the table."""
    cell = row.cell
    how = "loaded" if row.real else "dry"
    marks = "".join("=" if a == b else "!" for a, b in zip(row.ours, row.theirs, strict=True))
    print(
        f"{row.model:20} {row.quant:7} {cell['context_tokens']:6} {cell['kv_cache']:5} "
        f"{cell['batch_tokens']:5} {'on' if cell['flash_attention'] else 'off':4} "
        f"{cell['parallel']:5} {how:6} "
        + " ".join(f"{size / MIB:9.1f}" for size in (*row.theirs, row.ours[2]))
        + f" {row.ours[2] / row.theirs[2] - 1:+8.2%} {marks}"
    )


# -- how long planning takes -----------------------------------------------------------------------


@contextmanager
def locked_doomsday() -> Iterator[Path]:
    """Give the doomsday recipe with a lock of it, made against repositories of true shapes."""
    from bundler.locking import make_lock
    from bundler.plugins import load_plugins
    from bundler.recipe_file import read_recipe
    from bundler.store import Store
    from bundler.testing.hub import TestHub
    from bundler.world import World
    from tests.real_shapes import environment_at, put_up, put_up_pythons

    with tempfile.TemporaryDirectory() as scratch, TestHub() as hub:
        folder = Path(scratch)
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        put_up(hub)
        put_up_pythons(hub)
        recipe = folder / "recipes" / "doomsday-24gb.toml"
        world = World(
            Store(folder / "store"), environment=environment_at(hub), folder=recipe.parent
        )
        make_lock(recipe, read_recipe(recipe), load_plugins(installed=False), world)
        yield recipe


@contextmanager
def as_installed(command: list[str]) -> Iterator[dict[str, str]]:
    """Give an environment in which every module is there as bytecode, as pip leaves a package.

    Of a checkout that Python may not write into, bundler's modules are compiled anew at each start.
    Bytecode is all that is kept from one start to the next.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        _timed(command, environment)
        yield environment


def command_seconds(times: int = 9) -> dict[str, float]:
    """Return what fresh processes of `bundler plan` take from start to end: the median and the least
    by the clock, and the least of the processor's time, which the neighbours of a busy machine do
    not lengthen; and the median where Python may keep no bytecode of bundler's own modules.
    """
    with locked_doomsday() as recipe:
        # The program as it is installed: what `python -m` runs is compiled anew at each start.
        program = Path(sys.executable).with_name("bundler")
        command = [str(program), "plan", str(recipe), "--frozen",
                   "--store", str(recipe.parent / "store")]  # fmt: skip
        with as_installed(command) as environment:
            runs = [_timed(command, environment) for _ in range(times)]
        bare = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        compiled_anew = [_timed(command, bare)[0] for _ in range(times)]
    walls, processor = zip(*runs, strict=True)
    return {
        "median": statistics.median(walls), "least": min(walls), "cpu": min(processor),
        "from source": statistics.median(compiled_anew),
    }  # fmt: skip


def _timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return how long one process takes by the clock, and of the processor."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode != 0:
        raise SystemExit(f"bundler plan: exit code {done.returncode}\n{done.stderr}")
    user = after.children_user - before.children_user
    return seconds, user + after.children_system - before.children_system


PLANNING = """
import sys, time
from pathlib import Path
from bundler.advice.advised import plan_with_advice
from bundler.plugins import load_plugins
from bundler.recipe_file import read_recipe
from bundler.resolve import lock_path, read_lock
plugins, recipe = load_plugins(), Path(sys.argv[1])
start = time.perf_counter()
plan_with_advice(read_recipe(recipe), read_lock(lock_path(recipe)), plugins)
print(time.perf_counter() - start)
"""


def planning_seconds(times: int = 5) -> float:
    """Return the median time from recipe and lock to a plan, in fresh processes, imports apart."""
    with locked_doomsday() as recipe:
        command = [sys.executable, "-c", PLANNING, str(recipe)]
        took = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(times)
        ]
    return statistics.median(took)


def choosing_seconds() -> float:
    """Print how long choices for 20 models with 40 offers each take; return the longest proved one.

    Most kinds of made-up offers are harder than real ones. Where one were not proved to be the best
    within the planner's bound on work, its gap says by how much a better one could differ, here in
    ten-thousandths of a nat over all models, and it does not count.
    """
    from bundler.solver.choosing import solve
    from bundler.solver.decision import Decision, Limit
    from tests.test_choosing import KINDS, many

    took = []
    print(f"\n{'20 models x 40 offers':22} {'VRAM':>5} {'disk':>5} {'seconds':>8} {'gap':>6}")
    for kind in KINDS:
        wanted = tuple(many(kind, 20, 40, seed=0))
        most = [sum(max(o.needs[k] for o in w.options) for w in wanted) for k in range(2)]
        for share, disk in itertools.product((0.2, 0.35, 0.6), (0.7, 1.0)):
            limits = (
                Limit("VRAM", int(most[0] * share), turns=True),
                Limit("disk", int(most[1] * disk), turns=False),
            )
            start = time.perf_counter()
            solution = solve(Decision(wanted, limits))
            seconds = time.perf_counter() - start
            gap = solution.gap if solution else 0
            print(f"{kind:22} {share:5.0%} {disk:5.0%} {seconds:8.2f} {gap:6}")
            if not gap:
                took.append(seconds)
    return max(took)


# -- on a GPU --------------------------------------------------------------------------------------

DEVICE_MODELS = ("Qwen2.5-0.5B", "Llama-3.2-1B", "Qwen2.5-7B", "Gemma-3-4B", "Qwen3-30B-A3B")
DEVICE_CELLS = (
    cell(4096, "f16", True, 512, 1), cell(32768, "f16", True, 512, 1),
    cell(32768, "q8_0", True, 512, 1), cell(8192, "f16", True, 512, 4),
)  # fmt: skip


def compare_with_device() -> int:
    """Load on the accelerator, fill the context, generate; hold the plan to NVML's peak.

    Needs an NVIDIA GPU, its driver, and a llama-cpp-python built with CUDA. Returns an exit code.
    """
    found = run_child("bundler.builtin.llamacpp.native:devices_job", {}, environment=_environment())
    if not any(device["kind"] == "cuda" for device in found["devices"]):
        print(
            "skipped: llama.cpp sees no CUDA device here; --device needs an NVIDIA GPU, its "
            "driver, and llama-cpp-python built with CMAKE_ARGS=-DGGML_CUDA=on"
        )
        return 0
    target = Target(name="here", accelerator="cuda", ram_bytes=1 << 40)
    print(
        f"{'model':16} {'ctx':>6} {'kv':5} {'users':>5} {'plan':>9} {'NVML':>9} {'error':>8} (MiB)"
    )
    worst = under = 0.0
    for name in DEVICE_MODELS:
        for each in DEVICE_CELLS:
            planned, peak = _on_device(name, each, target)
            print(f"{name:16} {each['context_tokens']:6} {each['kv_cache']:5} "
                  f"{each['parallel']:5} {planned / MIB:9.1f} {peak / MIB:9.1f} "
                  f"{planned / peak - 1:+8.2%}")  # fmt: skip
            worst, under = max(worst, abs(planned - peak)), max(under, peak - planned)
    print(json.dumps({"device": found["build"], "worst_bytes": worst, "under_bytes": under}))
    return 0


def _on_device(name: str, each: Cell, target: Target) -> tuple[int, int]:
    facts = facts_of(PUBLISHED[name])
    types = tensor_types(facts, "Q4_K_M", has_imatrix=True)
    planned = model_memory(facts, types, gpu_layers=-1, target=target, **each)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gguf"
        write_header_gguf(path, facts, types, "Q4_K_M")
        peak = run_child(
            "tests.sizing_jobs:device_peak", {"path": str(path), "cell": each},
            environment=_environment(),
        )  # fmt: skip
    return planned.total_bytes, int(peak)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> int:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each-layer", action="store_true", help="build every layer's graph")
    parser.add_argument("--device", action="store_true", help="run on a GPU, against NVML")
    asked = parser.parse_args()
    if asked.device:
        return compare_with_device()
    print(f"{'model':20} {'quant':7} {'ctx':>6} {'kv':5} {'batch':>5} {'fa':4} {'users':>5} "
          f"{'how':6} {'weights':>9} {'cache':>9} {'compute':>9} {'ours':>9} {'error':>8}"
          "  (MiB)")  # fmt: skip
    found = []
    for row in rows(all_layers=asked.each_layer):
        show(row)
        found.append(row)
    choosing = choosing_seconds()
    command, planning = command_seconds(), planning_seconds()
    print(f"\ndoomsday: `bundler plan` from start to end {command['median']:.2f} s (median; least "
          f"{command['least']:.2f} s, of the processor {command['cpu']:.2f} s); of that from recipe "
          f"and lock to the plan {planning:.2f} s, the rest is Python starting. From a checkout "
          f"without bytecode {command['from source']:.2f} s")  # fmt: skip
    print(
        json.dumps({
            "cells": len(found),
            "weights_exact": all(row.ours[0] == row.theirs[0] for row in found),
            "kv_exact": all(row.ours[1] == row.theirs[1] for row in found),
            "compute_worst_pct": round(max(row.compute_error for row in found), 3),
            "total_worst_pct": round(max(row.total_error for row in found), 3),
            "total_worst_under_bytes": max(row.under_bytes for row in found),
            "plan_seconds": round(command["median"], 3),
            "plan_least_seconds": round(command["least"], 3),
            "plan_cpu_seconds": round(command["cpu"], 3),
            "plan_without_bytecode_seconds": round(command["from source"], 3),
            "planning_seconds": round(planning, 3),
            "plan_20x40_seconds": round(choosing, 3),
        })
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
