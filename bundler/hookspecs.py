"""The doors for plugins: seven hooks, and the five small things they hand over.

A plugin registers *named things*; a recipe chooses among them by name. Everything that ships with
bundler comes through these doors too (`bundler.builtin`). The core keeps the checks: digests,
sizes, paths, memory limits; so a careless plugin cannot make a wrong bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from bundler.errors import Problem
from bundler.hardware import Platform, Target
from bundler.lock import LockedFile, LockedModel, ModelFacts, Resolution
from bundler.plan import Offer, Plan
from bundler.recipe import ModelRequest, SourceReference

if TYPE_CHECKING:
    from bundler.proof import Proof
    from bundler.world import World

hookspec = pluggy.HookspecMarker("bundler")
hookimpl = pluggy.HookimplMarker("bundler")


# -- what a source gives ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ByteStream:
    """Bytes of one file from `start` on, as a source serves them."""

    start: int
    """Where the bytes really begin; 0 although more was asked for when a range was not honoured."""
    total_bytes: int | None
    """Size of the whole file, if the server says."""
    validator: str | None
    """A strong ETag (or the like) which names this version of the file; None when there is none."""
    chunks: Iterator[bytes]


class Source(Protocol):
    """Where bytes come from. Named in a recipe as `name:locator`.

    A source may also have `local_copy(file: LockedFile, world: World) -> Path | None`: a file of
    this machine which may be that file. The core hashes it and takes it instead of a download. One
    with `is_local = True` reads nothing but this machine: it is asked offline, too, and what changed
    there makes the lock stale.
    """

    name: str

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Turn a reference into one revision with every file's size and SHA-256.

        Reads metadata and small files only, never whole weights.

        Raises:
            SourceError: not there, gated, or unreachable (says which, and what to do).
            UnsafeInput: a name that must not become a path.
        """
        ...

    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> AbstractContextManager[ByteStream]:
        """Open an address of a `LockedFile` at byte `start` (up to `end`, exclusive, if given).

        `validator` is what an earlier part came with: bytes of another version must not follow
        it, so a source then answers from 0. Nothing is retried and nothing is checked here;
        the core does both. Raises SourceError; PassingFault (or OSError) when trying again
        may help.
        """
        ...


# -- what makes things -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One step to do: inputs as readable files, an empty folder to leave the result in."""

    action: str
    inputs: Mapping[str, Path]
    """Name (a checked relative path) → file. The files are read-only and verified."""
    parameters: Mapping[str, Any]
    output: Path
    """Empty; every regular file left here becomes part of the step's result."""
    progress: Callable[..., None]
    """`progress(done, total, unit)`: see `events.Progress`."""
    world: World
    kept: Path | None = None
    """A folder for what is finished of a long step: empty at first, as it was left when the same step
    (same inputs, parameters and tool) was cut off and is done again. It goes when the step is done.
    """


class Maker(Protocol):
    """Something that does steps."""

    name: str

    def tool(self) -> str:
        """Fingerprint of everything outside a step's inputs and parameters that can change its
        output: versions, build id, instruction set.
        """
        ...

    def run(self, task: Task) -> Mapping[str, Any]:
        """Do one step; return facts about it (JSON types) that are kept with the result."""
        ...


class Engine(Maker, Protocol):
    """Turns weights into a runnable format and can size and probe it.

    An engine may also have `devices(environment: Mapping[str, str]) -> Mapping[str, Any]`: what it
    runs on at this machine, asked in a child process, as `{"build": text, "devices": [{"name",
    "description", "kind", "is_gpu", "free_bytes", "total_bytes"}, …]}`; raises StepFailed when it
    cannot run. `bundler doctor` and `bundler targets --here` ask for it.

    An engine whose models can run with LoRA adapters or a projector has `adapter_facts(resolution,
    read, base: ModelFacts) -> AdapterFacts` and `projector_facts(…) -> ProjectorFacts`, which read
    their headers as `facts` does and hold them against the model's; its offers then name them as
    `companions`.

    An engine whose models can draft for others has `check_draft(model: Resolution, read, draft:
    Resolution, read_draft) -> None`, which raises RecipeError when their vocabularies differ, and an
    action `draft`: the inputs `model.gguf` and `draft.gguf` (or shards `draft-00001-of-…`) run
    together, with a `proof.Drafting` as facts. Its offers for a `recipe.PairedDraft` are of a model
    in the same process as the one it drafts for.

    An engine whose files can be cut into several has `cut(offer: Offer, most_bytes: int) -> Offer |
    None`: an offer of the same model of which no file is larger, or None where that cannot be. It
    is asked where the stick cannot hold an offer's file; `Offer.cut` says what it is cut from.
    """

    def facts(
        self, resolution: Resolution, read: Callable[[LockedFile, int, int], bytes]
    ) -> ModelFacts:
        """Read a model's headers; `read(file, start, length)` fetches just those bytes.

        Raises UnsafeInput for anything malformed or of an unsafe format.
        """
        ...

    def offers(
        self,
        request: ModelRequest,
        model: LockedModel,
        target: Target,
        texts: Mapping[str, Resolution],
    ) -> Sequence[Offer]:
        """List every way this engine could build the model for the target. Pure and quick."""
        ...


class CorpusKind(Maker, Protocol):
    """Turns what a source gave into a ZIM file with its full-text index.

    `run` gets all files of the corpus as inputs and leaves `corpus.zim`; its facts are a
    `proof.Coverage`.
    """


class Runtime(Maker, Protocol):
    """Serves a format at the far end through an OpenAI-compatible API.

    A runtime may also have `accelerators: Mapping[Platform, Set[Accelerator]]`: what it can use
    beside the processor. A plan for an accelerator that no runtime can use says so. It may have
    `companions: Set[str]`: which of `adapter`, `projector` and `draft` it can serve a model with; a
    recipe that wants another is refused.

    `run` leaves the tree that goes to `runtime/<platform>/` of the bundle.
    """

    formats: frozenset[str]
    platforms: frozenset[Platform]

    def needs(self, platform: Platform, world: World) -> Resolution:
        """Say what has to be locked to put this runtime together for `platform`."""
        ...


# -- the hooks -------------------------------------------------------------------------------------


@hookspec
def bundler_sources() -> Sequence[Source]:
    """Give sources: where bytes come from."""
    raise AssertionError("a specification is not called")


@hookspec
def bundler_engines() -> Sequence[Engine]:
    """Give engines: what turns weights into a runnable format."""
    raise AssertionError("a specification is not called")


@hookspec
def bundler_corpora() -> Sequence[CorpusKind]:
    """Give kinds of corpora: what turns files into a searchable ZIM."""
    raise AssertionError("a specification is not called")


@hookspec
def bundler_runtimes() -> Sequence[Runtime]:
    """Give runtimes: what serves a model at the far end."""
    raise AssertionError("a specification is not called")


@hookspec
def bundler_targets() -> Sequence[Target]:
    """Give targets for the catalogue."""
    raise AssertionError("a specification is not called")


@hookspec
def bundler_review_plan(plan: Plan) -> Sequence[Problem]:
    """Look at a finished plan; what is returned is an objection and stops the build (exit 4)."""
    raise AssertionError("a specification is not called")


@hookspec
def bundler_review_proof(model: str, proof: Proof) -> Sequence[Problem]:
    """Look at a model's proof; what is returned is an objection and stops the build (exit 9)."""
    raise AssertionError("a specification is not called")
