"""Holds mixes of measured types against llama.cpp's own at equal bytes, on text no one was fitted to.

    .venv/bin/python bench/quantization.py                     # the example's model
    .venv/bin/python bench/quantization.py --model DIR ...     # and others: folders of safetensors
    .venv/bin/python bench/quantization.py --budget 4.5 --tokens 4096

For each model and budget: (a) llama.cpp's mix without an importance matrix, (b) with one as
llama-imatrix makes it (of its mixes near the budget the one that promises most), (c) one type for all tensors, (d) types chosen by measuring; with
`--reshape PROGRAM` (e) the same of the model that this program makes of the unquantized one, with `--also
PROGRAM` (f) what that makes of (d) and a number of bytes: a GGUF in, a GGUF out. A row never has more
bytes of tensors than (b), whose size is the budget. Calibration and measurement see the calibration text only,
scores come from the held-out text. Also: the time that quantizing takes against the same library call
in a plain script, and the most memory it takes. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bundler.builtin.llamacpp.allocation.candidates import candidate_types
from bundler.builtin.llamacpp.child import run_child
from bundler.weights.gguf import read_gguf_file

ROOT = Path(__file__).parents[1]
JOBS = "bundler.builtin.llamacpp"
TEXTS = ROOT / "bundler/texts"
BUDGETS = (2.5, 3.5, 4.5, 5.5)
GOALS = {2.5: 0.6, 3.5: 0.6, 4.5: 0.6, 5.5: 0.75}
"""The most that (d) may have of (b)'s mean divergence at each budget."""
PLAIN_SCRIPT = """
import ctypes, os, sys
from llama_cpp import llama_cpp as L
L.llama_backend_init()
given = L.llama_model_quantize_default_params()
given.ftype = int(sys.argv[3])
sys.exit(L.llama_model_quantize(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), ctypes.byref(given)))
"""
"""What llama-quantize does: the same call of the same library, with nothing of ours around it."""


@dataclass
class Bench:
    """One model with what is measured of it once."""

    name: str
    folder: Path
    tokens: int
    minutes: float
    seconds: dict[str, float] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name

    def job(self, job: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        found = run_child(f"{JOBS}.{job}", dict(arguments), environment=os.environ)
        self.seconds[job.rpartition(":")[2]] = round(time.perf_counter() - started, 1)
        return dict(found)

    def prepare(self, source: Path) -> None:
        """Convert and measure."""
        files = {path.name: str(path) for path in source.iterdir() if path.is_file()}
        self.job(
            "jobs:convert_job",
            {"files": files, "output": str(self.path("model.gguf")), "output_type": "auto",
             "name": self.name},
        )  # fmt: skip
        self.measure()

    def measure(self) -> None:
        """Calibrate (twice: as llama-imatrix does, and with the output) and measure."""
        for name, output in (("stock.gguf", False), ("imatrix.gguf", True)):
            self.job(
                "calibrate:calibrate_job",
                {"model": str(self.path("model.gguf")), "output": str(self.path(name)),
                 "texts": {"calibration.txt": str(TEXTS / "calibration.txt")},
                 "context_tokens": 512, "chunks": 128, "include_output": output},
            )  # fmt: skip
        given = self.sources("imatrix.gguf")
        self.job(
            "allocation.errors:errors_job",
            {**given, "types": list(candidate_types()), "output": str(self.path("errors.json"))},
        )
        self.job(
            "allocation.sensitivity:sensitivity_job",
            {**given, "errors": str(self.path("errors.json")),
             "texts": {"calibration.txt": str(TEXTS / "calibration.txt")},
             "output": str(self.path("sensitivity.json")), "scratch": str(self.folder),
             "window_tokens": 256, "tokens": 2048, "minutes": self.minutes},
        )  # fmt: skip

    def sources(self, imatrix: str | None) -> dict[str, Any]:
        found = str(self.path(imatrix)) if imatrix else None
        return {"model": str(self.path("model.gguf")), "imatrix": found}

    def stock(self, scheme: str, imatrix: str | None) -> Path:
        """Have llama.cpp make its own mix."""
        output = self.path(f"{scheme}-{imatrix or 'plain'}.gguf")
        if not output.exists():
            self.job(
                "quantize:quantize_job",
                {**self.sources(imatrix), "output": str(output), "quant": scheme},
            )
        return output

    def mixed(self, budget_bytes: int, name: str) -> tuple[Path, dict[str, Any]]:
        """Make our mix; returns it with its record."""
        output, record = self.path("mixed.gguf"), self.path("mixed.json")
        self.job(
            "allocation.mixing:mix_job",
            {**self.sources("imatrix.gguf"), "errors": str(self.path("errors.json")),
             "sensitivity": str(self.path("sensitivity.json")), "name": name,
             "budget_bytes": budget_bytes, "output": str(output), "record": str(record)},
        )  # fmt: skip
        return output, json.loads(record.read_text("utf-8"))

    def control(self, control: Mapping[str, Any]) -> Path:
        """Make a control of a record."""
        output = self.path("control.gguf")
        self.job(
            "quantize:quantize_job",
            {**self.sources("imatrix.gguf"), "output": str(output), "quant": control["scheme"],
             "overrides": sorted(control["overrides"].items())},
        )  # fmt: skip
        return output

    def score(self, model: Path) -> dict[str, Any]:
        """Compare a model with the unquantized one on the held-out text."""
        found = self.job(
            "evaluate:evaluate_job",
            {"model": str(model), "reference": str(self.path("model.gguf")),
             "text": str(TEXTS / "heldout.txt"), "window_tokens": 512, "tokens": self.tokens,
             "kv_cache": "f16", "gpu": False, "scratch": str(self.folder), "tail": True},
        )  # fmt: skip
        keys = ("kld_mean", "kld_standard_error", "kld_p999", "top1_agreement", "perplexity")
        return {key: round(float(found[key]), 6) for key in keys} | {"bytes": data_bytes(model)}


def reshaped_bench(bench: Bench, program: str) -> Bench:
    """Have a program make the unquantized model over, and measure what came out."""
    folder = bench.path("reshaped")
    folder.mkdir()
    subprocess.run([program, bench.path("model.gguf"), folder / "model.gguf"], check=True)
    found = Bench(f"{bench.name} reshaped", folder, bench.tokens, bench.minutes)
    found.measure()
    return found


def data_bytes(path: Path) -> int:
    """Return the size of a file's data section."""
    return sum(-(-tensor.size_bytes // 32) * 32 for tensor in read_gguf_file(path).tensors)


def weights_of(path: Path) -> int:
    """Return how many weights a file has."""
    total = 0
    for tensor in read_gguf_file(path).tensors:
        count = 1
        for length in tensor.shape:
            count *= length
        total += count
    return total


_NEAR_BITS = 1 / 3
# llama.cpp's own mixes that people use; see `baseline` for which of them is (b).
STOCK = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S",
         "IQ3_M", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M",
         "Q6_K")  # fmt: skip
PLAIN = tuple(name for name in STOCK if not name.startswith(("IQ2", "IQ3_XXS", "Q2_K_S", "IQ3_XS")))
"""Those that llama.cpp makes without an importance matrix too."""


def stock_mixes(bench: Bench) -> dict[str, tuple[int, float]]:
    """Return size and predicted damage of each of llama.cpp's mixes that it can make as asked."""
    found = run_child(
        f"{JOBS}.allocation.mixing:stock_mixes_job",
        {**bench.sources("stock.gguf"), "errors": str(bench.path("errors.json")),
         "sensitivity": str(bench.path("sensitivity.json"))},
        environment=os.environ,
    )  # fmt: skip
    return {
        name: (size, damage)
        for name, (size, damage) in found.items()
        if name in STOCK and damage is not None
    }


def baseline(bits: float, mixes: Mapping[str, tuple[int, float]], weights: int) -> str:
    """Return llama.cpp's most promising mix near a budget: its best foot forward, not any mix.

    Of those within a third of a bit the one that our own measurements predict to be the best; the
    nearest where there is none.
    """
    away = {name: abs(size * 8 / weights - bits) for name, (size, _) in mixes.items()}
    near = [name for name in mixes if away[name] <= _NEAR_BITS]
    if near:
        return min(near, key=lambda name: (mixes[name][1], name))
    return min(mixes, key=lambda name: (away[name], name))


def rows_at(
    bench: Bench, bits: float, mixes: Mapping[str, tuple[int, float]], weights: int,
    reshaped: Bench | None, also: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Measure all rows at one budget and print them."""
    sizes = {name: size for name, (size, _) in mixes.items()}
    nearest = baseline(bits, mixes, weights)
    budget = sizes[nearest]
    plain = [name for name in PLAIN if name in sizes and sizes[name] <= budget]
    rows: dict[str, Any] = {}
    if plain:
        scheme = nearest if nearest in plain else min(plain, key=lambda name: mixes[name][1])
        rows["a"] = {"what": scheme, **bench.score(bench.stock(scheme, None))}
    rows["b"] = {"what": nearest, **bench.score(bench.stock(nearest, "stock.gguf"))}
    ours, record = bench.mixed(budget, f"mixed@{bits:g}bpw")
    uniform = [control for control in record["controls"] if control["kind"] == "uniform"]
    if uniform:
        rows["c"] = {"what": uniform[0]["name"], **bench.score(bench.control(uniform[0]))}
    counts: dict[str, int] = {}
    for kind in record["types"].values():
        counts[kind] = counts.get(kind, 0) + 1
    rows["d"] = {"what": "measured", **bench.score(ours), "predicted": record["predicted_damage"],
                 "gap": record["gap"], "types": counts}  # fmt: skip
    if reshaped is not None:
        other, record = reshaped.mixed(budget, f"mixed@{bits:g}bpw")
        rows["e"] = {"what": "reshaped", **bench.score(other), "gap": record["gap"]}
    for letter, program in zip("fghi", also, strict=False):
        output = bench.path(f"{letter}.gguf")
        subprocess.run([program, ours, output, str(budget)], check=True)
        rows[letter] = {"what": Path(program).name, **bench.score(output)}
    for row in rows.values():
        if row["bytes"] > budget:
            raise SystemExit(f"a row has {row['bytes']} bytes, the budget is {budget}")
    for letter, row in rows.items():
        print(
            f"{bench.name:14s} {bits:>4} bpw asked, {budget * 8 / weights:.3f} had  {letter} "
            f"{row['what']:10s} {row['bytes']:>10,} B  KLD {row['kld_mean']:.5f} "
            f"± {row['kld_standard_error']:.5f}  99.9 % {row['kld_p999']:.3f}  "
            f"top-1 {100 * row['top1_agreement']:.2f} %",
            flush=True,
        )
    ratio = round(rows["d"]["kld_mean"] / rows["b"]["kld_mean"], 4)
    print(f"{bench.name:14s} (d)/(b) = {ratio}   goal {GOALS.get(bits, '-')}", flush=True)
    return {"bits_per_weight": round(budget * 8 / weights, 4), "rows": rows, "d_over_b": ratio,
            "goal": GOALS.get(bits)}  # fmt: skip


def measured_child(words: Sequence[str]) -> tuple[float, int]:
    """Run a program; returns its wall seconds and the most memory a child of ours ever had."""
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-800:].decode("utf-8", "replace"))
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


OUR_SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[4])
from bundler.builtin.llamacpp.child import run_child
run_child("bundler.builtin.llamacpp.quantize:quantize_job",
          {"model": sys.argv[1], "output": sys.argv[2], "quant": sys.argv[3]}, environment=os.environ)
import resource
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def speed(model: Path, folder: Path, runs: int) -> dict[str, Any]:
    """Time our quantizing against the plain call, in turns, and read our child's peak memory."""
    ours, theirs, peak = [], [], 0
    for _ in range(runs):
        output = str(folder / "plain.gguf")
        theirs.append(
            measured_child([sys.executable, "-c", PLAIN_SCRIPT, str(model), output, "15"])[0]
        )
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", OUR_SCRIPT, str(model), str(folder / "ours.gguf"), "Q4_K_M",
             str(ROOT)], capture_output=True, check=True,
        )  # fmt: skip
        ours.append(time.perf_counter() - started)
        peak = max(peak, int(done.stdout.split()[-1]) * 1024)
    largest = max(tensor.size_bytes for tensor in read_gguf_file(model).tensors) * 2  # as F32
    return {
        "seconds_ours": round(min(ours), 2), "seconds_plain_call": round(min(theirs), 2),
        "times_as_fast": round(min(theirs) / min(ours), 3), "peak_bytes": peak,
        "peak_goal_bytes": 3 * largest + 500 * 10**6,
    }  # fmt: skip


def large_model(folder: Path, layers: int) -> Path:
    """Write an untrained model that is large enough for a time to mean something."""
    from tests.models import Shape, llama_fields, llama_weights, write_gguf

    shape = Shape(hidden=1024, layers=layers, heads=16, kv_heads=8, feed_forward=3072,
                  vocabulary=8192)  # fmt: skip
    path = folder / "large.gguf"
    write_gguf(path, llama_fields(shape), llama_weights(shape), "F16")
    return path


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--budget", type=float, action="append", default=[], metavar="BPW")
    parser.add_argument("--without-example", action="store_true")
    parser.add_argument("--reshape", metavar="PROGRAM")
    parser.add_argument("--also", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--speed-layers", type=int, default=8)
    given = parser.parse_args()
    models = [*([] if given.without_example else [ROOT / "examples/model"]), *given.model]
    out: dict[str, Any] = {"models": {}}
    with tempfile.TemporaryDirectory() as root:
        for number, source in enumerate(models):
            folder = Path(root) / str(number)
            folder.mkdir()
            name = "example" if source == ROOT / "examples/model" else source.name
            bench = Bench(name, folder, given.tokens, given.minutes)
            bench.prepare(source)
            reshaped = reshaped_bench(bench, given.reshape) if given.reshape else None
            mixes, weights = stock_mixes(bench), weights_of(bench.path("model.gguf"))
            out["models"][bench.name] = {
                "weights": weights,
                "seconds": dict(bench.seconds),
                "budgets": {
                    f"{bits:g}": rows_at(bench, bits, mixes, weights, reshaped, given.also)
                    for bits in given.budget or BUDGETS
                },
            }
        out["quantizing"] = speed(large_model(Path(root), given.speed_layers), Path(root), 3)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
