"""Outliers made, measured and mended; and a correction by adapter against the same bytes as bits.

For each model: as it is, with outliers injected, and every way of reshaping both; quantized by
llama.cpp's own mixes and, at the same bytes, by ours. Ways are chosen on calibration text and scored
on held-out text. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.reshaping.deciding import GROWTH, WAYS, choose, divide_text
from bundler.builtin.llamacpp.reshaping.low_rank import METHODS
from bundler.builtin.llamacpp.reshaping.record import Trial
from bundler.builtin.llamacpp.reshaping.trying import Jobs
from bundler.testing.outliers import inject_outliers

ROOT = Path(__file__).parents[1]
TEXTS = ROOT / "bundler" / "texts"
QUANTS = ("Q4_K_M", "Q2_K")
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Of the mixes that stand for the same bytes spent on bits."""
WINDOW = 512


@dataclass(frozen=True)
class Bench:
    """One model's work."""

    jobs: Jobs
    measuring: Path
    reference: Path
    tokens: int

    def quantize(self, model: Path, imatrix: Path | None, quant: str) -> tuple[Path, int]:
        """Quantize by llama.cpp's own mix."""
        output = self.jobs.folder / "quantized.gguf"
        made = self.jobs.run("quantize:quantize_job", {
            "model": str(model), "imatrix": str(imatrix) if imatrix else None,
            "output": str(output), "quant": quant, "allow_fallback": True,
        })  # fmt: skip
        return output, int(made["size_bytes"])

    def mix(self, model: Path, imatrix: Path, file_bytes: int) -> tuple[Path, int]:
        """Make our own mix of the same bytes."""
        output = self.jobs.folder / "mix.gguf"
        table = imatrix.with_suffix(".errors.json")
        if not table.exists():
            self.jobs.run("allocation.errors:errors_job", {
                "model": str(model), "imatrix": str(imatrix), "output": str(table),
                "types": list(TYPES),
            })  # fmt: skip
        # The header takes its bytes as well; a quantized model's is nearly the converted one's.
        head = 96 << 10
        self.jobs.run("allocation.mixing:mix_job", {
            "model": str(model), "imatrix": str(imatrix), "errors": str(table),
            "sensitivity": None, "name": "bench", "budget_bytes": file_bytes - head,
            "output": str(output), "record": str(output.with_suffix(".json")), "types": None,
            "threads": None,
        })  # fmt: skip
        return output, output.stat().st_size

    def score(self, model: Path, text: Path, adapter: Path | None = None) -> dict[str, Any]:
        """Measure against the model as it was."""
        return self.jobs.run("reshaping.correcting:compare_job", {
            "model": str(model), "reference": str(self.reference), "text": str(text),
            "window_tokens": WINDOW, "tokens": self.tokens,
            "adapters": [[str(adapter), 1.0]] if adapter else [],
        })  # fmt: skip


def outlier_rows(bench: Bench, quants: list[str], mixes: bool) -> dict[str, Any]:
    """Return clean, broken and mended figures for each quantization, and print them."""
    broken = bench.jobs.folder / "injected.gguf"
    inject_outliers(bench.reference, broken)
    figures: dict[str, Any] = {}
    clean_sizes: dict[str, int] = {}
    for name, model in (("clean", bench.reference), ("injected", broken)):
        made = {"off": model}
        for way in WAYS:
            done = bench.jobs.reshape(model, way, "Q4_K")
            made[way] = done.path.rename(bench.jobs.folder / f"{name}-{way}.gguf")
            print(f"{name:9} {way:13} the same function to {done.sameness.worst:.1e}", flush=True)
        imatrices = {way: bench.jobs.calibrate(path, f"{name}-{way}") for way, path in made.items()}
        for quant in quants:
            trials, rows = [], {}
            for way, path in made.items():
                trial, row = _row(bench, path, imatrices[way], quant, way)
                trials.append(trial)
                rows[way] = row
            plain, _ = bench.quantize(model, None, quant)
            rows["off, no imatrix"] = bench.score(plain, TEXTS / "heldout.txt")["kld_mean"]
            chosen, reason = choose(trials, GROWTH)
            figures[f"{name} {quant}"] = {
                **{way: _kld(row) for way, row in rows.items()}, "chosen": chosen,
                "sizes": {trial.way: trial.size_bytes for trial in trials},
                "error": rows[chosen]["kld_standard_error"],
            }  # fmt: skip
            print(f"{name:9} {quant:8} {_words(figures[f'{name} {quant}'])}", flush=True)
            print(f"          {reason}", flush=True)
            clean_sizes.setdefault(quant, trials[0].size_bytes)
            if mixes:
                at_same = {
                    way: bench.score(
                        bench.mix(path, imatrices[way], clean_sizes[quant])[0],
                        TEXTS / "heldout.txt",
                    )["kld_mean"]
                    for way, path in made.items()
                }
                figures[f"{name} {quant} mix"] = at_same
                print(
                    f"{name:9} {quant:8} as a mix of the same bytes: {_words(at_same)}", flush=True
                )
        for way, path in made.items():
            if way != "off":
                path.unlink()
    return figures


def _row(
    bench: Bench, path: Path, imatrix: Path, quant: str, way: str
) -> tuple[Trial, dict[str, Any]]:
    quantized, size = bench.quantize(path, imatrix, quant)
    seen, row = (
        bench.score(quantized, bench.measuring),
        bench.score(quantized, TEXTS / "heldout.txt"),
    )
    kept = ("kld_mean", "kld_standard_error", "top1_agreement", "perplexity")
    trial = Trial(way=way, quant=quant, size_bytes=size, **{k: seen[k] for k in kept})
    return trial, row


def _kld(row: Any) -> float:
    return round(row["kld_mean"] if isinstance(row, dict) else row, 5)


def _words(figures: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.5f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if name != "sizes"
    )


def correction_rows(bench: Bench, quant: str, shares: list[float]) -> list[dict[str, Any]]:
    """Return what an adapter of some share of the file gives, and what the same bytes give as bits."""
    imatrix = bench.jobs.calibrate(bench.reference, "correction")
    base, size = bench.quantize(bench.reference, imatrix, quant)
    base = base.rename(bench.jobs.folder / "base.gguf")
    rows = [{"row": quant, "bytes": size, "kld": _kld(bench.score(base, TEXTS / "heldout.txt"))}]
    for share in shares:
        total = size
        for method in METHODS:
            adapter = bench.jobs.folder / "adapter.gguf"
            made = bench.jobs.run("reshaping.correcting:correct_job", {
                "model": str(base), "reference": str(bench.reference), "text": str(bench.jobs.text),
                "window_tokens": WINDOW, "tokens": bench.jobs.calibration_tokens,
                "output": str(adapter), "budget_bytes": int(size * share), "method": method,
                "type": "Q8_0",
            })  # fmt: skip
            total = size + made["size_bytes"]
            found = bench.score(base, TEXTS / "heldout.txt", adapter)
            rows.append(
                {"row": f"{quant} + {share:.0%} {method}", "bytes": total, "kld": _kld(found)}
            )
        mixed, mixed_size = bench.mix(bench.reference, imatrix, total)
        found = bench.score(mixed, TEXTS / "heldout.txt")
        rows.append({"row": f"the same bytes as bits ({share:.0%})", "bytes": mixed_size,
                     "kld": _kld(found)})  # fmt: skip
    for row in rows:
        print(f"{row['row']:34} {row['bytes']:>12,} bytes  KLD {row['kld']:.5f}", flush=True)
    return rows


def as_gguf(model: Path, folder: Path) -> Path:
    """Return a model as GGUF."""
    if model.is_file():
        return model
    output = folder / f"{model.name}.gguf"
    files = {path.name: str(path) for path in model.iterdir() if path.is_file()}
    run_child(
        "bundler.builtin.llamacpp.jobs:convert_job",
        {"files": files, "output": str(output), "output_type": "auto", "name": model.name},
        environment=os.environ,
    )
    return output


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Return broken over clean and mended over clean, by quantization; clean is the model as it is."""
    found = {}
    for name in [key for key in figures if key.startswith("clean") and not key.endswith("mix")]:
        quant = name.split()[1]
        clean, hurt = figures[name], figures[f"injected {quant}"]
        best = min(hurt[way] for way in WAYS)
        found[f"{quant} broken/clean"] = hurt["off"] / clean["off"]
        found[f"{quant} chosen/clean"] = hurt[hurt["chosen"]] / clean["off"]
        found[f"{quant} best way/clean"] = best / clean["off"]
        found[f"{quant} clean chosen/off"] = clean[clean["chosen"]] / clean["off"]
        mixes = figures.get(f"clean {quant} mix"), figures.get(f"injected {quant} mix")
        if all(mixes):
            found[f"{quant} mix broken/clean"] = mixes[1]["off"] / mixes[0]["off"]
            found[f"{quant} mix best way/clean"] = min(mixes[1][w] for w in WAYS) / mixes[0]["off"]
    return {name: round(value, 3) for name, value in found.items()}


def main() -> int:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=[ROOT / "examples" / "model"])
    parser.add_argument("--quants", default=",".join(QUANTS))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--calibration-tokens", type=int, default=16_384)
    parser.add_argument("--no-mixes", action="store_true")
    parser.add_argument("--only", choices=("outliers", "correction"))
    parser.add_argument("--folder", type=Path)
    words = parser.parse_args()
    result: dict[str, Any] = {}
    for model in words.models:
        with tempfile.TemporaryDirectory(dir=words.folder) as name:
            folder = Path(name)
            front, back = divide_text(TEXTS / "calibration.txt", folder)
            jobs = Jobs(front, folder, os.environ, WINDOW, words.calibration_tokens)
            bench = Bench(jobs, back, as_gguf(model, folder), words.tokens)
            figures: dict[str, Any] = {}
            if words.only != "correction":
                found = outlier_rows(bench, words.quants.split(","), not words.no_mixes)
                figures |= {"outliers": found, "ratios": ratios(found)}
            if words.only != "outliers":
                figures["correction"] = correction_rows(bench, "Q3_K_M", [0.05, 0.2])
            result[model.name] = figures
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
