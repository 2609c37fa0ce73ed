"""The manifest: every path, size and digest in a bundle, what it was made from, the proofs.

It is the one thing that says what a bundle is. `SHA256SUMS` beside it repeats the digests in the
format of coreutils, so that a bundle can be checked with `sha256sum -c` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from bundler.hardware import Platform, Target
from bundler.plan import Memory
from bundler.proof import Coverage, Proof
from bundler.value import Name, RelativePath, Sha256, Value

MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"


class BundleFile(Value):
    """One file of a bundle."""

    path: RelativePath
    size_bytes: int
    sha256: Sha256
    executable: bool = False
    """Whether it must be marked executable where the filesystem can."""


class Origin(Value):
    """What something was made from."""

    reference: str
    revision: str
    licence: str
    licence_url: str = ""


class BundledModel(Value):
    """A model in a bundle, with its evidence."""

    name: Name
    role: str
    file: RelativePath
    engine: str
    quant: str
    kv_cache: str
    context_tokens: int
    parallel: int
    predicted_memory: Memory
    bits_per_weight: float
    origin: Origin
    proof: Proof | None = None


class BundledCorpus(Value):
    """A body of knowledge in a bundle, with its coverage."""

    name: Name
    file: RelativePath
    title: str
    language: str
    origin: Origin
    coverage: Coverage


class Manifest(Value):
    """What a bundle is, whole."""

    schema_version: Literal[1] = 1
    name: Name
    version: str
    title: str
    created: int
    """Seconds since 1970, from the lock."""
    builder: str
    """Name and version of the program that made it."""
    target: Target
    platforms: tuple[Platform, ...]
    recipe_sha256: Sha256
    lock_sha256: Sha256
    models: tuple[BundledModel, ...]
    corpora: tuple[BundledCorpus, ...]
    components: tuple[Mapping[str, Any], ...] = Field(default_factory=tuple)
    """Software in the runtimes: name, version, licence."""
    step_keys: Mapping[str, Sha256]
    files: tuple[BundleFile, ...]
    """Sorted by path: every file but the manifest itself and `SHA256SUMS`."""


def sums_text(files: Iterable[BundleFile], manifest_sha256: str) -> str:
    """Return `SHA256SUMS` as coreutils writes it (two spaces: binary or text, no matter)."""
    lines = [(file.path, file.sha256) for file in files] + [(MANIFEST_NAME, manifest_sha256)]
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(lines))
