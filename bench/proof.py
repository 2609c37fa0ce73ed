"""Holds our quality figures against llama-perplexity's: agreement, and speed in the same run.

    .venv/bin/python bench/proof.py --source DIR        # a tree of llama.cpp's source
    BUNDLER_LLAMA_CPP_SOURCE=DIR make bench-proof
    .venv/bin/python bench/proof.py --source DIR --quant Q4_K_M --tokens 4096 --repeats 3

`tools/perplexity/perplexity.cpp` is compiled as it is, against the library that llama-cpp-python
brought (`bench/perplexity_tool.cpp` stands in for its argument parser): a minute, once, in `.cache`.
Both score the same text with the same model, window and threads. Each is timed as a whole process for
its two passes: the reference, then the candidate against what was kept. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bundler.builtin.llamacpp.child import run_child

ROOT = Path(__file__).parents[1]
JOBS = "bundler.builtin.llamacpp"
TEXT = ROOT / "bundler/texts/heldout.txt"
WINDOW = 512
_FIGURES = {
    "kld_mean": r"Mean +KLD: +([\d.eE+-]+)",
    "kld_standard_error": r"Mean +KLD: +[\d.eE+-]+ ± +([\d.eE+-]+)",
    "kld_median": r"Median +KLD: +([\d.eE+-]+)",
    "kld_p999": r"99\.9% +KLD: +([\d.eE+-]+)",
    "kld_p99": r"99\.0% +KLD: +([\d.eE+-]+)",
    "kld_max": r"Maximum KLD: +([\d.eE+-]+)",
    "top1_agreement": r"Same top p: +([\d.]+)",
    "perplexity": r"Mean PPL\(Q\) +: +([\d.]+)",
    "reference_perplexity": r"Mean PPL\(base\) +: +([\d.]+)",
}


def compiled(source: Path) -> Path:
    """Return the tool, compiled once."""
    import llama_cpp

    libraries = Path(llama_cpp.__file__).parent / "lib"
    made = ROOT / ".cache" / "bench" / "llama-perplexity"
    made.parent.mkdir(parents=True, exist_ok=True)
    parts = (ROOT / "bench/perplexity_tool.cpp", source / "tools/perplexity/perplexity.cpp",
             source / "tools/perplexity/main.cpp")  # fmt: skip
    if made.exists() and all(made.stat().st_mtime > part.stat().st_mtime for part in parts):
        return made
    folders = ("common", "include", "ggml/include", "vendor")
    subprocess.run(
        ["g++", "-std=c++17", "-O3", "-march=native", *map(str, parts),
         *(f"-I{source / folder}" for folder in folders), f"-L{libraries}", "-lllama", "-lggml",
         "-lggml-base", "-lpthread", f"-Wl,-rpath,{libraries}", "-o", str(made)],
        check=True,
    )  # fmt: skip
    return made


def theirs(tool: Path, given: argparse.Namespace, models: tuple[Path, Path], base: Path) -> Any:
    """Return the tool's figures and the seconds of both passes."""
    common = ["--kl-divergence-base", base, "-c", WINDOW, "-b", WINDOW, "-t", given.threads,
              "--chunks", given.tokens // WINDOW]  # fmt: skip
    begun = time.perf_counter()
    _run([tool, "-m", models[0], "-f", TEXT, *common])
    between = time.perf_counter()
    said = _run([tool, "-m", models[1], "--kl-divergence", *common])
    ended = time.perf_counter()
    found = {name: float(re.search(how, said)[1]) for name, how in _FIGURES.items()}  # type: ignore[index]
    found["top1_agreement"] /= 100
    return found, between - begun, ended - between


def _run(words: list[Any]) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def ours(given: argparse.Namespace, models: tuple[Path, Path], scratch: Path) -> Any:
    """Return our figures and the seconds of both passes: the second finds the reference's scores."""
    arguments = {
        "model": str(models[1]), "reference": str(models[0]), "text": str(TEXT), "gpu": False,
        "window_tokens": WINDOW, "tokens": given.tokens, "kv_cache": "f16", "further": True,
        "scratch": str(scratch),
    }  # fmt: skip
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        found = run_child(f"{JOBS}.evaluate:evaluate_job", arguments, environment=os.environ)
        seconds.append(time.perf_counter() - begun)
    return found, seconds[0] - seconds[1], seconds[1]


def main() -> int:
    """Run both and print what they found."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--source", default=os.environ.get("BUNDLER_LLAMA_CPP_SOURCE"))
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1, help="of the tool; ours: one if small")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if not given.source:
        raise SystemExit(
            "say where llama.cpp's source is: --source DIR, or BUNDLER_LLAMA_CPP_SOURCE"
        )
    tool = compiled(Path(given.source))
    with tempfile.TemporaryDirectory() as folder:
        runs = _runs(given, tool, Path(folder))
    our, their = runs[0][0][0], runs[0][1][0]
    print(f"{'figure':24}{'ours':>14}{'theirs':>14}{'apart':>12}")
    for name in _FIGURES:
        print(f"{name:24}{our[name]:14.6f}{their[name]:14.6f}{our[name] - their[name]:12.2e}")
    both = {
        side: statistics.median(run[number][1] + run[number][2] for run in runs)
        for number, side in enumerate(("ours", "theirs"))
    }
    again = {
        side: statistics.median(run[number][2] for run in runs)
        for number, side in enumerate(("ours", "theirs"))
    }
    print(f"seconds, both passes: {both}; the candidate's alone: {again}")
    summary = {
        "kld_mean_apart": abs(our["kld_mean"] - their["kld_mean"]),
        "top1_apart": abs(our["top1_agreement"] - their["top1_agreement"]),
        "perplexity_apart": abs(our["perplexity"] / their["perplexity"] - 1),
        "speed_ratio": round(both["theirs"] / both["ours"], 3),
        "candidate_speed_ratio": round(again["theirs"] / again["ours"], 3),
        "tokens": our["tokens"], "goal": 0.9,
    }  # fmt: skip
    print(json.dumps(summary))
    return 0


def _runs(given: argparse.Namespace, tool: Path, folder: Path) -> list[Any]:
    from tests.models import example_gguf, quantized

    models = (example_gguf(), quantized(example_gguf(), given.quant))
    runs = []
    for number in range(given.repeats):
        scratch = folder / str(number)
        scratch.mkdir()
        runs.append((ours(given, models, scratch),
                     theirs(tool, given, models, scratch / "base.kld")))  # fmt: skip
    return runs


if __name__ == "__main__":
    sys.exit(main())
