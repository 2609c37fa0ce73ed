"""Small sealed bundles with parity, and ways to damage them."""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
from pathlib import Path

from bundler.hardware import Target
from bundler.layout import Layout
from bundler.manifest import Manifest
from bundler.media.packets import MAGIC
from bundler.seal import seal
from bundler.store import Store
from bundler.world import World

SEGMENT_BYTES = 1 << 16
"""Small, so that small files are large ones."""


def noise(seed: str, size_bytes: int) -> bytes:
    """Return bytes that look like weights, the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def some_files() -> dict[str, bytes]:
    """Return a bundle's files: a large one, middle ones, many small ones, an empty one, twins."""
    files = {
        "models/chat/chat.gguf": noise("chat", 40 * SEGMENT_BYTES + 777),
        "corpora/b.zim": noise("zim", 9 * SEGMENT_BYTES),
        "runtime/lib.so": noise("lib", 30_000),
        "runtime/second.so": noise("second", 5_000),
        "runtime/empty.py": b"",
        "licenses/a.txt": b"the same text",
        "licenses/b.txt": b"the same text",
        "start": b"#!/bin/sh\nexec true\n",
    }
    files |= {f"app/page{i:02d}.html": noise(f"page{i}", 150 + 7 * i) for i in range(30)}
    return files


def empty_manifest(layout: Layout, segment_bytes: int = SEGMENT_BYTES) -> Manifest:
    return Manifest(
        name="test", version="1", title="Test", created=1, builder="bundler test",
        target=Target(name="t", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="1" * 64, models=(), corpora=(), step_keys={},
        files=(), segment_bytes=segment_bytes,
    )  # fmt: skip


def sealed(
    folder: Path, files: dict[str, bytes] | None = None, *, percent: float = 10,
    segment_bytes: int = SEGMENT_BYTES, beside=lambda data: {},
    programs: dict[str, bytes] | None = None,
) -> Path:  # fmt: skip
    """Build a bundle at `folder`/dist/b and return it."""
    world = World(store=Store(folder / "store"))
    layout = Layout()
    for path, data in (some_files() if files is None else files).items():
        if path == "start" or path.endswith(".html"):
            layout.add_data(path, data, executable=path == "start")
        else:
            layout.add_object(path, *world.store.put(data))
    for path, data in (programs or {}).items():
        layout.add_object(path, *world.store.put(data), executable=True)
    output = folder / "dist" / "b"
    made = empty_manifest(layout, segment_bytes)
    seal(layout, made, output, world, beside, parity_percent=percent)
    return output


def copied(bundle: Path, target: Path) -> Path:
    """Copy a bundle as to a stick: nothing is shared with a store, and all can be written."""
    shutil.copytree(bundle, target)
    for path in target.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o200)
    return target


def digests(bundle: Path) -> dict[str, str]:
    """Return path → SHA-256 of everything that lies in a bundle."""
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(bundle.rglob("*")) if path.is_file()
    }  # fmt: skip


def overwrite(path: Path, offset: int, size_bytes: int, seed: str = "rot") -> None:
    """Put other bytes into a file, at least one of them different."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        old = stream.read(size_bytes)
        new = bytes(b ^ (r | 1) for b, r in zip(old, noise(seed, len(old)), strict=True))
        stream.seek(offset)
        stream.write(new)


def packet(kind: bytes, body: bytes, set_id: bytes = b"s" * 16) -> bytes:
    """Return a PAR2 packet whose checksum is right."""
    digest = hashlib.md5(set_id + kind + body, usedforsecurity=False).digest()
    return MAGIC + struct.pack("<Q", 64 + len(body)) + digest + set_id + kind + body
