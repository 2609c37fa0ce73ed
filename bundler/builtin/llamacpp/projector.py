"""Facts of a projector from its GGUF header, and what seeing takes. Pure.

The memory is that of `clip_init` and `clip_encode` (tools/mtmd/clip.cpp of the llama.cpp inside the
llama-cpp-python 0.3.36 sdist): weights, and the compute buffer for the largest image it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bundler.builtin.llamacpp.adapter_facts import only_gguf
from bundler.builtin.llamacpp.graph.allocator import Allocator
from bundler.builtin.llamacpp.graph.backends import CPU, DEVICES, Backend, row_padding
from bundler.builtin.llamacpp.graph.pieces import NotDescribed
from bundler.builtin.llamacpp.graph.scheduler import schedule
from bundler.builtin.llamacpp.graph.shape import Same, padded
from bundler.builtin.llamacpp.graph.vision import PROJECTORS, Eye, Sight
from bundler.builtin.llamacpp.types import stored_bytes
from bundler.errors import Problem, UnsafeInput
from bundler.hardware import Accelerator
from bundler.lock import LockedFile, ModelFacts, ProjectorFacts, Resolution, TensorFact

if TYPE_CHECKING:
    from bundler.weights import GgufHeader

_QWEN = ("qwen2vl_merger", "qwen2.5vl_merger")
MOST_IMAGE_TOKENS = 4096
"""Of one image in Qwen's projectors (`set_limit_image_tokens(8, 4096)`)."""
_WARM_SIDE_TOKENS = 46
"""Of the image that they are warmed up with (`set_warmup_n_tokens(46*46)`)."""
_MOST_SIDE = 4096
_MOST_LAYERS = 256
_MOST_WIDTH = 1 << 16
_PINPOINTS = "clip.vision.image_grid_pinpoints"
_MOST_ITEMS = 64
_MOST_TEXT = 256
_HINT = "take the projector (mmproj, GGUF) that was published with this very model"
_NEEDED = {
    "image_size": _MOST_SIDE, "patch_size": 256, "block_count": _MOST_LAYERS,
    "embedding_length": _MOST_WIDTH, "attention.head_count": 1024, "projection_dim": _MOST_WIDTH,
    "feed_forward_length": 1 << 20,
}  # fmt: skip


def projector_facts(
    resolution: Resolution, read: Callable[[LockedFile, int, int], bytes], base: ModelFacts
) -> ProjectorFacts:
    """Read a projector's header and hold it against its model. Raises UnsafeInput.

    A projector whose graph is not described here is refused: what it takes cannot be said, and
    llama-cpp-python's build has no libmtmd to ask.
    """
    file = only_gguf(resolution, "a projector", _HINT)
    from bundler.weights import read_gguf_header

    header = read_gguf_header(
        lambda start, length: read(file, start, length), file.size_bytes, where=file.path
    )
    kind = str(header.metadata.get("clip.projector_type", ""))[:_MOST_TEXT]
    problems = _problems(header, kind)
    if not problems:
        facts = ProjectorFacts(
            kind=kind,
            fields=_fields(header),
            tensors=tuple(
                TensorFact(name=t.name, type=t.type, shape=t.shape) for t in header.tensors
            ),
        )
        problems = _graph_problems(facts, base)
    if problems:
        raise UnsafeInput([Problem(problem, file.path, _HINT) for problem in problems])
    return facts


def _problems(header: GgufHeader, kind: str) -> list[str]:
    found = header.metadata
    if found.get("general.architecture") != "clip":
        said = str(found.get("general.architecture", "missing"))[:40]
        return [f"general.architecture is {said!r}, not 'clip': it is no projector"]
    if kind not in PROJECTORS:
        return [
            f"how much memory a projector of the kind {kind or 'unknown'!r} takes is not known here "
            f"(described are: {', '.join(PROJECTORS)}), and llama-cpp-python has no libmtmd to ask"
        ]
    problems = []
    if found.get("clip.has_vision_encoder") is not True:
        problems.append("clip.has_vision_encoder is not set: it sees nothing")
    for key in ("clip.has_audio_encoder", "clip.has_gen_audio_encoder"):
        if found.get(key, False) is not False:
            problems.append(f"{key} is set: hearing is not described here")
    needed = dict(_NEEDED) | ({"n_wa_pattern": _MOST_LAYERS} if kind == "qwen2.5vl_merger" else {})
    for name, most in needed.items():
        value = found.get(f"clip.vision.{name}")
        if type(value) is not int or not 0 < value <= most:
            problems.append(
                f"clip.vision.{name} is {str(value)[:40]}, not a number from 1 to {most}"
            )
    scale = found.get("clip.vision.projector.scale_factor", 4)
    if type(scale) is not int or not 0 < scale <= _MOST_ITEMS:
        problems.append("clip.vision.projector.scale_factor is not a small number")
    if _PINPOINTS in found:
        problems.append(f"{_PINPOINTS} cuts one image into several, which is not described here")
    for name in ("feature_layer", "spatial_merge_size", "attention.head_count_kv"):
        if f"clip.vision.{name}" in found and not _is_usual(name, found):
            problems.append(f"clip.vision.{name} makes another graph, which is not described here")
    return problems


def _is_usual(name: str, found: Any) -> bool:
    usual = {"spatial_merge_size": 2, "attention.head_count_kv": found.get(
        "clip.vision.attention.head_count")}  # fmt: skip
    return name in usual and found[f"clip.vision.{name}"] == usual[name]


def _fields(header: GgufHeader) -> dict[str, Any]:
    """Return the projector's own fields that are small."""
    from bundler.weights import GgufArray

    kept: dict[str, Any] = {}
    for key, value in header.metadata.items():
        if not key.startswith("clip."):
            continue
        if isinstance(value, GgufArray):
            if key == _PINPOINTS:
                kept[key] = "several pictures of one image"
            continue  # colours, layers that another graph would read: refused or not needed
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if not isinstance(value, str) or len(value) <= _MOST_TEXT:
            kept[key] = value
    return kept


def _graph_problems(facts: ProjectorFacts, base: ModelFacts) -> list[str]:
    """Build the graph once: shapes that do not fit together are found here."""
    sight = Sight.of(facts)
    problems = []
    if sight.hidden % sight.heads:
        problems.append(f"{sight.hidden} values do not divide into {sight.heads} heads")
    if sight.image % sight.patch:
        problems.append(f"an image of {sight.image} does not divide into patches of {sight.patch}")
    width = _output_width(facts)
    if width != base.hidden:
        problems.append(f"it makes vectors of {width}, the model takes {base.hidden}")
    problems += _shape_problems(facts, sight)
    if problems:
        return problems
    try:
        PROJECTORS[facts.kind](Eye(facts, _sides(facts, _WARM_SIDE_TOKENS**2)[0], flash=True))
    except NotDescribed as difference:
        return [f"{difference}: what it takes cannot be said"]
    return []


def _output_width(facts: ProjectorFacts) -> int:
    """Return the width of what it makes (`clip_n_mmproj_embd`)."""
    shapes = {tensor.name: tensor.shape for tensor in facts.tensors}
    if facts.kind == "gemma3":
        return shapes.get("mm.input_projection.weight", (0, 0))[-1]
    return next((shapes[n][0] for n in ("mm.2.weight", "mm.0.weight") if n in shapes), 0)


def _shape_problems(facts: ProjectorFacts, sight: Sight) -> list[str]:
    """Hold each layer's matrices to the widths of the header."""
    problems = []
    for tensor in facts.tensors:
        name = tensor.name.rpartition(".")[0].rpartition(".")[2]
        if tensor.name.startswith("v.blk.") and name.startswith("attn_") and (
            tensor.shape not in ((sight.hidden, sight.hidden), (sight.hidden,))
        ):  # fmt: skip
            problems.append(f"{tensor.name} is {tensor.shape}, not {sight.hidden} wide")
        if name in ("ffn_up", "ffn_down", "ffn_gate") and tensor.name.endswith(".weight") and (
            len(tensor.shape) != 2 or sight.hidden not in tensor.shape
        ):  # fmt: skip
            problems.append(f"{tensor.name} is {tensor.shape}, not {sight.hidden} wide")
    patch = next((t.shape for t in facts.tensors if t.name == "v.patch_embd.weight"), ())
    if patch != (sight.hidden, 3, sight.patch, sight.patch):
        problems.append(f"v.patch_embd.weight is {patch}, not of patches of {sight.patch}")
    return problems[:6]


# -- what it takes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeing:
    """Bytes a projector takes."""

    weights_bytes: int
    compute_bytes: int
    """On the accelerator, or in main memory where it is there."""
    host_bytes: int = 0
    """In main memory although it is on an accelerator."""
    image_tokens: int = 0
    """The most of the context that one image takes."""
    pixels: int = 0
    """Of the largest image."""


def image_tokens(facts: ProjectorFacts, context_tokens: int) -> int:
    """Return the most tokens of one image; the bundle's server holds images to half a context."""
    sight = Sight.of(facts)
    across = sight.image // sight.patch
    if facts.kind == "gemma3":
        return (across // sight.pooled) ** 2
    if facts.kind in _QWEN:
        return min(MOST_IMAGE_TOKENS, context_tokens // 2)
    return across**2


def _sides(facts: ProjectorFacts, tokens: int) -> list[tuple[int, int]]:
    """Return the sides, in patches, of the images that memory is needed for."""
    sight = Sight.of(facts)
    if facts.kind in _QWEN:
        warm = 2 * _WARM_SIDE_TOKENS
        return [(warm, warm), (2 * tokens, 2)]
    across = sight.image // sight.patch
    return [(across, across)]


def seeing(facts: ProjectorFacts, accelerator: Accelerator, context_tokens: int) -> Seeing:
    """Return what a projector takes on an accelerator, or on the CPU (`none`)."""
    return _seeing(Same(facts), accelerator, image_tokens(facts, context_tokens))


@lru_cache(maxsize=256)
def _seeing(known: Same[ProjectorFacts], accelerator: Accelerator, tokens: int) -> Seeing:
    facts = known.value
    device = DEVICES.get(accelerator)
    # Whether a driver's kernels take heads of this width is theirs to say, except for those of
    # CUDA and the CPU.
    flashes = (True,) if accelerator in ("none", "cuda", "rocm") else (True, False)
    found = [
        compute_bytes(facts, side, flash=flash, device=device)
        for side in _sides(facts, tokens)
        for flash in flashes
    ]
    patch = Sight.of(facts).patch
    pixels = max(across * down * patch**2 for across, down in _sides(facts, tokens))
    *there, host = (max(sizes) for sizes in zip(*found, strict=True))
    backend = device or CPU
    weights = sum(_weight_bytes(t, backend, accelerator) for t in facts.tensors)
    if device is None:
        return Seeing(weights, host, 0, tokens, pixels)
    return Seeing(weights, there[0], host, tokens, pixels)


def _weight_bytes(tensor: TensorFact, backend: Backend, accelerator: Accelerator) -> int:
    size = stored_bytes(tensor.type, tensor.shape)
    if accelerator in ("cuda", "rocm"):
        size += row_padding(tensor.type, tensor.shape[-1])
    return padded(size, backend.buffers.alignment)


def compute_bytes(
    facts: ProjectorFacts, side: tuple[int, int], *, flash: bool, device: Backend | None = None
) -> tuple[int, ...]:
    """Return the compute buffer of each backend for an image of so many patches, the CPU's last."""
    eye = Eye(facts, side, flash=flash)
    PROJECTORS[facts.kind](eye)
    backends = [*([device] if device else []), CPU]
    graph = schedule(eye.graph, backends)
    if device:
        for tensor in (*graph.leaves, *graph.nodes):
            if tensor.view_of is None:
                tensor.size_bytes = backends[tensor.backend].size(tensor)
    return tuple(Allocator([backend.buffers for backend in backends]).reserve(graph))
