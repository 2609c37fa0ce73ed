"""Builds a whole bundle of fakes; run as a program, it is what gets killed in the tests."""

import sys
from pathlib import Path

from bundler import pipeline
from bundler.events import silent
from bundler.plugins import load_plugins
from bundler.store import Store
from bundler.testing.fakes import MAGIC, Fakes
from bundler.world import World

RECIPE = """\
schema = 1
[bundle]
name = "fake"
[target]
ram = "1 GB"
[models.chat]
source = "memory:weights"
engine = "fake"
context_tokens = 64
gates = { max_kld_mean = 0.5 }
[corpora.book]
kind = "fake"
source = "memory:book"
licence = "CC0-1.0"
[runtime]
use = ["fake"]
"""


def fakes() -> Fakes:
    found = Fakes()
    found.source.files = {
        "weights": {"all.fake": MAGIC + bytes(range(256)) * 4000},
        "book": {f"{n}.txt": b"page %d " % n * 1000 for n in range(5)} | {"LICENSE": b"CC0"},
    }
    return found


def run(
    folder: Path, plugin: Fakes | None = None, recipe: str = RECIPE,
    *, report=silent, critics=(), **options,
):  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fake.toml"
    path.write_text(recipe)
    world = World(
        store=Store(folder / "store"), folder=folder, environment={"SOURCE_DATE_EPOCH": "1"},
        report=report,
    )  # fmt: skip
    plugins = load_plugins(extra=[plugin or fakes(), *critics])
    return pipeline.build(path, folder / "dist" / "fake", plugins, world, **options)


if __name__ == "__main__":
    print(run(Path(sys.argv[1])).manifest_sha256)
