"""How much memory a model takes in llama.cpp, from header facts alone. Pure.

Weights and KV cache are arithmetic on what `src/llama-model.cpp`, `src/llama-kv-cache.cpp` and
`src/llama-kv-cache-iswa.cpp` allocate, exact to the byte. Compute buffers are what ggml's graph
allocator arrives at; each term below was fitted to llama.cpp's own account (`no_alloc`, then
`llama_get_memory_breakdown`) over shapes in which hidden, query, key/value, feed-forward and
vocabulary sizes differ, and the tests hold the sum to it. All sources are of the llama.cpp inside
the llama-cpp-python 0.3.36 sdist.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from bundler.builtin.llamacpp.types import stored_bytes
from bundler.hardware import Accelerator, Target
from bundler.lock import ModelFacts, TensorFact
from bundler.plan import Memory
from bundler.weights.ggml_types import BY_NAME

CONTEXT_STEP = 256
"""Contexts are rounded up to it (`GGML_PAD(cparams.n_ctx, 256)` in src/llama-context.cpp)."""
CUDA_ROW_STEP = 512
"""MATRIX_ROW_PADDING of ggml/src/ggml-cuda: quantized rows end in whole blocks of it."""
NO_CACHE = frozenset({"bert", "nomic-bert", "jina-bert-v2", "jina-bert-v3", "modern-bert"})
"""Encoders: `llama_model::create_memory` makes no KV cache for them."""
KV_TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_MIB = 1 << 20


@dataclass(frozen=True)
class Overhead:
    """What a backend takes beside all buffers that the model itself asks for."""

    device_bytes: int
    host_bytes: int
    source: str


# The process itself: 46 MiB were resident with a context but no weights; HTTP server and
# tokenizer tables on top.
_PROCESS_BYTES = 96 * _MIB
OVERHEADS: dict[Accelerator, Overhead] = {
    "none": Overhead(_PROCESS_BYTES, 0, "resident size of the process without weights, measured"),
    "cuda": Overhead(
        512 * _MIB,
        _PROCESS_BYTES + 256 * _MIB,
        "context and kernels about 330 MiB per process (unsloth #6718), cuBLAS workspace 32 MiB "
        "from compute capability 9.0 (ggml-cuda/common.cuh), the rest for the scratch pool of "
        "dequantized and attention temporaries, which grows at run time",
    ),
    "rocm": Overhead(
        512 * _MIB, _PROCESS_BYTES + 256 * _MIB, "as CUDA: the same source, no measurement"
    ),
    "vulkan": Overhead(
        256 * _MIB, _PROCESS_BYTES, "pipelines and the split-k scratch buffer: our judgement"
    ),
    "metal": Overhead(
        128 * _MIB, _PROCESS_BYTES, "pipelines; weights are shared with the CPU: our judgement"
    ),
}


@dataclass(frozen=True)
class Run:
    """How a model is run."""

    context_tokens: int
    """Of each user."""
    parallel: int
    kv_cache: str
    batch_tokens: int
    flash_attention: bool

    @property
    def cells(self) -> int:
        """KV cells of each user's stream."""
        return -(-self.context_tokens // CONTEXT_STEP) * CONTEXT_STEP

    @property
    def tokens(self) -> int:
        """Tokens of one micro batch."""
        return min(self.batch_tokens, self.cells * self.parallel)


def model_memory(
    facts: ModelFacts,
    types: Mapping[str, str],
    *,
    context_tokens: int,
    parallel: int,
    kv_cache: str,
    gpu_layers: int,
    batch_tokens: int,
    flash_attention: bool,
    target: Target,
) -> Memory:
    """Return what a model takes at its full context for all its users.

    Args:
        facts: the model.
        types: the type of each tensor in the file that is loaded.
        context_tokens: of each user; rounded up as llama.cpp does.
        parallel: users, each with a KV cache of its own.
        kv_cache: type of the cache: `f16`, `q8_0` or `q4_0`.
        gpu_layers: layers on the accelerator; -1 for all with the output layer.
        batch_tokens: the micro batch (`n_ubatch`).
        flash_attention: whether it is on.
        target: which backend, if any.
    """
    run = Run(context_tokens, parallel, kv_cache, batch_tokens, flash_attention)
    weights = place_weights(facts, types, gpu_layers=gpu_layers, target=target)
    return run_memory(facts, weights, run, gpu_layers=gpu_layers, target=target)


def run_memory(
    facts: ModelFacts, weights: Weights, run: Run, *, gpu_layers: int, target: Target
) -> Memory:
    """Return `model_memory` for weights that were placed before."""
    caches = kv_cache_bytes(facts, run)
    if target.accelerator == "none" or gpu_layers == 0:
        return Memory(
            weights_bytes=weights.host_bytes,
            kv_cache_bytes=sum(caches),
            compute_bytes=compute_bytes(facts, run) + output_bytes(facts, run),
            overhead_bytes=OVERHEADS["none"].device_bytes,
        )
    overhead = OVERHEADS[target.accelerator]
    on_device = sum(
        size for layer, size in enumerate(caches) if layer_on_device(facts, layer, gpu_layers)
    )
    return Memory(
        weights_bytes=weights.device_bytes,
        kv_cache_bytes=on_device,
        compute_bytes=compute_bytes(facts, run),
        overhead_bytes=overhead.device_bytes,
        host_bytes=weights.host_bytes
        + sum(caches)
        - on_device
        + host_input_bytes(facts, run)
        + output_bytes(facts, run)
        + overhead.host_bytes,
    )


# -- weights ---------------------------------------------------------------------------------------

_BLOCK = re.compile(r"blk\.(\d+)\.")
# Tensors of the input layer stay on the CPU (`LLM_TENSOR_LAYER_INPUT` in src/llama-arch.cpp).
_INPUT_LAYER = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")


@dataclass(frozen=True)
class Weights:
    """Where the bytes of a model's weights lie."""

    device_bytes: int
    host_bytes: int


def place_weights(
    facts: ModelFacts, types: Mapping[str, str], *, gpu_layers: int, target: Target
) -> Weights:
    """Return the bytes of weights on the accelerator, if any, and in main memory.

    Each tensor is padded to its buffer's alignment: 32 bytes on the CPU, 128 on CUDA (others ask
    for less).
    """
    if target.accelerator == "none" or gpu_layers == 0:
        return Weights(0, sum(_padded(_size(tensor, types), 32) for tensor in facts.tensors))
    cuda = target.accelerator in ("cuda", "rocm")
    device = host = 0
    for tensor in facts.tensors:
        on_device = tensor_on_device(facts, tensor.name, gpu_layers)
        # A tied output is a second copy: the embedding itself stays on the CPU (TENSOR_DUPLICATED).
        if on_device or (facts.tied_embeddings and tensor.name == "token_embd.weight"):
            padding = _cuda_row_padding(types[tensor.name], tensor.shape[-1]) if cuda else 0
            device += _padded(_size(tensor, types) + padding, 128)
        if not on_device:
            host += _padded(_size(tensor, types), 32)
    return Weights(device, host)


def layer_on_device(facts: ModelFacts, layer: int, gpu_layers: int) -> bool:
    """Tell whether a repeating layer is on the accelerator: the last ones go there first.

    The output layer counts as one more, and is the very first to go (`i_gpu_start` in
    src/llama-model.cpp).
    """
    return gpu_layers < 0 or layer >= facts.layers + 1 - gpu_layers


def tensor_on_device(facts: ModelFacts, name: str, gpu_layers: int) -> bool:
    """Tell whether a tensor lies on the accelerator."""
    layer = _layer_of(name)
    if layer is not None:
        return layer_on_device(facts, layer, gpu_layers)
    return gpu_layers != 0 and not name.startswith(_INPUT_LAYER)


@functools.lru_cache(maxsize=1 << 16)
def _layer_of(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def _cuda_row_padding(type_name: str, row_length: int) -> int:
    """Return what ggml_backend_cuda_buffer_type_get_alloc_size adds behind a quantized tensor."""
    type_ = BY_NAME[type_name]
    missing = -row_length % CUDA_ROW_STEP
    return missing * type_.block_bytes // type_.block_values if type_.block_values > 1 else 0


def _size(tensor: TensorFact, types: Mapping[str, str]) -> int:
    return stored_bytes(types[tensor.name], tensor.shape)


def _padded(size: int, step: int) -> int:
    return -(-size // step) * step


# -- KV cache --------------------------------------------------------------------------------------


def kv_cache_bytes(facts: ModelFacts, run: Run) -> list[int]:
    """Return the bytes of each layer's KV cache, for all users (`llama_kv_cache`)."""
    if facts.architecture in NO_CACHE:
        return [0] * facts.layers
    sizes: dict[tuple[int, bool], int] = {}  # most layers are alike
    found = []
    for layer, heads in enumerate(facts.kv_heads):
        kind = (heads, slides(facts, layer))
        if kind not in sizes:
            sizes[kind] = _layer_cache_bytes(facts, run, *kind)
        found.append(sizes[kind])
    return found


def _layer_cache_bytes(facts: ModelFacts, run: Run, heads: int, sliding: bool) -> int:
    cells = _sliding_cells(facts, run) if sliding else run.cells
    type_ = KV_TYPES[run.kv_cache]
    rows = cells * run.parallel
    return sum(
        stored_bytes(type_, (rows, heads * width))
        for width in (facts.head_dim_key, facts.head_dim_value)
    )


def slides(facts: ModelFacts, layer: int) -> bool:
    """Tell whether a layer sees only a window (`llama_hparams::set_swa_pattern`)."""
    if not facts.sliding_window_tokens:
        return False
    listed = facts.extra.get("sliding_layers")
    if listed:
        return bool(listed[layer])
    every = facts.sliding_window_pattern
    return every == 0 or layer % every < every - 1


def _sliding_cells(facts: ModelFacts, run: Run) -> int:
    """Return the cells of a window's cache: window and batch, padded (llama-kv-cache-iswa.cpp)."""
    return _padded(min(run.cells, facts.sliding_window_tokens + run.tokens), CONTEXT_STEP)


# -- compute buffers -------------------------------------------------------------------------------


def compute_bytes(facts: ModelFacts, run: Run) -> int:
    """Return the largest that the compute buffer becomes: its widest stage, with its masks."""
    if facts.architecture in NO_CACHE:
        return max(_encoder_attention_bytes(facts, run), _encoder_feed_forward_bytes(facts, run))
    return max(
        _output_stage_bytes(facts, run),
        _attention_stage_bytes(facts, run),
        _feed_forward_stage_bytes(facts, run),
    )


def host_input_bytes(facts: ModelFacts, run: Run) -> int:
    """Return what the host keeps beside an accelerator: embedded tokens and masks to copy over."""
    return 4 * run.tokens * (facts.hidden + 16) + _mask_bytes(facts, run)


def output_bytes(facts: ModelFacts, run: Run) -> int:
    """Return the logits that are kept for reading: one row for each user, or the embeddings."""
    width = facts.hidden if facts.architecture in NO_CACHE else facts.vocabulary
    return 4 * width * run.parallel


def _mask_bytes(facts: ModelFacts, run: Run) -> int:
    """Return the attention masks: F16 under flash attention, F32 without; a second for windows."""
    cells = run.tokens if facts.architecture in NO_CACHE else run.cells
    if facts.sliding_window_tokens:
        cells += _sliding_cells(facts, run)
    return cells * run.tokens * (2 if run.flash_attention else 4)


def _output_stage_bytes(facts: ModelFacts, run: Run) -> int:
    """Return logits of the whole batch with what lies before them in the buffer.

    Servers ask for one row of logits for each user only; llama.h's default, and whoever measures
    perplexity, asks for all rows, and the plan must hold for both.
    """
    return 4 * run.tokens * (facts.vocabulary + 1) + _before_output_bytes(facts, run)


def _before_output_bytes(facts: ModelFacts, run: Run) -> int:
    """Return where in the buffer the logits begin.

    The allocator puts them into the first hole that is large enough, hence behind whatever the
    last layer left. With plain attention that is two states. Otherwise it can be all that its
    attention held, masks too, unless the mask's own hole is large enough to be used again first.
    """
    hidden, query = facts.hidden, _query_width(facts)
    if run.flash_attention and run.kv_cache == "f16" and query == hidden:
        return 4 * run.tokens * 2 * hidden
    masks = _mask_bytes(facts, run)
    if masks >= 4 * run.tokens * 3 * hidden:
        return 4 * run.tokens * 3 * hidden
    width = 5 * hidden + (query if query != hidden else 0)
    width += 0 if run.flash_attention else 2 * _narrow_width(facts)
    return _with_inputs(facts, run, width)


def _query_width(facts: ModelFacts) -> int:
    return facts.heads * facts.head_dim_key


def _narrow_width(facts: ModelFacts) -> int:
    """Return the width of keys (and of values) in the widest layer."""
    return max(facts.kv_heads, default=0) * facts.head_dim_key


def _attention_stage_bytes(facts: ModelFacts, run: Run) -> int:
    hidden, query, narrow = facts.hidden, _query_width(facts), _narrow_width(facts)
    if run.flash_attention:
        width = max(3 * hidden + 2 * query, hidden + 2 * query + 3 * narrow)
    else:
        scores = run.cells * facts.heads
        width = scores + 2 * hidden + 2 * query + max(hidden, query) + 2 * narrow
        # Families with windows also have norms behind their attention: one more state.
        width += hidden if facts.sliding_window_tokens else 0
    return _with_inputs(facts, run, width)


def _feed_forward_stage_bytes(facts: ModelFacts, run: Run) -> int:
    hidden, query = facts.hidden, _query_width(facts)
    width = 3 * facts.feed_forward * (facts.experts_used or 1) + 3 * hidden + max(hidden, query)
    return _with_inputs(facts, run, width)


def _with_inputs(facts: ModelFacts, run: Run, width: int) -> int:
    """Return a stage of `width` floats for each token, with what all stages of a layer need."""
    return (
        4 * run.tokens * (width + _small_inputs(facts))
        + _mask_bytes(facts, run)
        + _rotation_bytes(facts, run)
    )


def _small_inputs(facts: ModelFacts) -> int:
    """Return token ids, positions and cache indices in units of four bytes for each token."""
    return 7 + 3 * facts.experts


def _rotation_bytes(facts: ModelFacts, run: Run) -> int:
    """Return the matrices that rotate keys and values of a quantized cache (two, F32)."""
    if run.kv_cache == "f16" or facts.head_dim_key % 64:
        return 0
    return 2 * 4 * facts.head_dim_key**2


def _encoder_attention_bytes(facts: ModelFacts, run: Run) -> int:
    hidden = facts.hidden
    width = hidden * 11 // 2 if run.flash_attention else run.tokens * facts.heads + 6 * hidden
    return 4 * run.tokens * (width + 4) + _mask_bytes(facts, run)


def _encoder_feed_forward_bytes(facts: ModelFacts, run: Run) -> int:
    width = facts.feed_forward + 3 * facts.hidden
    return 4 * run.tokens * (width + 4) + _mask_bytes(facts, run)
