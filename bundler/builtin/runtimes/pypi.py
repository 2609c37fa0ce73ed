"""The source `pypi`: wheels, and llama.cpp's source, by name and digest, fetched by pip.

pip is asked, and not an address, so that whatever a person has configured for it (an index of
their own, a mirror, a proxy, a folder of wheels, certificates) holds here too, and no lock has a
host name in it. An address is `pypi:<name>==<version>/<file>#sha256=<digest>`; pip is told the
digest and refuses anything else, and the core looks again.

A runtime's lock also holds the archive of a ready-made Python, whose address is a URL: that is
handed on to the source `http`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from bundler.builtin.runtimes.pinned import (
    PIP_PLATFORMS,
    PYTHON_VERSION,
    http_source,
    pinned_wheels,
)
from bundler.errors import SourceError
from bundler.hookspecs import ByteStream
from bundler.lock import LockedFile, Resolution
from bundler.recipe import SourceReference
from bundler.world import World

_BLOCK = 1 << 20
_ADDRESS = re.compile(
    r"pypi:(?P<name>[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)==(?P<version>[0-9][0-9A-Za-z.!+]*)"
    r"/(?P<file>[0-9A-Za-z][0-9A-Za-z._+!-]*\.(?:whl|tar\.gz))#sha256=(?P<sha256>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class WheelAddress:
    """One wheel as an address names it."""

    name: str
    version: str
    file: str
    sha256: str

    @classmethod
    def parse(cls, address: str) -> WheelAddress:
        """Read an address; raise SourceError for anything else."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise SourceError(
                "is not `pypi:<name>==<version>/<file>#sha256=<digest>`",
                where=address,
                hint="make the lock anew: bundler lock",
            )
        return cls(**match.groupdict())

    def pip_arguments(self) -> list[str]:
        """Return what tells pip for which machine the wheel is, or that it is a source."""
        if self.file.endswith(".tar.gz"):
            # pip asks a source for its metadata by its build program, unless this one is here.
            own = importlib.util.find_spec("scikit_build_core") is not None
            return ["--no-binary=:all:", *(["--no-build-isolation"] if own else [])]
        try:
            tags = parse_wheel_filename(self.file)[3]
        except InvalidWheelFilename as error:
            raise SourceError(str(error), where=self.file) from error
        platforms = sorted({tag.platform for tag in tags} - {"any"})
        # pip takes `--python-version` only beside a platform; a wheel for any of them is for ours.
        tags_given = [f"--platform={platform}" for platform in platforms or ["any"]]
        return ["--only-binary=:all:", f"--python-version={PYTHON_VERSION}", *tags_given]


class PypiSource:
    """Wheels, wherever pip finds them."""

    name = "pypi"

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Return the wheels of a pinned package, `pypi:<name>==<version>`, for all platforms."""
        wheels = {
            wheel.sha256: LockedFile(
                path=wheel.file,
                size_bytes=wheel.size_bytes,
                sha256=wheel.sha256,
                addresses=(wheel.address,),
            )
            for platform in PIP_PLATFORMS
            for wheel in pinned_wheels(platform)
            if reference.locator == f"{wheel.name}=={wheel.version}"
        }
        if not wheels:
            raise SourceError(
                "only packages that a runtime is made of are pinned",
                where=str(reference),
                hint="download the file with pip and name it with `path:`",
            )
        return Resolution(
            source=self.name,
            reference=str(reference),
            revision=reference.locator.partition("==")[2],
            files=tuple(sorted(wheels.values(), key=lambda file: file.path)),
        )

    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> AbstractContextManager[ByteStream]:
        """Open a wheel, or the archive of a ready-made Python, at a byte."""
        if address.startswith(("https:", "http:")):
            return http_source().open(
                address, start=start, end=end, validator=validator, world=world
            )
        return _open_wheel(WheelAddress.parse(address), start, end, world)


@contextmanager
def _open_wheel(
    wheel: WheelAddress, start: int, end: int | None, world: World
) -> Iterator[ByteStream]:
    if world.offline:
        raise SourceError("cannot be fetched: no connection may be opened", where=wheel.file)
    with world.store.scratch() as scratch:
        path = _downloaded(wheel, scratch, world)
        size = path.stat().st_size
        with path.open("rb") as stream:
            stream.seek(start)
            until = size if end is None else min(end, size)
            chunks = iter(lambda: stream.read(min(_BLOCK, max(0, until - stream.tell()))), b"")
            # The digest is part of the address, so all parts are of one version.
            yield ByteStream(start, size, wheel.sha256, chunks)


def _downloaded(wheel: WheelAddress, folder: Path, world: World) -> Path:
    """Have pip fetch a wheel into `folder`; return it."""
    wishes = folder / "wishes.txt"
    wishes.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input",
        "--disable-pip-version-check", "--require-hashes", *wheel.pip_arguments(),
        f"--dest={folder}", f"--requirement={wishes}",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=dict(world.environment), capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    path = folder / wheel.file
    if done.returncode or not path.is_file():
        raise SourceError(
            f"pip could not fetch it: {_shortened(done.stderr)}",
            where=wheel.file,
            hint="look at `pip config list`: index, mirror, proxy; or try again later",
        )
    return path


def _shortened(words: str) -> str:
    """Return what pip says is wrong, without its progress and its warnings."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return " ".join(errors or lines[-3:])[:400] or "it said nothing"
