"""Small plugins that do everything the real ones do, on bytes that take no time.

`Fakes()` is itself a plugin: `load_plugins(extra=[Fakes()])` adds the source `memory`, the
engine `fake`, the corpus kind `fake` and the runtime `fake`. Tests of the core and of other
people's plugins build whole bundles with them in milliseconds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bundler.errors import SourceError, StepFailed, UnsafeInput
from bundler.hardware import Platform, Target
from bundler.hookspecs import ByteStream, Task, hookimpl
from bundler.lock import LockedFile, LockedModel, ModelFacts, Resolution, TensorFact
from bundler.plan import Memory, Offer, Step, StepInput
from bundler.recipe import ModelRequest, SourceReference
from bundler.tasks.evidence import loss_at_most
from bundler.value import canonical_json, digest
from bundler.world import World

MAGIC = b"fake weights\n"


class MemorySource:
    """Serves what was put into `files`: locator → path → bytes."""

    name = "memory"

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.opened: list[str] = []
        """Addresses in the order in which they were opened."""

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Return what was put under the reference's locator."""
        if reference.locator not in self.files:
            raise SourceError(f"memory has no {reference.locator!r}")
        held = self.files[reference.locator]
        return Resolution(
            source=self.name,
            reference=str(reference),
            revision=digest(
                {path: hashlib.sha256(data).hexdigest() for path, data in held.items()}
            ),
            files=tuple(
                LockedFile(
                    path=path,
                    size_bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                    addresses=(f"{reference.locator}!{path}",),
                )
                for path, data in sorted(held.items())
            ),
            licence="CC0-1.0",
        )

    @contextmanager
    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> Iterator[ByteStream]:
        """Give the bytes from `start` in pieces of 64 KiB."""
        self.opened.append(address)
        locator, _, path = address.partition("!")
        data = self.files[locator][path][start:end]
        pieces = (data[at : at + 65536] for at in range(0, len(data), 65536))
        yield ByteStream(start, len(self.files[locator][path]), None, pieces)


class FakeEngine:
    """Takes files that begin with `MAGIC`; "quantizing" keeps every n-th byte."""

    name = "fake"

    def __init__(self) -> None:
        self.runs: list[str] = []
        """Actions in the order in which they ran."""
        self.delay_seconds = 0.0
        self.shares = {"half": 2, "tenth": 10}
        """What it offers: quant → one byte in how many is kept."""
        self.cache_bytes_per_token = 1
        self.kld_by_quant = {"half": 0.01, "tenth": 0.1}
        self.speed_by_quant: dict[str, float] = {}
        """Tokens per second that proofs measure; 1 where nothing is said."""
        self.peak_by_quant: dict[str, int] = {}
        """Peak memory that proofs measure; unknown where nothing is said."""
        self.lost_by_quant: dict[str, int] = {}
        """Answers lost of the questions of each task; none where nothing is said."""

    def tool(self) -> str:
        """Return a constant: this engine never changes."""
        return "fake-1"

    def facts(
        self, resolution: Resolution, read: Callable[[LockedFile, int, int], bytes]
    ) -> ModelFacts:
        """Look at the magic and believe the size."""
        (file,) = resolution.files
        if read(file, 0, len(MAGIC)) != MAGIC:
            raise UnsafeInput("does not begin with the magic of fake weights", where=file.path)
        return ModelFacts(
            format="gguf", architecture="fake", parameters=file.size_bytes, context_tokens=4096,
            layers=1, hidden=1, feed_forward=1, heads=1, kv_heads=(1,), head_dim_key=1,
            head_dim_value=1, vocabulary=1,
            tensors=(TensorFact(name="all", type="F16", shape=(file.size_bytes,)),),
        )  # fmt: skip

    def offers(
        self, request: ModelRequest, model: LockedModel, target: Target,
        texts: Mapping[str, Resolution],
    ) -> Sequence[Offer]:  # fmt: skip
        """Offer each share of the bytes."""
        (file,) = model.resolution.files
        given = {"weights": {"sha256": file.sha256, "size_bytes": file.size_bytes}}
        offers = []
        for quant, share in self.shares.items():
            if request.quant != ("auto",) and quant not in request.quant:
                continue
            quantize = Step.model_validate({
                "name": "quantize", "plugin": "engine:fake", "action": "quantize",
                "inputs": given, "parameters": {"keep_every": share},
            })  # fmt: skip
            prove = Step(
                name="prove", plugin="engine:fake", action="prove",
                inputs={"model": StepInput(step="quantize", file="model.fake")},
                parameters={"quant": quant},
            )  # fmt: skip
            size = -(-file.size_bytes // share)
            offers.append(
                Offer(
                    engine=self.name, quant=quant, format="fake", kv_cache="f16",
                    context_tokens=request.context_tokens, parallel=request.parallel,
                    memory=Memory(
                        weights_bytes=size, compute_bytes=0,
                        kv_cache_bytes=request.context_tokens * self.cache_bytes_per_token,
                    ),
                    disk_bytes=size, scratch_bytes=0, bits_per_weight=16 / share,
                    quality=1 - 1 / share, steps=(quantize, prove),
                    output=StepInput(step="quantize", file="model.fake"),
                )
            )  # fmt: skip
        return offers

    def run(self, task: Task) -> Mapping[str, Any]:
        """Do `quantize` or `prove`."""
        self.runs.append(task.action)
        time.sleep(self.delay_seconds)
        if task.action == "quantize":
            kept = task.inputs["weights"].read_bytes()[:: task.parameters["keep_every"]]
            (task.output / "model.fake").write_bytes(kept)
            task.progress(len(kept), len(kept), "bytes")
            return {}
        if task.action == "prove":
            return self._proof(task)
        raise StepFailed(f"the fake engine does not know {task.action!r}")

    def _proof(self, task: Task) -> dict[str, Any]:
        data = task.inputs["model"].read_bytes()
        quant = task.parameters["quant"]
        kld, peak = self.kld_by_quant[quant], self.peak_by_quant.get(quant, 0)
        return {
            "model_sha256": hashlib.sha256(data).hexdigest(),
            "device": {
                "kind": "cpu", "name": "fake", "peak_memory_bytes": peak,
                "peak_memory_source": "backend" if peak else "",
            },
            "predicted_memory_bytes": len(data),
            "quality": {
                "tokens": 1, "context_tokens": 1, "text_sha256": "0" * 64, "perplexity": 2.0,
                "perplexity_standard_error": 0.0, "reference_perplexity": 2.0, "kld_mean": kld,
                "kld_standard_error": 0.0, "kld_median": kld, "kld_p99": kld, "kld_max": kld,
                "top1_agreement": 1.0,
            },
            "speed": {
                "prompt_tokens_per_second": 1.0,
                "generation_tokens_per_second": self.speed_by_quant.get(quant, 1.0),
                "prompt_tokens": 1, "generated_tokens": 1, "repeats": 1, "load_seconds": 0.0,
            },
            "sample_prompt": "", "sample_text": "",
            "tasks": [
                self._answers(told, self.lost_by_quant.get(quant, 0))
                for told in task.parameters.get("tasks", ())
            ],
        }  # fmt: skip

    def _answers(self, told: Mapping[str, Any], lost: int) -> dict[str, Any]:
        items = told["items"]
        return {
            "name": told["name"], "kind": told["kind"], "scoring": told["scoring"],
            "file_sha256": "0" * 64, "items": items, "seed": told["seed"], "chance": 0.25,
            "model_right": items - lost, "control_right": items, "lost": lost, "gained": 0,
            "p_value": 1.0, "loss_low": lost / items, "loss_high": lost / items,
            "loss_at_most": loss_at_most(lost, 0, items),
        }  # fmt: skip


class FakeCorpus:
    """Puts all files one after another; every file counts as an article."""

    name = "fake"

    def tool(self) -> str:
        """Return a constant: this corpus kind never changes."""
        return "fake-1"

    def run(self, task: Task) -> Mapping[str, Any]:
        """Leave `corpus.zim` (which is none) and its coverage."""
        parts = [task.inputs[name].read_bytes() for name in sorted(task.inputs)]
        (task.output / "corpus.zim").write_bytes(b"".join(parts))
        return {
            "title": task.parameters["title"], "language": "eng",
            "articles_found": len(parts), "articles_indexed": len(parts),
        }  # fmt: skip


class FakeRuntime:
    """A runtime of two small files, for Linux."""

    name = "fake"
    formats = frozenset({"fake"})
    platforms: frozenset[Platform] = frozenset({"linux-x86_64", "linux-aarch64"})

    def tool(self) -> str:
        """Return a constant: this runtime never changes."""
        return "fake-1"

    def needs(self, platform: Platform, world: World) -> Resolution:
        """Need nothing."""
        return Resolution(source="memory", reference="", revision="1", files=(), licence="CC0-1.0")

    def run(self, task: Task) -> Mapping[str, Any]:
        """Leave one executable file, and what the station reads to start it."""
        (task.output / "run.sh").write_bytes(b"#!/bin/sh\n")
        command = ["{runtime}/run.sh", "{model}", "{port}"]
        (task.output / "fake.json").write_bytes(canonical_json({"command": command}))
        return {
            "executables": ["run.sh"],
            "components": [{"name": "fake", "version": "1", "licence": "CC0-1.0"}],
        }


class Fakes:
    """One set of the fakes as a plugin object, so that a test has its own."""

    __name__ = "bundler.testing.fakes"

    def __init__(self) -> None:
        self.source = MemorySource()
        self.engine = FakeEngine()

    @hookimpl
    def bundler_sources(self) -> Sequence[MemorySource]:
        """Give the source `memory`."""
        return [self.source]

    @hookimpl
    def bundler_engines(self) -> Sequence[FakeEngine]:
        """Give the engine `fake`."""
        return [self.engine]

    @hookimpl
    def bundler_corpora(self) -> Sequence[FakeCorpus]:
        """Give the corpus kind `fake`."""
        return [FakeCorpus()]

    @hookimpl
    def bundler_runtimes(self) -> Sequence[FakeRuntime]:
        """Give the runtime `fake`."""
        return [FakeRuntime()]
