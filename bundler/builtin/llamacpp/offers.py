"""Every way llama.cpp could build a model: which schemes, which KV caches, at what cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

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
from bundler.builtin.llamacpp.schemes import SCHEMES, UNQUANTIZED
from bundler.builtin.llamacpp.types import (
    Inventory,
    TypeChoice,
    choose_types,
    data_section_bytes,
    find_scheme,
    tensors_bytes,
)
from bundler.errors import BundlerError, DoesNotFit, Problem, RecipeError
from bundler.hardware import Target
from bundler.lock import LockedModel, ModelFacts, Resolution, TensorFact
from bundler.plan import FileInput, Offer, Step, StepInput
from bundler.recipe import ModelRequest
from bundler.weights.ggml_types import BY_NAME

AUTO_SCHEMES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M",
                "Q3_K_S", "Q2_K")  # fmt: skip
"""What `auto` tries for chat and code beside the unquantized model. K-quants cover the range;
IQ4_XS fills the gap under Q4_K_S. Below Q2_K models break more often than they help."""
AUTO_SMALL_SCHEMES = ("Q8_0",)
"""What `auto` tries for embedders, rerankers and drafts, whose errors nobody sees."""
# Schemes whose rounding is not guided by an importance matrix (`ggml_quantize_chunk` ignores it).
_UNGUIDED = frozenset({"Q8_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0"}) | UNQUANTIZED
# Tokenizer and settings in a GGUF header: 61 bytes for each token of Llama 3 with its merges, the
# largest of those we know (Qwen2.5: 39, Llama 2: 22).
_HEADER_BYTES_PER_TOKEN = 64
_HEADER_BYTES = 1 << 16
_TENSOR_ENTRY_BYTES = 100
_IMATRIX_BYTES = 32 << 20
_SHOWN = 6


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
        raise DoesNotFit(
            Problem(
                f"the recipe asks for a context of {request.context_tokens:,} tokens, "
                f"{request.source} was made for {facts.context_tokens:,}",
                hint=f"context_tokens = {facts.context_tokens}, or another model",
                key="context_tokens",
            )
        )


# -- built from safetensors ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """One scheme for one model, before its KV cache is chosen."""

    scheme: str
    guided: bool
    """Whether an importance matrix is made for it."""
    types: Mapping[str, str]
    file_bytes: int
    bits_per_weight: float


def _built_offers(
    request: ModelRequest, model: LockedModel, target: Target, texts: Texts
) -> list[Offer]:
    inventory = Inventory.of(model.facts)
    converted = choose_types(inventory, inventory.stored, has_imatrix=False).types
    converted_bytes = _file_bytes(model.facts, converted)
    caches = _kv_caches(request, model.facts)
    published = published_files(model)
    offers: list[Offer] = []
    for way in _ways(request, inventory):
        building = Building(request, way.scheme, guided=way.guided, stored=inventory.stored)
        steps = making_steps(building, published, texts)
        scratch_bytes = converted_bytes + (_IMATRIX_BYTES if way.guided else 0)
        offers += [
            _built_offer(building, model.facts, texts, way, steps, placed).model_copy(
                update={"scratch_bytes": scratch_bytes if building.last == "quantize" else 0}
            )
            for placed in placed_ways(request, model, way.types, caches, target)
        ]
    return offers


def _built_offer(
    building: Building, facts: ModelFacts, texts: Texts, way: _Way, steps: tuple[Step, ...],
    placed: Placed,
) -> Offer:  # fmt: skip
    request = building.request
    built = StepInput(step=building.last, file="model.gguf")
    reference = StepInput(step="convert", file="model.gguf")
    prove = proof_step(request, texts, placed.kv_cache, placed.memory, built, reference=reference)
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
        steps=(*steps, prove),
        output=built,
    )


def _ways(request: ModelRequest, inventory: Inventory) -> list[_Way]:
    """Return the schemes to offer with the types each one means for this model."""
    facts = inventory.facts
    asked = _asked_schemes(request, inventory)
    found: list[_Way] = []
    problems: list[Problem] = []
    for scheme in asked:
        guided = _is_guided(request, facts, scheme)
        choice = choose_types(inventory, scheme, guided)
        if choice.fallbacks and not request.allow_fallback:
            problems.append(_fallback_problem(request, scheme, choice, inventory))
        elif choice.needs_importance_matrix and not guided:
            problems.append(
                Problem(
                    f"llama.cpp makes {scheme} only with an importance matrix",
                    hint='importance_matrix = "auto", or another scheme',
                    key="importance_matrix",
                )
            )
        else:
            bits = tensors_bytes(facts, choice.types) * 8 / facts.parameters
            found.append(_Way(scheme, guided, choice.types, _file_bytes(facts, choice.types), bits))
    if not found:
        raise RecipeError(problems)
    return found


def _asked_schemes(request: ModelRequest, inventory: Inventory) -> list[str]:
    if request.quant != ("auto",):
        problems = [problem for name in request.quant for problem in _unknown(name)]
        if problems:
            raise RecipeError(problems)
        return list(dict.fromkeys(request.quant))
    schemes = AUTO_SCHEMES if request.role in GENERATING else AUTO_SMALL_SCHEMES
    return [inventory.stored, *schemes]


def _unknown(name: str) -> Sequence[Problem]:
    try:
        find_scheme(name)
    except BundlerError as error:
        return [replace(problem, key="quant") for problem in error.problems]
    return ()


def _is_guided(request: ModelRequest, facts: ModelFacts, scheme: str) -> bool:
    """Tell whether an importance matrix is worth making. Encoders have none to make it from."""
    return (
        request.importance_matrix == "auto"
        and scheme not in _UNGUIDED
        and facts.architecture not in NO_CACHE
    )


def _fallback_problem(
    request: ModelRequest, scheme: str, choice: TypeChoice, inventory: Inventory
) -> Problem:
    fitting = [name for name in (*AUTO_SCHEMES, "Q5_0", "Q4_0") if _fits_rows(inventory, name)]
    return Problem(
        f"{scheme} cannot be made of {request.source}: {_rows(choice.fallbacks)} do "
        "not divide into its blocks, and llama.cpp would put other types in their place",
        hint=f"quant that fit its rows: {', '.join([inventory.stored, *fitting])}; or accept "
        "the replacements: allow_fallback = true",
        key="quant",
    )


def _rows(tensors: Sequence[TensorFact]) -> str:
    lengths = sorted({tensor.shape[-1] for tensor in tensors})
    names = ", ".join(tensor.name for tensor in tensors[:2])
    more = f" and {len(tensors) - 2} more" if len(tensors) > 2 else ""
    return f"rows of {', '.join(map(str, lengths[:_SHOWN]))} ({names}{more})"


def _fits_rows(inventory: Inventory, scheme: str) -> bool:
    return not choose_types(inventory, scheme, has_imatrix=True).fallbacks


def _file_bytes(facts: ModelFacts, types: Mapping[str, str]) -> int:
    """Return the size of the finished file: its tensors exactly, its header as at most."""
    header = (
        _HEADER_BYTES
        + facts.vocabulary * _HEADER_BYTES_PER_TOKEN
        + len(facts.tensors) * _TENSOR_ENTRY_BYTES
    )
    return data_section_bytes(facts, types) + header


# -- ready GGUF files ------------------------------------------------------------------------------


def _ready_offers(
    request: ModelRequest, model: LockedModel, target: Target, texts: Texts
) -> list[Offer]:
    """Offer the file as it comes, with each KV cache."""
    files = [file for file in model.resolution.files if file.path.lower().endswith(".gguf")]
    if len(files) > 1 or int(model.facts.extra.get("parts", 1)) > 1:
        raise RecipeError(
            Problem(
                f"the model is split into {len(files)} GGUF files; only models in one file can be "
                "taken as they come",
                hint="join them with llama-gguf-split --merge, or name the safetensors repository",
                key="source",
            )
        )
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
    file = FileInput(sha256=files[0].sha256, size_bytes=files[0].size_bytes)
    return [
        _ready_offer(request, model, texts, quant, placed, file)
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
        steps=(proof_step(request, texts, kv_cache, memory, file, reference=None),),
        output=file,
    )


def _ready_scheme(model: LockedModel) -> str:
    """Return a ready file's scheme: what its header says, else what its name says, else `as-is`."""
    number = model.facts.extra.get("file_type")
    by_number = {scheme.number: name for name, scheme in SCHEMES.items()}
    if isinstance(number, int) and number in by_number and _plausible(model.facts, number):
        return by_number[number]
    stem = PurePosixPath(model.resolution.files[0].path).stem.upper()
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
