"""The manifest: every path, size and digest in a bundle, what it was made from, the proofs.

It is the one thing that says what a bundle is. `SHA256SUMS` beside it repeats the digests in the
format of coreutils, so that a bundle can be checked with `sha256sum -c` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from bundler.hardware import Platform, Target
from bundler.plan import Memory
from bundler.proof import Coverage, Proof
from bundler.value import Name, RelativePath, Sha256, Value
from bundler.weights.shard_names import read_shard_name, shard_name

MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"
SIGNATURE_NAME = "manifest.json.minisig"
"""minisign's signature over the manifest."""
STATEMENTS_NAME = "manifest.json.keys"
"""What the maker's keys say of keys: signed rotations and revocations."""
COPY_NAME = "parity/manifest.json"
"""The manifest a second time, far from the first on the medium."""
HEAD_NAME = "parity/head.par2"
"""Parity over what stands beside the listed files: manifest, sums, signature, statements."""
BESIDE = (MANIFEST_NAME, SUMS_NAME, SIGNATURE_NAME, STATEMENTS_NAME, COPY_NAME, HEAD_NAME)
"""Files that a manifest cannot list: itself, and what is said of it."""
UNFINISHED_NAME = ".bundler-deploy"
"""A folder that is in a bundle as long as copying it to here is not finished."""
UPDATE_NAME = ".bundler-update"
"""A folder in which the next version of a bundle is built, beside the one that is there."""
SWITCH_NAME = f"{UPDATE_NAME}/switch"
"""A file that is there from the last step of an update until the new version is in place."""

SEGMENT_BYTES = 16 << 20
"""Unit of verifying, copying and repairing: one second of a slow stick, and 64 digits of manifest
for it, which is 4 KB of manifest per GB."""


class BundleFile(Value):
    """One file of a bundle."""

    path: RelativePath
    size_bytes: int
    sha256: Sha256
    executable: bool = False
    """Whether it must be marked executable where the filesystem can."""
    segments: Annotated[tuple[Sha256, ...], Field(fail_fast=True)] | None = None
    """Of a file larger than `segment_bytes`: the digest of each of its segments, in order. None also
    of a large file when an older bundler listed it; it is then verified as one."""


class Origin(Value):
    """What something was made from."""

    reference: str
    revision: str
    licence: str
    licence_url: str = ""


class BundledCompanion(Value):
    """A file that a model in a bundle runs with."""

    kind: Literal["adapter", "projector"]
    file: RelativePath
    scale: float = 1.0
    """How strongly an adapter acts."""
    origin: Origin


class BundledModel(Value):
    """A model in a bundle, with its evidence."""

    name: Name
    role: str
    file: RelativePath
    """Its file, or the first of its shards."""
    engine: str
    quant: str
    kv_cache: str
    context_tokens: int
    parallel: int
    predicted_memory: Memory
    bits_per_weight: float
    tier: str = ""
    """The kind of machine it is for; empty in a bundle for one."""
    residency: str = "resident"
    gpu_layers: int = -1
    """Layers on the accelerator; -1 for all."""
    origin: Origin
    proof: Proof | None = None
    companions: tuple[BundledCompanion, ...] = ()
    """LoRA adapters and a projector that it runs with."""
    shards: tuple[RelativePath, ...] = ()
    """All its files in order, where it is cut into several for a filesystem of small files."""
    draft: str = ""
    """Name of the model of its tier that drafts for it; empty where none does."""

    @property
    def files(self) -> tuple[RelativePath, ...]:
        """Its file, or its shards in order."""
        return self.shards or (self.file,)

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Manifests of models in one file that run with nothing else read as they always did.
        written: dict[str, Any] = write(self)
        for name in ("companions", "shards", "draft"):
            if not written.get(name):
                written.pop(name, None)
        return written


class BundledCorpus(Value):
    """A body of knowledge in a bundle, with its coverage."""

    name: Name
    file: RelativePath
    title: str
    language: str
    origin: Origin
    coverage: Coverage


class BundledTier(Value):
    """One kind of machine the bundle holds models for, and what they need there."""

    name: str
    """Empty in a bundle for one."""
    title: str
    target: Target
    vram_bytes: int
    """On each accelerator: the resident models, and the largest that takes turns."""
    ram_bytes: int
    """In main memory, likewise."""


class ParitySlices(Value):
    """Neighbouring segments of one large file that share a parity set."""

    path: RelativePath
    first: int = Field(ge=0)
    count: int = Field(ge=1)


class ParitySet(Value):
    """One PAR2 file and what it protects: whole small files, and segments of large ones."""

    file: RelativePath
    set_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    """PAR2's own name of the set: packets of any other are never used."""
    block_bytes: int = Field(ge=4, le=1 << 26, multiple_of=4)
    data_blocks: int = Field(ge=1, le=32768)
    recovery_blocks: int = Field(ge=1, le=32768)
    """How many damaged blocks it can bring back."""
    files: Annotated[tuple[RelativePath, ...], Field(fail_fast=True)] = ()
    slices: Annotated[tuple[ParitySlices, ...], Field(fail_fast=True)] = ()


class Parity(Value):
    """What a bundle can be repaired with."""

    percent: float = Field(gt=0, le=50)
    sets: Annotated[tuple[ParitySet, ...], Field(fail_fast=True)]


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
    """The machine it is for; the first of `tiers`."""
    tiers: tuple[BundledTier, ...] = ()
    """Best first; none in bundles of before there were tiers."""
    platforms: tuple[Platform, ...]
    recipe_sha256: Sha256
    lock_sha256: Sha256
    models: tuple[BundledModel, ...]
    corpora: tuple[BundledCorpus, ...]
    components: tuple[Mapping[str, Any], ...] = Field(default_factory=tuple)
    """Software in the runtimes: name, version, licence."""
    step_keys: Mapping[str, Sha256]
    files: Annotated[tuple[BundleFile, ...], Field(fail_fast=True)]
    """Sorted by path: every file but those of `BESIDE`; the parity sets are among them."""
    segment_bytes: int = Field(default=SEGMENT_BYTES, ge=4096, le=1 << 30, multiple_of=4096)
    """Files larger than this have a digest for each such piece of them."""
    parity: Parity | None = None

    @model_validator(mode="after")
    def _hangs_together(self) -> Manifest:
        _check_files(self.files, self.segment_bytes)
        for model in self.models:
            _check_model_shards(model, {file.path for file in self.files})
        if self.parity is not None:
            _check_parity(self.parity, {file.path: file for file in self.files})
        return self


def _check_files(files: tuple[BundleFile, ...], segment_bytes: int) -> None:
    """Refuse names that meet on some filesystem, and segments that do not make up their file."""
    taken = {name.casefold() for name in BESIDE}
    for file in files:
        if file.path.casefold() in taken:
            raise ValueError(f"{file.path!r} is there twice, or is a name of bundler's own")
        taken.add(file.path.casefold())
        expected = -(-file.size_bytes // segment_bytes) if file.size_bytes > segment_bytes else 0
        if file.size_bytes < 0:
            raise ValueError(f"{file.path!r} has a negative size")
        if file.segments is not None and len(file.segments) != expected:
            raise ValueError(f"{file.path!r} has {len(file.segments)} segments, not {expected}")
    for file in files:
        above = PurePosixPath(file.path.casefold()).parents
        if any(parent.as_posix() in taken for parent in above):
            raise ValueError(f"{file.path!r} lies below another file")


def _check_model_shards(model: BundledModel, there: Set[str]) -> None:
    """Refuse shards that are not all of one model: llama.cpp looks for them by the first one's name."""
    said = read_shard_name(model.file)
    if not model.shards and (said is None or said.total == 1):
        return
    count = len(model.shards)
    stem = said.stem if said else model.file
    for number, path in enumerate(model.shards or (model.file,), start=1):
        if count == 0 or path != shard_name(stem, number, count):
            raise ValueError(
                f"{path!r} is not shard {number} of the {count} of models.{model.name}"
            )
        if path not in there:
            raise ValueError(f"{path!r}, a shard of models.{model.name}, is not among the files")


def _check_parity(parity: Parity, files: Mapping[str, BundleFile]) -> None:
    """Refuse sets that protect what is not there, or twice, or that are not there themselves."""
    seen: set[tuple[str, int]] = set()
    for one in parity.sets:
        if one.file not in files:
            raise ValueError(f"the parity set {one.file!r} is not among the files")
        pieces = [(path, -1) for path in one.files if path not in files or files[path].segments]
        for part in one.slices:
            whole = files.get(part.path)
            if whole is None or part.first + part.count > len(whole.segments or ()):
                pieces.append((part.path, part.first))
        if pieces:
            raise ValueError(f"{one.file!r} protects what is not there: {pieces[0][0]!r}")
        for piece in (
            *((path, -1) for path in one.files),
            *((s.path, i) for s in one.slices for i in range(s.first, s.first + s.count)),
        ):
            if piece in seen:
                raise ValueError(f"{piece[0]!r} is in two parity sets")
            seen.add(piece)


def sums_text(files: Iterable[BundleFile], manifest_sha256: str) -> str:
    """Return `SHA256SUMS` as coreutils writes it (two spaces: binary or text, no matter)."""
    lines = [(file.path, file.sha256) for file in files]
    lines += [(MANIFEST_NAME, manifest_sha256), (COPY_NAME, manifest_sha256)]
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(lines))
