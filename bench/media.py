"""Times what keeps media alive against the tools that people would use instead, on the same bytes.

    .venv/bin/python bench/media.py                # 1 GiB of random bytes in a folder that is removed
    .venv/bin/python bench/media.py --mib 256 --runs 3

Everything is read from a warm cache and in turns. Verifying and deploying (`bench/deploying.py`) are
compared by wall time, sealing and repairing by CPU seconds of all processes outside the kernel. Ends with one line of JSON: median ratios, in which more
is better for `times_as_fast` and less is better for `cpu_ratio`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bundler.hardware import Target
from bundler.layout import Layout
from bundler.manifest import Manifest
from bundler.media.par2 import program
from bundler.media.repair import repair_bundle
from bundler.seal import seal
from bundler.store import Store
from bundler.verify import read_manifest, verify_bundle
from bundler.world import World

SHARES = {"models/chat/chat.gguf": 10, "corpora/wikipedia.zim": 6}


def wall(call: Callable[[], object]) -> float:
    """Return how long a call takes, in wall seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def cpu(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call and its child processes take."""
    before = os.times()
    call()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def user_cpu(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call and its child processes take outside the kernel."""
    before = os.times()
    call()
    after = os.times()
    return after.user + after.children_user - before.user - before.children_user


def run(*words: object, folder: Path, code: int = 0) -> None:
    """Run a program quietly; its code must be the one expected."""
    done = subprocess.run([str(w) for w in words], cwd=folder, capture_output=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"{words[0]} ended with {done.returncode}: {done.stderr[-500:]!r}")


class Sealing:
    """The same two objects, sealed from a store that knows nothing of them."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        self.world = World(store=Store(folder / "store"))
        self.layout = Layout()
        for path, share in SHARES.items():
            source = folder / "source"
            with source.open("wb") as writer:
                for _ in range(mib * share // 16):
                    writer.write(os.urandom(1 << 20))
            self.layout.add_object(path, *self.world.store.adopt(source, move=True))

    def bundle(self) -> Path:
        """Seal, forgetting what was remembered of segments and parity."""
        output = self.folder / "dist" / "b"
        for path in (output, self.world.store.root / "results"):
            shutil.rmtree(path, ignore_errors=True)
        (self.world.store.root / "results").mkdir()
        seal(self.layout, manifest(), output, self.world, parity_percent=5)
        return output


def manifest() -> Manifest:
    """Return the manifest of a bundle that holds nothing yet."""
    return Manifest(
        name="bench", version="1", title="Bench", created=1, builder="bench",
        target=Target(name="t", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="1" * 64, models=(), corpora=(), step_keys={}, files=(),
    )  # fmt: skip


def hash_all(bundle: Path) -> None:
    """Hash every file with the standard library, as the plainest verifier would."""
    for file in read_manifest(bundle).files:
        with (bundle / file.path).open("rb") as stream:
            hashlib.file_digest(stream, "sha256")


def verifying(bundle: Path, peer: Path, runs: int) -> dict[str, float]:
    """Compare `bundler verify` with what reads the same bytes."""
    cores = min(4, os.cpu_count() or 1)
    theirs: dict[str, Callable[[], object]] = {
        "hashlib.file_digest": lambda: hash_all(bundle),
        "sha256sum -c": lambda: run("sha256sum", "-c", "--quiet", "SHA256SUMS", folder=bundle),
        "par2 verify": lambda: run(program(), "verify", "-q", "-q", "all.par2", folder=peer),
    }
    ours = lambda workers: verify_bundle(bundle, workers=workers)  # noqa: E731
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        one, many = wall(lambda: ours(1)), wall(lambda: ours(cores))
        for name, call in theirs.items():
            seconds = wall(call)
            found.setdefault(f"verify on {cores} cores, times as fast as {name}", []).append(
                seconds / many
            )
            if name == "hashlib.file_digest":
                found.setdefault("verify on 1 core, times as fast as it", []).append(seconds / one)
    return {name: statistics.median(ratios) for name, ratios in found.items()}


def sealing(job: Sealing, peer: Path, runs: int) -> dict[str, float]:
    """Compare sealing with hashing and making the same parity by hand.

    A seal reads the new bundle back before it takes its name, which nobody does by hand: that is
    given apart, and so is the kernel's time (see `repairing`).
    """

    def by_hand() -> None:
        for path in peer.glob("all*.par2"):
            path.unlink()
        names = [path.name for path in sorted(peer.iterdir())]
        run("openssl", "dgst", "-sha256", *names, folder=peer)
        run(
            program(), "create", "-q", "-q", "-b2000", "-r5", "-n1", "all.par2", *names, folder=peer
        )

    tries = [sealed_once(job, by_hand, ours_first=n % 2 == 0) for n in range(2 * runs)]
    again = [sealed_once(job, by_hand, ours_first=n % 2 == 0, took=cpu) for n in range(2)]
    walls = [wall(job.bundle) / wall(by_hand) for _ in range(runs)]
    ours, looking, theirs = (min(column) for column in zip(*tries, strict=True))
    with_kernel = [min(column) for column in zip(*again, strict=True)]
    return {
        "seal, user_cpu_ratio to openssl sha256 + par2 create": (ours - looking) / theirs,
        "seal and read all of it back, user_cpu_ratio to it": ours / theirs,
        "seal and read all of it back, cpu_ratio with the kernel's time": with_kernel[0]
        / with_kernel[2],
        "seal and read all of it back, wall_ratio": statistics.median(walls),
    }


def sealed_once(
    job: Sealing, by_hand: Callable[[], None], *, ours_first: bool,
    took: Callable[[Callable[[], object]], float] = user_cpu,
) -> tuple[float, float, float]:  # fmt: skip
    """Return the CPU seconds of sealing, of the reading back in it, and of doing it by hand."""
    calls = (job.bundle, by_hand) if ours_first else (by_hand, job.bundle)
    seconds = {call: took(call) for call in calls}
    looking = took(lambda: verify_bundle(job.folder / "dist" / "b"))
    return seconds[job.bundle], looking, seconds[by_hand]


def repairing(bundle: Path, peer: Path, runs: int) -> dict[str, float]:
    """Compare repairing a hole with `par2 repair`, both from copies that can be written.

    Each begins as often as the other, and the least of each counts. Time in the kernel is given
    apart: in a virtual machine whoever is first to touch free memory pays for it, and that was seen
    to take longer than the work itself.
    """
    tries = [repaired_once(bundle, peer, ours_first=n % 2 == 0) for n in range(2 * runs)]
    again = [repaired_once(bundle, peer, ours_first=n % 2 == 0, took=cpu) for n in range(2)]
    ours, looking, theirs = (min(column) for column in zip(*tries, strict=True))
    with_kernel = [min(column) for column in zip(*again, strict=True)]
    return {
        "repair, user_cpu_ratio to par2 repair": ours / theirs,
        "repair without its verify, user_cpu_ratio to it": (ours - looking) / theirs,
        "repair, cpu_ratio with the kernel's time": with_kernel[0] / with_kernel[2],
    }


def repaired_once(
    bundle: Path, peer: Path, *, ours_first: bool,
    took: Callable[[Callable[[], object]], float] = user_cpu,
) -> tuple[float, float, float]:  # fmt: skip
    """Return the CPU seconds of our repair, of the verify in it, and of par2's."""
    stick, other = bundle.with_name("stick"), peer.with_name("other")
    for source, target in ((bundle, stick), (peer, other)):
        shutil.copytree(source, target)
        for path in (p for p in target.rglob("*") if p.is_file()):
            path.chmod(0o644)
    for path in (stick / "models/chat/chat.gguf", other / "chat.gguf"):
        with path.open("r+b") as stream:
            stream.seek(path.stat().st_size // 2)
            stream.write(bytes(1 << 20))
    os.sync()  # what was copied just now must not be written during one of the two
    looking = took(lambda: verify_bundle(stick))
    calls = {
        "ours": lambda: repair_bundle(stick),
        "theirs": lambda: run(program(), "repair", "-q", "-q", "all.par2", folder=other),
    }
    order = ("ours", "theirs") if ours_first else ("theirs", "ours")
    seconds = {name: took(calls[name]) for name in order}
    if verify_bundle(stick).findings:
        raise SystemExit("the repaired bundle is not as it was")
    shutil.rmtree(stick)
    shutil.rmtree(other)
    return seconds["ours"], looking, seconds["theirs"]


def deploying(mib: int, runs: int, folder: Path | None) -> dict[str, float]:
    """Compare deploying with doing its parts by hand; that bench takes its bundle from this one."""
    from bench.deploying import deploy_ratios

    return deploy_ratios(mib, runs, folder)


def main() -> int:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=960, help="size of the bundle")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=words.folder) as name:
        job, peer = Sealing(Path(name), words.mib), Path(name) / "peer"
        bundle = job.bundle()
        peer.mkdir()
        for path in SHARES:
            shutil.copy(bundle / path, peer / Path(path).name)
        figures = sealing(job, peer, words.runs)
        bundle = job.bundle()
        figures |= verifying(bundle, peer, words.runs) | repairing(bundle, peer, words.runs)
    figures |= deploying(words.mib, words.runs, words.folder)
    for what, ratio in figures.items():
        print(f"{ratio:6.2f}  {what}")
    print(
        json.dumps(
            {"mib": words.mib, "runs": words.runs, **{k: round(v, 3) for k, v in figures.items()}}
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
