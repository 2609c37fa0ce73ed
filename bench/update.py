"""What an update costs in bytes: a model quantized anew, and a library of articles a month later.

    .venv/bin/python bench/update.py                 # builds the example twice, and two ZIM files
    .venv/bin/python bench/update.py --articles 6000

Each changed file is sent in four ways: our delta (with `--smallest` too, where it is a ZIM), what
rsync would send (rolling blocks, found anywhere in the old version), fixed blocks of 8 KiB that the
old version has nowhere, and the whole file packed by zstd at the same level. Every delta is applied
and the result held against the new bundle byte for byte. Ends with one line of JSON, in bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zstandard

from bundler.hardware import Target
from bundler.layout import Layout
from bundler.manifest import Manifest
from bundler.seal import seal
from bundler.store import Store
from bundler.testing.station_bundle import make_zim
from bundler.update.applying import Trust, apply_delta
from bundler.update.delta import Delta, New, Repacked
from bundler.update.making import make_delta
from bundler.verify import read_manifest
from bundler.world import World

ROOT = Path(__file__).parents[1]
FIXED_BYTES = 8 << 10
LEVEL = 12


def quickstart(folder: Path, version: int, quant: str, store: Path) -> Path:
    """Build the example as a version of its own: another quant, and a handbook that grew."""
    place = folder / f"recipe-{version}"
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("*.lock"))
    recipe = place / "recipes/quickstart.toml"
    text = recipe.read_text()
    text = re.sub(r"^quant = .*$", f'quant = ["{quant}"]', text, flags=re.MULTILINE)
    text = re.sub(r"^max_kld_mean = .*$", "max_kld_mean = 1.0", text, flags=re.MULTILINE)
    text = re.sub(r"^min_top1 = .*$", "min_top1 = 0.1", text, flags=re.MULTILINE)
    text = text.replace('name = "quickstart"', f'name = "quickstart"\nversion = "{version}"', 1)
    recipe.write_text(text)
    if version > 1:
        article = next((place / "examples/handbook").rglob("mayday-call.md"))
        article.write_text(
            article.read_text() + "\nWrite down when you called, and who answered.\n"
        )
    output = folder / f"quickstart-{version}"
    command = [sys.executable, "-m", "bundler", "build", recipe, "--output", output]
    words = [*command, "--store", store, "--keys", folder / "no-keys", "--progress", "quiet"]
    subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)
    return output


def library(folder: Path, version: int, articles: dict[str, dict[str, list[str]]]) -> Path:
    """Seal a bundle that holds one ZIM of these articles."""
    world = World(store=Store(folder / "store"))
    zim = make_zim(folder / f"library-{version}.zim", articles)
    layout = Layout()
    layout.add_object("corpora/library.zim", *world.store.adopt(zim))
    manifest = Manifest(
        name="library", version=str(version), title="Library", created=version, builder="bench",
        target=Target(name="t", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="1" * 64, models=(), corpora=(), step_keys={}, files=(),
    )  # fmt: skip
    output = folder / f"library-{version}.bundle"
    seal(layout, manifest, output, world, parity_percent=5)
    return output


def written(count: int, seed: str) -> dict[str, dict[str, list[str]]]:
    """Return articles of sentences put together anew from the texts that come with bundler."""
    chance = random.Random(seed)
    text = (ROOT / "bundler/texts/calibration.txt").read_text()
    phrases = [" ".join(words) for words in zip(*[iter(text.split())] * 7, strict=False)]
    return {
        f"{seed} article {number}": {
            "": [
                " ".join(chance.choices(phrases, k=12)) + "."
                for _ in range(chance.randrange(3, 14))
            ]
        }
        for number in range(count)
    }


def a_month_later(articles: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    """Return them with one in twenty edited by a sentence, and one in a hundred added."""
    chance = random.Random("month")
    later = {title: {"": list(body[""])} for title, body in articles.items()}
    for title in chance.sample(sorted(later), len(later) // 20):
        later[title][""].insert(1, "A sentence that somebody added this month.")
    return later | written(len(articles) // 100, "new")


def fixed_blocks(old: Path, new: Path, path: str) -> int:
    """Return how many bytes of a file lie in blocks that no old file has in its own grid."""
    there = set()
    for file in read_manifest(old).files:
        data = (old / file.path).read_bytes()
        there |= {digest for digest, _ in blocks(data)}
    return sum(size for digest, size in blocks((new / path).read_bytes()) if digest not in there)


def blocks(data: bytes) -> list[tuple[bytes, int]]:
    """Return digest and size of each block."""
    cut = [data[i : i + FIXED_BYTES] for i in range(0, len(data), FIXED_BYTES)]
    return [(hashlib.blake2b(block, digest_size=16).digest(), len(block)) for block in cut]


def carried(delta: Delta, path: str) -> tuple[int, int]:
    """Return what travels for a file, and how many bytes of it that stands for."""
    spans = next((one.spans for one in delta.rebuilt if one.path == path), ())
    news = [
        s.plain if isinstance(s, Repacked) else s for s in spans if isinstance(s, New | Repacked)
    ]
    stored = sum(delta.packs[new.pack].pieces[new.piece].size_bytes for new in news)
    return stored, sum(new.size_bytes for new in news)


def compared(folder: Path, old: Path, new: Path, *, smallest: bool) -> dict[str, dict[str, int]]:
    """Make the delta, apply it, and return what each kind of file costs in each way."""
    made = make_delta(old, new, folder / f"delta-{old.name}")
    applied(folder, old, new, made.root)
    figures: dict[str, dict[str, int]] = {}
    for one in made.delta.rebuilt:
        kind = one.path.split("/")[0] if "/" in one.path else "other files"
        stored, rolling = carried(made.delta, one.path)
        row = {
            "new bytes": (new / one.path).stat().st_size, "our delta": stored, "rsync": rolling,
            "fixed blocks": fixed_blocks(old, new, one.path),
            "zstd": len(zstandard.compress((new / one.path).read_bytes(), LEVEL)),
        }  # fmt: skip
        total = figures.setdefault(kind, dict.fromkeys(row, 0))
        figures[kind] = {name: total[name] + count for name, count in row.items()}
    figures["whole bundle"] = {
        "new bytes": made.new_version_bytes, "our delta": made.size_bytes,
        **{way: sum(f[way] for f in figures.values()) for way in ("rsync", "fixed blocks", "zstd")},
    }  # fmt: skip
    if smallest:
        started = time.perf_counter()
        least = make_delta(old, new, folder / f"least-{old.name}", smallest=True)
        between = time.perf_counter()
        applied(folder, old, new, least.root)
        figures["whole bundle, --smallest"] = {
            "new bytes": made.new_version_bytes, "our delta": least.size_bytes,
            "milliseconds to make": round(1000 * (between - started)),
            "milliseconds to apply": round(1000 * (time.perf_counter() - between)),
        }  # fmt: skip
    return figures


def applied(folder: Path, old: Path, new: Path, delta: Path) -> None:
    """Apply a delta to a copy and hold the result against the new bundle."""
    stick = folder / "stick"
    shutil.copytree(old, stick)
    apply_delta(delta, stick, Trust(unsigned=True))
    done = subprocess.run(["diff", "-r", stick, new], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the updated bundle is another one:\n{done.stdout[-500:]}")
    shutil.rmtree(stick)


def show(title: str, figures: dict[str, dict[str, int]]) -> None:
    """Print one case as a table."""
    print(title)
    for kind, row in figures.items():
        share = 100 * row["our delta"] / max(1, row["new bytes"])
        rest = ", ".join(f"{way} {count:,}" for way, count in row.items() if way != "our delta")
        print(f"  {kind:26} our delta {row['our delta']:>12,} ({share:5.1f} %); {rest}")


def main() -> int:
    """Run both cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=4000, help="of the library")
    parser.add_argument("--store", type=Path, default=ROOT / ".cache/store")
    words = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        articles = written(words.articles, "old")
        old, new = library(folder, 1, articles), library(folder, 2, a_month_later(articles))
        found["an updated ZIM"] = compared(folder, old, new, smallest=True)
        show("an updated ZIM: 5 % of the articles edited, 1 % new", found["an updated ZIM"])
        words.store.parent.mkdir(parents=True, exist_ok=True)
        old = quickstart(folder, 1, "Q4_K_M", words.store)
        new = quickstart(folder, 2, "Q5_K_M", words.store)
        title = "the example: Q4_K_M → Q5_K_M, one article changed"
        found[title] = compared(folder, old, new, smallest=False)
        show(title, found[title])
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
