"""What runtimes for other platforms are made of: wheels pinned by digest, a ready-made Python.

The wheels' names, versions, sizes, digests and licences are in `wheels.json`, which
`tools/pin_wheels.py` writes. The Python is a release of python-build-standalone; the digests of its
archives are read from the release's own SHA256SUMS when a lock is made, and pinned by the lock.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import quote

from bundler.errors import SourceError
from bundler.hardware import Platform
from bundler.hookspecs import Source
from bundler.lock import LockedFile
from bundler.recipe import SourceReference
from bundler.value import RelativePath, Sha256, Value
from bundler.world import World

TABLE = Path(__file__).with_name("wheels.json")
PYTHON_VERSION = "3.11.16"
PYTHON_RELEASE = "20260814"
"""Date, and so tag, of the python-build-standalone release that has this version."""
RELEASES = "https://github.com/astral-sh/python-build-standalone/releases/download"
"""Where releases are; `BUNDLER_PYTHON_RELEASES` names a mirror with the same layout."""

PIP_PLATFORMS: dict[Platform, tuple[str, ...]] = {
    "linux-x86_64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "linux-aarch64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    "macos-arm64": ("macosx_13_0_arm64",),
    "macos-x86_64": ("macosx_13_0_x86_64",),
    "windows-x86_64": ("win_amd64",),
}
"""Our platforms → the tags of wheels that run there, as pip is to be asked for them."""

_SUMS_BYTES = 4 << 20
_SUM = re.compile(r"([0-9a-f]{64}) [ *](\S+)")
_TRIPLES: dict[Platform, str] = {
    "linux-x86_64": "x86_64-unknown-linux-gnu",
    "linux-aarch64": "aarch64-unknown-linux-gnu",
    "macos-arm64": "aarch64-apple-darwin",
    "macos-x86_64": "x86_64-apple-darwin",
    "windows-x86_64": "x86_64-pc-windows-msvc",
}
# What `requirements/runtime.lock` pins for the build side; a test holds the two together.
LLAMA_SOURCE_VERSION = "0.3.36"
LLAMA_SOURCE_BYTES = 76_589_250
LLAMA_SOURCE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


class PinnedWheel(Value):
    """One wheel, wherever it is found."""

    name: str
    version: str
    file: RelativePath
    size_bytes: int
    sha256: Sha256
    licence: str

    @property
    def address(self) -> str:
        """Its address in the words of the source `pypi`."""
        return f"pypi:{self.name}=={self.version}/{self.file}#sha256={self.sha256}"


def llama_source() -> LockedFile:
    """Return the sdist that llama.cpp's own server is compiled from: the build side's version."""
    name = f"llama_cpp_python-{LLAMA_SOURCE_VERSION}.tar.gz"
    address = f"pypi:llama-cpp-python=={LLAMA_SOURCE_VERSION}/{name}#sha256={LLAMA_SOURCE_SHA256}"
    return LockedFile(
        path=name, size_bytes=LLAMA_SOURCE_BYTES, sha256=LLAMA_SOURCE_SHA256, addresses=(address,)
    )


@cache
def pinned_wheels(platform: Platform) -> tuple[PinnedWheel, ...]:
    """Return the wheels of the runtime `xllamacpp` for a platform, sorted by name."""
    table = json.loads(TABLE.read_bytes())
    return tuple(PinnedWheel.model_validate(row) for row in table["platforms"][platform])


def python_archive(platform: Platform) -> str:
    """Return the file name of the ready-made Python for a platform."""
    return (
        f"cpython-{PYTHON_VERSION}+{PYTHON_RELEASE}-{_TRIPLES[platform]}"
        "-install_only_stripped.tar.gz"
    )


def locked_files(platform: Platform, world: World) -> tuple[LockedFile, ...]:
    """Return what a runtime's tree for a platform is made of: the Python's archive and the wheels.

    Raises:
        SourceError: the release cannot be reached, or does not have the archive.
    """
    wheels = (
        LockedFile(
            path=wheel.file,
            size_bytes=wheel.size_bytes,
            sha256=wheel.sha256,
            addresses=(wheel.address,),
        )
        for wheel in pinned_wheels(platform)
    )
    return (_locked_python(platform, world), *wheels)


def http_source() -> Source:
    """Return the source `http`, through the door that every plugin comes by."""
    from bundler.plugins import load_plugins

    plugins = load_plugins()
    return plugins.named(plugins.sources, "http", "source")


def _locked_python(platform: Platform, world: World) -> LockedFile:
    """Ask the release for the digest and size of the ready-made Python."""
    release = f"{world.environment.get('BUNDLER_PYTHON_RELEASES', RELEASES)}/{PYTHON_RELEASE}"
    name = python_archive(platform)
    digests = {file: digest for digest, file in _SUM.findall(_sums(release, world))}
    if name not in digests:
        raise SourceError(f"does not list {name}", where=f"{release}/SHA256SUMS")
    reference = SourceReference(
        source="http", locator=f"{release}/{quote(name)}", sha256=digests[name]
    )
    return http_source().resolve(reference, world).files[0]


def _sums(release: str, world: World) -> str:
    """Return a release's list of digests."""
    url = f"{release}/SHA256SUMS"
    taken = bytearray()
    with http_source().open(url, start=0, end=None, validator=None, world=world) as stream:
        for chunk in stream.chunks:
            taken += chunk
            if len(taken) > _SUMS_BYTES:
                raise SourceError("is too large for a list of digests", where=url)
    return taken.decode("utf-8", "replace")
