"""Every way llama.cpp could build a model: which schemes, which KV caches, at what cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from bundler.builtin.llamacpp.allocation.offered import placed_mixes
from bundler.builtin.llamacpp.companions import companions_of, notes_of
from bundler.builtin.llamacpp.damage import kv_cache_damage, predicted_damage
from bundler.builtin.llamacpp.memory import NO_CACHE
from bundler.builtin.llamacpp.offer_steps import (
    Building,
    Texts,
    making_steps,
    proof_step,
    published_files,
    with_companions,
)
from bundler.builtin.llamacpp.placements import GENERATING, Placed, placed_ways
from bundler.builtin.llamacpp.schemes import SCHEMES
from bundler.builtin.llamacpp.sharding import in_shards, largest_tensor_bytes, model_names
from bundler.builtin.llamacpp.types import (
    Inventory,
    choose_types,
    tensors_bytes,
)
from bundler.builtin.llamacpp.ways import Way, file_bytes, ways_of
from bundler.errors import DoesNotFit, Problem, RecipeError
from bundler.hardware import Target
from bundler.lock import LockedModel, ModelFacts, Resolution
from bundler.plan import FileInput, Offer, Step, StepInput
from bundler.recipe import ModelRequest, PairedDraft
from bundler.weights.ggml_types import BY_NAME

_IMATRIX_BYTES = 32 << 20


def make_offers(
    request: ModelRequest, model: LockedModel, target: Target, texts: Mapping[str, Resolution]
) -> list[Offer]:
    """List every way the engine could build `model` as the recipe asks, for `target`.

    Raises:
        RecipeError: an unknown scheme, a KV cache the model cannot have, or only schemes whose
            types its rows cannot hold.
        DoesNotFit: the recipe asks for more context than the model was made for.
    """
    _check_context(request, model.facts)
    ready = model.facts.format == "gguf"
    offers = (_ready_offers if ready else _built_offers)(request, model, target, Texts.of(texts))
    beside = companions_of(request, model)
    placed_on_cpu = target.accelerator == "none"
    notes = notes_of(request, model)
    return [with_companions(offer, beside, notes, on_cpu=placed_on_cpu) for offer in offers]


def _check_context(request: ModelRequest, facts: ModelFacts) -> None:
    if request.context_tokens > facts.context_tokens:
        if isinstance(request, PairedDraft):
            raise DoesNotFit(_short_draft(request, facts))
        raise DoesNotFit(
            Problem(
                f"the recipe asks for a context of {request.context_tokens:,} tokens, "
                f"{request.source} was made for {facts.context_tokens:,}",
                hint=f"context_tokens = {facts.context_tokens}, or another model",
                key="context_tokens",
            )
        )


def _short_draft(request: PairedDraft, facts: ModelFacts) -> Problem:
    main = request.drafts_for
    return Problem(
        f"it drafts for models.{main} with its context of {request.context_tokens:,} tokens, "
        f"{request.source} was made for {facts.context_tokens:,}",
        hint=f"models.{main}.context_tokens = {facts.context_tokens}, or another draft",
        key="source",
    )


# -- built from safetensors ------------------------------------------------------------------------


def _built_offers(
    request: ModelRequest, model: LockedModel, target: Target, texts: Texts
) -> list[Offer]:
    inventory = Inventory.of(model.facts)
    converted = choose_types(inventory, inventory.stored, has_imatrix=False).types
    converted_bytes = file_bytes(model.facts, converted)
    caches = _kv_caches(request, model.facts)
    published = published_files(model)
    offers: list[Offer] = []
    for way in ways_of(request, inventory, target):
        building = Building(request, way.scheme, way.guided, inventory.stored, way.mix)
        steps = making_steps(building, published, texts)
        scratch_bytes = converted_bytes + (_IMATRIX_BYTES if way.guided else 0)
        places = placed_ways(request, model, way.types, caches, target)
        offers += [
            _built_offer(building, model.facts, texts, way, steps, placed).model_copy(
                update={"scratch_bytes": scratch_bytes if building.last == "quantize" else 0}
            )
            for placed in (places if way.mix is None else placed_mixes(way.mix, places))
        ]
    return offers


def _built_offer(
    building: Building, facts: ModelFacts, texts: Texts, way: Way, steps: tuple[Step, ...],
    placed: Placed,
) -> Offer:  # fmt: skip
    request = building.request
    built = StepInput(step=building.last, file="model.gguf")
    reference = StepInput(step="convert", file="model.gguf")
    prove = proof_step(
        request, texts, placed.kv_cache, placed.memory, built, reference=reference,
        mixed=way.mix is not None, guided=way.guided,
    )  # fmt: skip
    return Offer(
        engine="llama.cpp",
        quant=way.scheme,
        format="gguf",
        kv_cache=placed.kv_cache,
        context_tokens=request.context_tokens,
        parallel=request.parallel,
        memory=placed.memory,
        disk_bytes=way.file_bytes,
        scratch_bytes=0,
        bits_per_weight=round(way.bits_per_weight, 4),
        quality=predicted_damage(
            way.scheme,
            placed.kv_cache,
            has_imatrix=way.guided,
            bits_per_weight=way.bits_per_weight,
            parameters=facts.parameters,
        ),
        kv_cache_quality=kv_cache_damage(placed.kv_cache),
        gpu_layers=placed.gpu_layers,
        tokens_per_second=placed.tokens_per_second,
        indivisible_bytes=way.largest_tensor_bytes,
        steps=(*steps, prove),
        output=built,
    )


# -- ready GGUF files ------------------------------------------------------------------------------


def _ready_offers(
    request: ModelRequest, model: LockedModel, target: Target, texts: Texts
) -> list[Offer]:
    """Offer the file as it comes, with each KV cache."""
    by_path = {file.path: file for file in model.resolution.files}
    files = [by_path[name] for name in model_names(by_path)]
    quant = _ready_scheme(model)
    if request.quant != ("auto",) and quant not in request.quant:
        raise RecipeError(
            Problem(
                f"the file {request.source} is {quant}",
                hint='quant = "auto" takes the file as it comes',
                key="quant",
            )
        )
    types = {tensor.name: tensor.type for tensor in model.facts.tensors}
    shards = [FileInput(sha256=file.sha256, size_bytes=file.size_bytes) for file in files]
    return [
        in_shards(_ready_offer(request, model, texts, quant, placed, shards[0]), shards)
        for placed in placed_ways(request, model, types, _kv_caches(request, model.facts), target)
    ]


def _ready_offer(
    request: ModelRequest, model: LockedModel, texts: Texts, quant: str, placed: Placed,
    file: FileInput,
) -> Offer:  # fmt: skip
    facts = model.facts
    types = {tensor.name: tensor.type for tensor in facts.tensors}
    kv_cache, memory = placed.kv_cache, placed.memory
    bits = tensors_bytes(facts, types) * 8 / facts.parameters
    return Offer(
        engine="llama.cpp",
        quant=quant,
        format="gguf",
        kv_cache=kv_cache,
        context_tokens=request.context_tokens,
        parallel=request.parallel,
        memory=memory,
        disk_bytes=file.size_bytes,
        scratch_bytes=0,
        bits_per_weight=round(bits, 4),
        quality=predicted_damage(
            quant, kv_cache, has_imatrix=True, bits_per_weight=bits, parameters=facts.parameters
        ),
        kv_cache_quality=kv_cache_damage(kv_cache),
        gpu_layers=placed.gpu_layers,
        tokens_per_second=placed.tokens_per_second,
        indivisible_bytes=largest_tensor_bytes(facts, types),
        steps=(proof_step(request, texts, kv_cache, memory, file, reference=None),),
        output=file,
    )


def _ready_scheme(model: LockedModel) -> str:
    """Return a ready file's scheme: what its header says, else what its name says, else `as-is`."""
    number = model.facts.extra.get("file_type")
    by_number = {scheme.number: name for name, scheme in SCHEMES.items()}
    if isinstance(number, int) and number in by_number and _plausible(model.facts, number):
        return by_number[number]
    first, *_ = model_names(file.path for file in model.resolution.files)
    stem = PurePosixPath(first).stem.upper()
    named = [name for name in SCHEMES if name in stem]
    return max(named, key=len) if named else "as-is"


def _plausible(facts: ModelFacts, number: int) -> bool:
    """Tell whether a file has any tensor of the type its file type stands for.

    Files whose types were chosen one by one keep whatever number their writer put in.
    """
    scheme = next(scheme for scheme in SCHEMES.values() if scheme.number == number)
    return any(tensor.type == scheme.base_type for tensor in facts.tensors)


# -- both ------------------------------------------------------------------------------------------


def _kv_caches(request: ModelRequest, facts: ModelFacts) -> list[str]:
    """Return the KV cache types to offer. Quantized values need flash attention (which is on)."""
    if facts.architecture in NO_CACHE:
        return ["f16"]
    block = BY_NAME["Q8_0"].block_values
    divides = facts.head_dim_key % block == 0 and facts.head_dim_value % block == 0
    if request.kv_cache == "auto":
        return ["f16", "q8_0"] if request.role in GENERATING and divides else ["f16"]
    if request.kv_cache != "f16" and not divides:
        raise RecipeError(
            Problem(
                f"a KV cache of {request.kv_cache} needs heads that are a multiple of {block} wide; "
                f"those of {request.source} are {facts.head_dim_key} and {facts.head_dim_value}",
                hint='kv_cache = "f16"',
                key="kv_cache",
            )
        )
    return [request.kv_cache]
