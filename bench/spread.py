"""How far do the bounds of a bundle's proof move: with threads, with the batch, with another quant?

    .venv/bin/python bench/spread.py BUNDLE [OTHER.gguf ...]

Prints the mean distance of the bounds from those of the manifest, and what is allowed. The far end's
own runtime says the same figure in `BUNDLE/start selftest`. Ends with one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bundler.builtin.llamacpp.child import run_child
from bundler.rechecking import SPREAD_NATS, SPREAD_SHARE
from bundler.verify import read_manifest


def main() -> int:
    """Measure each model in several ways and print how far its bounds moved."""
    root = Path(sys.argv[1])
    summary = {}
    for model in read_manifest(root).models:
        if model.proof is None or model.proof.fingerprint is None:
            continue
        known = model.proof.fingerprint
        then = known.sample_bounds
        allowed = SPREAD_NATS + SPREAD_SHARE * sum(then) / len(then)
        print(f"{model.name}: noted {sum(then) / len(then):.6f} nats, allowed {allowed:.6f}")
        ways = [("as it ships", root / model.file, {})]
        ways += [(f"{n} threads", root / model.file, {"threads": n}) for n in (2, 4)]
        ways += [("q8_0 cache", root / model.file, {"kv_cache": "q8_0"})]
        ways += [(Path(path).name, Path(path), {}) for path in sys.argv[2:]]
        for name, path, more in ways:
            found = run_child(
                "bundler.builtin.llamacpp.recheck:recheck_job",
                {"model": str(path), "fingerprint": str(root / known.file), "title": name,
                 "kv_cache": model.kv_cache, "seconds": 0,
                 "sample_positions": list(known.sample_positions), **more},
                environment=os.environ,
            )["sample_bounds"]  # fmt: skip
            apart = sum(abs(a - b) for a, b in zip(then, found, strict=True)) / len(then)
            summary[f"{model.name}: {name}"] = apart
            print(f"{name:24} {apart:.6f} nats apart")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
