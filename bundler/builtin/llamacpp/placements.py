"""Where a model can run on a target: on the accelerator, on the CPU, or part on each. Pure.

Embedders, rerankers and drafts are offered on the CPU, too: they are small, and an accelerator's
memory is better spent on what writes. A chat or code model is slower there by an order of magnitude,
and only the person can say how slow is still good: it is offered in main memory, whole or in part,
when the recipe gives `min_tokens_per_second` (and the bandwidths are known to judge it by), or says
`placement = "cpu"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bundler.builtin.llamacpp.companions import adapters_of
from bundler.builtin.llamacpp.drafting.counting import (
    beside_its_model,
    check_can_go_back,
    verifying_memory,
)
from bundler.builtin.llamacpp.graph.families import why_not
from bundler.builtin.llamacpp.graph.shape import Run, ThinPairs
from bundler.builtin.llamacpp.memory import run_memory, seeing_memory
from bundler.builtin.llamacpp.placement import Weights, place_weights, uses_cpu_only
from bundler.builtin.llamacpp.projector import seeing
from bundler.builtin.llamacpp.speed import (
    Reading,
    read_cache,
    read_weights,
    tokens_per_second,
)
from bundler.errors import RecipeError
from bundler.hardware import Target
from bundler.lock import LockedModel, LockedProjector, ModelFacts
from bundler.plan import Memory
from bundler.recipe import ModelRequest, PairedDraft

GENERATING = ("chat", "code")
WRITING = (*GENERATING, "draft")
ALL_LAYERS = -1
PARTS = (7 / 8, 3 / 4, 1 / 2, 1 / 4)
"""Shares of the layers that are offered on the accelerator beside all and none. Speed falls steeply
with the first layers that are not there, so there is more to choose from near the whole."""
MICRO_BATCH_TOKENS = 512
"""`n_ubatch` of llama.cpp's server when nobody says otherwise."""


@dataclass(frozen=True)
class Placed:
    """One way to run a model that is made in one way."""

    kv_cache: str
    gpu_layers: int
    memory: Memory
    tokens_per_second: float
    """An upper bound; 0 when unknown, and for models that do not write."""


def placed_ways(
    request: ModelRequest, model: LockedModel, types: Mapping[str, str], kv_caches: Sequence[str],
    target: Target,
) -> Iterator[Placed]:  # fmt: skip
    """Give each way to run a model whose tensors are of these types, with what it runs with.

    Raises:
        RecipeError: the model cannot be planned on this target.
    """
    if request.draft or isinstance(request, PairedDraft):
        check_can_go_back(model.facts)
    beside = (adapters_of(model), model.projector)
    for gpu_layers in _layer_counts(request, model.facts, target):
        place = _Place.of(request, model.facts, types, gpu_layers, target, beside)
        for kv_cache in kv_caches:
            placed = place.run(kv_cache)
            if gpu_layers == ALL_LAYERS or _is_worth_it(request, placed):
                yield placed


def _layer_counts(request: ModelRequest, facts: ModelFacts, target: Target) -> tuple[int, ...]:
    """Return how many layers to offer on the accelerator, as llama.cpp counts them."""
    if target.accelerator == "none" or request.placement == "accelerator":
        return (ALL_LAYERS,)
    if request.placement == "cpu":
        return (0,)
    if isinstance(request, PairedDraft):  # it runs in its model's server, which is not on the CPU
        return (ALL_LAYERS,)
    if request.role not in GENERATING:
        return (ALL_LAYERS, 0)
    if request.min_tokens_per_second is None:
        return (ALL_LAYERS,)
    # A model whose graph is not described is planned as a whole or not at all.
    parts = () if why_not(facts) else (round(facts.layers * part) for part in PARTS)
    none = () if request.draft else (0,)
    return (ALL_LAYERS, *dict.fromkeys(count for count in parts if count), *none)


def _is_worth_it(request: ModelRequest, placed: Placed) -> bool:
    """Tell whether a model that is not whole on the accelerator is known to be fast enough."""
    floor = request.min_tokens_per_second
    if request.placement == "cpu" or floor is None:
        return True
    return placed.tokens_per_second >= floor


@dataclass(frozen=True)
class _Place:
    """A model whose weights are placed, before its KV cache is chosen."""

    request: ModelRequest
    facts: ModelFacts
    types: Mapping[str, str]
    gpu_layers: int
    target: Target
    weights: Weights
    read: Reading
    """What a token reads of the weights."""
    adapters: tuple[ThinPairs, ...] = ()
    projector: LockedProjector | None = None

    @classmethod
    def of(
        cls, request: ModelRequest, facts: ModelFacts, types: Mapping[str, str], gpu_layers: int,
        target: Target,
        beside: tuple[tuple[ThinPairs, ...], LockedProjector | None] = ((), None),
    ) -> _Place:  # fmt: skip
        weights = place_weights(facts, types, gpu_layers=gpu_layers, target=target)
        read = read_weights(facts, types, gpu_layers=gpu_layers, target=target)
        return cls(request, facts, types, gpu_layers, target, weights, read, *beside)

    def run(self, kv_cache: str) -> Placed:
        """Return what it takes with this cache, and how fast it writes at most."""
        request = self.request
        run = Run(
            context_tokens=request.context_tokens,
            parallel=request.parallel,
            kv_cache=kv_cache,
            batch_tokens=micro_batch_tokens(request),
            flash_attention=True,
            embeddings=request.role not in WRITING,
            adapters=self.adapters,
        )
        speed = 0.0
        if request.role in WRITING:
            cache = read_cache(self.facts, run, gpu_layers=self.gpu_layers, target=self.target)
            speed = tokens_per_second(self.read.plus(cache), self.target)
        return Placed(kv_cache, self.gpu_layers, self._memory(run), speed)

    def _memory(self, run: Run) -> Memory:
        # Types matter to the buffers only where some layers lie elsewhere.
        types = self.types if self.gpu_layers > 0 else None
        try:
            memory = run_memory(
                self.facts, self.weights, run, gpu_layers=self.gpu_layers, target=self.target,
                types=types,
            )  # fmt: skip
        except RecipeError as error:  # whose model it is stands in the recipe
            problems = [replace(p, key="source") for p in error.problems]
            raise error.with_problems(problems) from error
        on_cpu = uses_cpu_only(self.gpu_layers, self.target)
        memory = self._drafting(memory, on_cpu=on_cpu)
        if self.projector is None:
            return memory
        accelerator = "none" if on_cpu else self.target.accelerator
        seen = seeing(self.projector.facts, accelerator, self.request.context_tokens)
        return seeing_memory(memory, self.facts, seen, on_cpu=on_cpu)

    def _drafting(self, memory: Memory, *, on_cpu: bool) -> Memory:
        """Count what drafting takes, of a model that has a draft, or of the draft."""
        target = self.target
        if isinstance(self.request, PairedDraft):
            return beside_its_model(
                memory, target.accelerator, target.device_count, on_cpu=on_cpu
            )  # fmt: skip
        if self.request.draft is None:
            return memory
        return verifying_memory(memory, self.facts, self.request.parallel, on_cpu=on_cpu)


def micro_batch_tokens(request: ModelRequest) -> int:
    """Return the micro batch: a text to embed or to rank must be in one as a whole."""
    if request.role in ("embed", "rerank"):
        return max(MICRO_BATCH_TOKENS, request.context_tokens)
    return MICRO_BATCH_TOKENS
