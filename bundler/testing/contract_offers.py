"""Holds what an engine offers against the contract: whole, plausible, the same every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from bundler.hardware import Target
from bundler.hookspecs import Engine
from bundler.lock import LockedFile, LockedModel, ModelFacts, Resolution
from bundler.plan import FileInput, Offer, StepInput
from bundler.recipe import ModelRequest
from bundler.testing.contract_steps import hold
from bundler.value import canonical_json, check_relative_path, digest

Read = Callable[[LockedFile, int, int], bytes]
_HEADERS_BYTES = 64 * 2**20
"""Headers, vocabularies and configurations of the largest models stay well under this."""

TARGETS = (
    Target(name="contract-gpu", accelerator="cuda", usable_vram_bytes=24 * 10**9,
           ram_bytes=32 * 10**9, memory_bandwidth_bytes_per_second=10**12, source="invented"),
    Target(name="contract-cpu", ram_bytes=16 * 10**9, source="invented"),
)  # fmt: skip
"""Machines that an engine must be able to make offers for (perhaps none)."""


def read_facts(engine: Engine, resolution: Resolution, read: Read) -> ModelFacts:
    """Return a model's facts, after checking that only headers were read and inside the files."""
    asked = 0

    def counted(file: LockedFile, start: int, length: int) -> bytes:
        nonlocal asked
        inside = length >= 0 and 0 <= start <= file.size_bytes
        hold(inside, f"{engine.name}: facts() reads {length} bytes at {start} of {file.path}")
        asked += min(length, max(0, file.size_bytes - start))
        return read(file, start, length)

    facts = engine.facts(resolution, counted)
    hold(isinstance(facts, ModelFacts), f"{engine.name}: facts() gives no ModelFacts")
    limit = max(_HEADERS_BYTES, resolution.size_bytes // 10)
    hold(asked <= limit, f"{engine.name}: facts() reads {asked:,} bytes: whole weights, no headers")
    hold(facts.tensors, f"{engine.name}: facts() names no tensors")
    hold(
        engine.facts(resolution, read) == facts, f"{engine.name}: facts() differ from call to call"
    )
    return facts


def check_offers(
    engine: Engine, request: ModelRequest, model: LockedModel, target: Target,
    texts: Mapping[str, Resolution],
) -> tuple[Offer, ...]:  # fmt: skip
    """Return an engine's offers for a model and a target after checking each of them."""
    who = f"{engine.name} for {target.name}"
    offers = tuple(engine.offers(request, model, target, texts))
    names = [(offer.quant, offer.kv_cache) for offer in offers]
    hold(len(names) == len(set(names)), f"{who}: two offers with one quant and KV cache: {names}")
    for offer in offers:
        _check_figures(offer, request, f"{who}: {offer.quant}")
        _check_steps(engine, offer, _known(model, texts), f"{who}: {offer.quant}")
    _check_stable(engine, request, model, target, texts, offers, who)
    return offers


def _known(model: LockedModel, texts: Mapping[str, Resolution]) -> dict[str, int]:
    bodies = [model.resolution, *texts.values()]
    return {file.sha256: file.size_bytes for body in bodies for file in body.files}


def _check_stable(
    engine: Engine, request: ModelRequest, model: LockedModel, target: Target,
    texts: Mapping[str, Resolution], offers: Sequence[Offer], who: str,
) -> None:  # fmt: skip
    """Ask again, with files and texts in another order, and for one quant only."""
    again = tuple(engine.offers(request, model, target, texts))
    hold(again == tuple(offers), f"{who}: offers differ from call to call")
    files = tuple(reversed(model.resolution.files))
    turned = model.model_copy(
        update={"resolution": model.resolution.model_copy(update={"files": files})}
    )
    other = engine.offers(request, turned, target, dict(reversed(list(texts.items()))))
    same = {digest(offer) for offer in other} == {digest(offer) for offer in offers}
    hold(same, f"{who}: offers depend on the order of the model's files or of the texts")
    for quant in sorted({offer.quant for offer in offers}):
        named = engine.offers(request.model_copy(update={"quant": (quant,)}), model, target, texts)
        given = {offer.quant for offer in named}
        hold(given == {quant}, f"{who}: asked for {quant} alone, it offers {sorted(given)}")


def _check_figures(offer: Offer, request: ModelRequest, who: str) -> None:
    memory = offer.memory
    figures = {
        "weights_bytes": memory.weights_bytes, "total_bytes": memory.total_bytes,
        "disk_bytes": offer.disk_bytes, "bits_per_weight": offer.bits_per_weight,
    }  # fmt: skip
    for name, value in figures.items():
        hold(value > 0 and math.isfinite(value), f"{who}: {name} is {value}")
    parts = {n: v for n, v in memory.model_dump().items() if not isinstance(v, str)}
    devices = {f"by_device[{n}]": size for n, size in enumerate(parts.pop("by_device"))}
    shares = {**parts, **devices, "scratch_bytes": offer.scratch_bytes}
    for name, value in shares.items():
        hold(value >= 0, f"{who}: {name} is {value}")
    hold(math.isfinite(offer.quality), f"{who}: quality is {offer.quality}")
    part = offer.kv_cache_quality
    fits = 0 <= part <= offer.quality or part == 0
    hold(fits, f"{who}: kv_cache_quality is {part}, of a quality of {offer.quality}")
    enough = offer.context_tokens >= request.context_tokens
    hold(enough, f"{who}: a context of {offer.context_tokens}, {request.context_tokens} were asked")
    hold(offer.parallel == request.parallel, f"{who}: for {offer.parallel} users at once")
    cache = request.kv_cache
    hold(cache in ("auto", offer.kv_cache), f"{who}: a KV cache of {offer.kv_cache}, not {cache}")
    hold(offer.format, f"{who}: names no format")


def _check_steps(engine: Engine, offer: Offer, known: Mapping[str, int], who: str) -> None:
    hold(offer.engine == engine.name, f"{who}: is said to be of the engine {offer.engine!r}")
    seen: set[str] = set()
    for step in offer.steps:
        hold(step.name and step.name not in seen, f"{who}: two steps are called {step.name!r}")
        hold(step.plugin == f"engine:{engine.name}", f"{who}: {step.name} is for {step.plugin}")
        check_relative_path(step.name)
        for name, given in step.inputs.items():
            check_relative_path(name)
            _check_origin(given, seen, known, f"{who}: {step.name}: {name}")
        try:
            canonical_json(dict(step.parameters))
        except (TypeError, ValueError) as error:
            raise AssertionError(
                f"{who}: parameters of {step.name} are no JSON: {error}"
            ) from error
        seen.add(step.name)
    for given in (offer.output, *offer.other_shards):
        _check_origin(given, seen, known, f"{who}: output")


def _check_origin(
    given: FileInput | StepInput, earlier: set[str], known: Mapping[str, int], what: str
) -> None:
    if isinstance(given, StepInput):
        hold(given.step in earlier, f"{what} comes from {given.step!r}, which is no earlier step")
        check_relative_path(given.file)
        return
    hold(given.sha256 in known, f"{what} is a file that is not in the lock: {given.sha256[:12]}")
    size = known[given.sha256]
    hold(size == given.size_bytes, f"{what} has {size} bytes in the lock, not {given.size_bytes}")
