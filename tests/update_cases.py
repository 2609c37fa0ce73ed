"""Two versions of a small bundle, signed, and the delta between them; for tests of updates."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bundler.hardware import Target
from bundler.layout import Layout
from bundler.manifest import Manifest
from bundler.media.keyring import Keyring
from bundler.media.keys import new_key, open_secret_key, read_ring, side_files
from bundler.seal import seal
from bundler.store import Store
from bundler.update.making import Made, make_delta
from bundler.world import World
from tests.media import SEGMENT_BYTES, noise

PROGRAMS = ("start", "runtime/tool")


def version(
    folder: Path, files: dict[str, bytes], number: int, *, keys: Path | None = None,
    percent: float = 10, segment_bytes: int = SEGMENT_BYTES, name: str = "clinic",
) -> Path:  # fmt: skip
    """Build one version of a bundle and return it; signed when `keys` has a key."""
    world = World(store=Store(folder / "store"))
    layout = Layout()
    for path, data in files.items():
        layout.add_data(path, data, executable=path in PROGRAMS or path.endswith("/python3"))
    manifest = Manifest(
        name=name, version=str(number), title="Clinic", created=number, builder="bundler test",
        target=Target(name="t", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="1" * 64, models=(), corpora=(), step_keys={},
        files=(), segment_bytes=segment_bytes,
    )  # fmt: skip
    output = folder / f"{name}-{number}"

    def beside(data: bytes) -> dict[str, bytes]:
        if keys is None:
            return {}
        key = open_secret_key(keys, lambda: "")
        return side_files(Manifest.model_validate_json(data), data, key, read_ring(keys))

    seal(layout, manifest, output, world, beside, parity_percent=percent)
    return output


def first_files() -> dict[str, bytes]:
    """Return the files of the first version."""
    return {
        "models/chat/chat.gguf": noise("chat", 12 * SEGMENT_BYTES + 777),
        "corpora/health.zim": noise("zim", 5 * SEGMENT_BYTES),
        "runtime/tool": noise("tool", 30_000),
        "runtime/old/gone.py": b"print('gone')\n",
        "app/page.html": b"<p>one page of many words</p>" * 40,
        "app/same.html": b"the same",
        "licenses/a.txt": b"the same text",
        "licenses/b.txt": b"the same text",
        "notes": b"a file that becomes a folder",
        "empty": b"",
        "start": b"#!/bin/sh\nexec true\n",
    }


def second_files() -> dict[str, bytes]:
    """Return those of the second: changed, moved, new, lost, turned from file to folder."""
    files = first_files()
    chat = files["models/chat/chat.gguf"]
    files["models/chat/chat.gguf"] = (
        chat[:100_000] + b"inserted" + chat[100_000:400_000] + noise("new", 9_000) + chat[420_000:]
    )
    files["corpora/health-2026.zim"] = files.pop("corpora/health.zim")
    del files["runtime/old/gone.py"]
    del files["notes"]
    files["notes/today.txt"] = b"a folder that was a file"
    files["app/page.html"] = files["app/page.html"].replace(b"many", b"several", 3)
    files["licenses/c.txt"] = b"the same text"
    files["second-empty"] = b""
    return files


def copied(bundle: Path, target: Path) -> Path:
    """Copy a bundle as to a stick, where everything can be written."""
    shutil.copytree(bundle, target)
    for path in target.rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)
    return target


def tree(root: Path) -> dict[str, object]:
    """Return path → content and whether it is a program; folders too."""
    return {
        path.relative_to(root).as_posix(): "folder"
        if path.is_dir()
        else (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for path in sorted(root.rglob("*"))
    }


class Case:
    """Two versions, a key that signed both, and the delta from one to the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        new_key(self.keys, "", "the makers")
        self.first = version(folder, first_files(), 1, keys=self.keys)
        self.second = version(folder, second_files(), 2, keys=self.keys)
        self.made = self.delta("delta")

    @property
    def ring(self) -> Keyring:
        """Return what the machine knows that made both."""
        return read_ring(self.keys)

    def delta(self, name: str, *, old: Path | None = None, new: Path | None = None) -> Made:
        """Make a signed delta."""
        return make_delta(
            old or self.first, new or self.second, self.folder / name, sign=self.sign,
            makers=tuple(key.public_key for key in self.ring.keys.values()),
        )  # fmt: skip

    def sign(self, data: bytes, comment: str) -> bytes:
        """Sign as `bundler update make` does."""
        key = open_secret_key(self.keys, lambda: "")
        return bytes(key.sign(data, trusted_comment=comment)) + b"\n"

    def stick(self, name: str) -> Path:
        """Return a new copy of the first version."""
        return copied(self.first, self.folder / name)

    def delta_copy(self, name: str) -> Path:
        """Return a copy of the delta that can be spoiled."""
        target = self.folder / name
        shutil.copytree(self.made.root, target)
        return target


def flip(path: Path, offset: int) -> None:
    """Flip one bit."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
        os.fsync(stream.fileno())
