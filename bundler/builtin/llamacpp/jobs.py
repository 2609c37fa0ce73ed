"""Child jobs of our own code that needs no llama.cpp, but must not take the build down either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def convert_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: safetensors to GGUF. Arguments: files (name → path), output, output_type, name."""
    from bundler.builtin.llamacpp.convert import convert

    return dict(
        convert(
            {name: Path(path) for name, path in arguments["files"].items()},
            Path(arguments["output"]),
            output_type=arguments["output_type"],
            name=arguments["name"],
            progress=report,
        )
    )


def shard_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: a model's files to shards. Arguments: files (in order), folder, most_bytes."""
    from bundler.builtin.llamacpp.sharding import STEM
    from bundler.weights.cutting import write_shards

    folder = Path(arguments["folder"])
    names = write_shards(
        [Path(path) for path in arguments["files"]], folder, STEM, int(arguments["most_bytes"]),
        lambda done, total: report(done, total, "bytes"),
    )  # fmt: skip
    return {"shards": len(names), "size_bytes": sum((folder / n).stat().st_size for n in names)}
