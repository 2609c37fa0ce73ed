"""A model that is open in this process: tokens in, logits or embeddings out.

Runs only in a child process. Whether a GPU is used is never assumed: `Model.offloaded` holds what
llama.cpp's own log says was put on the accelerator.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.sharding import size_on_disk
from bundler.errors import ProofFailed, StepFailed, UnsafeInput

_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_ASSIGNED = re.compile(r"layer +(\d+) assigned to device (\S+?),")
_ADAPTER_BUFFER = re.compile(r"(\S+) LoRA buffer size = +([\d.]+) MiB")
_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type
_FLASH = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_BIG_VOCABULARY = 65_536
_SMALL_MODEL_BYTES = 64 << 20


def usable_threads(model: Path) -> int:
    """Return how many threads llama.cpp gets for a model: one per core this process may use.

    A small model gets one: its products are shorter than the wait for the other threads, which
    spin, so that on a busy machine two threads were seen to be 70 times slower than one.
    """
    if size_on_disk(model) < _SMALL_MODEL_BYTES:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


@dataclass
class Model:
    """An open model; close it by leaving `open_model`."""

    pointer: Any
    path: Path
    title: str
    """Its name in messages: in the store a file is called by its digest."""
    layers_offloaded: int
    layers_total: int
    log: str
    vocabulary: int = 0
    vocab_pointer: Any = field(default=None, repr=False)
    layer_devices: dict[int, str] = field(default_factory=dict)
    """Where llama.cpp says that it put each layer, the output layer last; empty where it does not."""
    adapters: list[tuple[Any, float]] = field(default_factory=list)
    """LoRA adapters that every context gets, each with its scale."""
    adapter_bytes: dict[str, int] = field(default_factory=dict)
    """What their weights take on each backend."""

    def tokens(self, text: str, *, special: bool = False, start: bool = False) -> list[int]:
        """Turn text into token ids; `special` reads control tokens, `start` adds BOS if due."""
        library = native.llama()
        raw = text.encode()
        room = len(raw) + 8
        for _ in range(2):  # the second time with the room that the first said it needs
            out = (library.llama_token * room)()
            count = library.llama_tokenize(
                self.vocab_pointer, raw, len(raw), out, room, start, special
            )
            if count >= 0:
                return list(out[:count])
            room = -count
        raise StepFailed("llama.cpp could not tokenize a text", where=self.title)

    def text(self, tokens: Sequence[int]) -> str:
        """Turn token ids back into text; bytes that are no UTF-8 become U+FFFD."""
        library = native.llama()
        parts = []
        buffer = ctypes.create_string_buffer(1024)
        for token in tokens:
            size = library.llama_token_to_piece(
                self.vocab_pointer, token, buffer, len(buffer), 0, False
            )
            parts.append(buffer.raw[: max(0, size)])
        return b"".join(parts).decode("utf-8", "replace")

    def starts_with_bos(self) -> bool:
        """Tell whether windows of text begin with BOS for this model."""
        return bool(native.llama().llama_vocab_get_add_bos(self.vocab_pointer))

    def bos(self) -> int:
        return int(native.llama().llama_vocab_bos(self.vocab_pointer))

    def trained_context(self) -> int:
        return int(native.llama().llama_model_n_ctx_train(self.pointer))


def adapters_of(arguments: Mapping[str, Any]) -> list[tuple[Path, float]]:
    """Return the adapters that a job's arguments name, each with its scale."""
    return [(Path(path), float(scale)) for path, scale in arguments.get("adapters") or ()]


@contextlib.contextmanager
def open_model(
    path: Path, *, gpu: bool, title: str = "model.gguf", gpu_layers: int = -1,
    adapters: Sequence[tuple[Path, float]] = (), **parameters: Any,
) -> Iterator[Model]:  # fmt: skip
    """Open a model, all layers (or the last `gpu_layers`) on the accelerator when `gpu`, else none.

    `adapters` are LoRA adapters with their scales. `parameters` are fields of llama_model_params.

    Raises:
        UnsafeInput: llama.cpp cannot load the file or an adapter (its reason is given).
    """
    library = native.llama()
    gpu = gpu and gpu_layers != 0
    given = library.llama_model_default_params()
    given.n_gpu_layers = gpu_layers if gpu else 0
    # Without layers on it llama.cpp would still use an accelerator for large products: an empty
    # list of devices keeps it out.
    no_devices = (ctypes.c_void_p * 1)(None)
    if not gpu:
        given.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    for name, value in parameters.items():
        setattr(given, name, value)
    with native.listening() as said:
        pointer = library.llama_model_load_from_file(os.fsencode(path), given)
        log = said()
    if not pointer:
        if any(sign in log for sign in ("unable to allocate", "failed to allocate")):
            raise MemoryError(native.last_errors())
        raise UnsafeInput(f"llama.cpp cannot load this model: {native.last_errors()}", where=title)
    found = _OFFLOADED.findall(log)
    offloaded, total = (int(n) for n in found[-1]) if found else (0, 0)
    model = Model(pointer, path, title, offloaded, total, log)
    model.vocab_pointer = library.llama_model_get_vocab(pointer)
    model.vocabulary = library.llama_vocab_n_tokens(model.vocab_pointer)
    if not total:
        model.layers_total = library.llama_model_n_layer(pointer) + 1
    model.layer_devices = {int(n): device for n, device in _ASSIGNED.findall(log)}
    try:
        for adapter, scale in adapters:
            load_adapter(model, adapter, scale)
        yield model
    finally:
        library.llama_model_free(pointer)


def load_adapter(model: Model, path: Path, scale: float) -> None:
    """Load a LoRA adapter beside an open model. Raises UnsafeInput."""
    with native.listening() as said:
        pointer = native.llama().llama_adapter_lora_init(model.pointer, os.fsencode(path))
        log = said()
    if not pointer:
        if "failed to allocate" in log:
            raise MemoryError(native.last_errors())
        raise UnsafeInput(
            f"llama.cpp cannot load this adapter: {native.last_errors()}", where=path.name
        )
    model.adapters.append((pointer, scale))  # freed with the model
    for backend, mebibytes in _ADAPTER_BUFFER.findall(log):
        name = backend.removesuffix("_Mapped")
        size = round(float(mebibytes) * 2**20)
        model.adapter_bytes[name] = model.adapter_bytes.get(name, 0) + size


def use_adapters(model: Model, context: Any) -> None:
    """Apply a model's adapters in a context. Raises StepFailed."""
    count = len(model.adapters)
    if not count:
        return
    pointers = [ctypes.cast(pointer, ctypes.c_void_p) for pointer, _ in model.adapters]
    apply = native.symbol(
        "llama_set_adapters_lora", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_size_t, ctypes.c_void_p,
    )  # fmt: skip
    scales = (ctypes.c_float * count)(*(scale for _, scale in model.adapters))
    code = apply(context, (ctypes.c_void_p * count)(*pointers), count, scales)
    if code != 0:
        raise StepFailed(f"llama.cpp did not apply the adapters (code {code})", where=model.title)


def require_placement(model: Model, gpu_layers: int = -1) -> None:
    """Raise ProofFailed unless the layers that should be on the accelerator are, each of them.

    Counted as llama.cpp counts: -1 for all, the output layer included; else that many, the output
    layer first and then the last ones.
    """
    total = model.layers_total
    wanted = total if gpu_layers < 0 else min(gpu_layers, total)
    right = total > 0 and model.layers_offloaded == wanted
    elsewhere = [
        number
        for number, device in sorted(model.layer_devices.items())
        if number >= total - wanted and device == "CPU"
    ]
    if right and not elsewhere:
        return
    missing = f"; layers {', '.join(map(str, elsewhere))} are on the CPU" if elsewhere else ""
    raise ProofFailed(
        f"{model.layers_offloaded} of {total} layers went to the accelerator, the plan puts {wanted} "
        f"there{missing}",
        where=model.title,
        hint="its memory is too small or in use: free it, or plan for a smaller quantization",
    )


class Context:
    """A model with its KV cache; `decode` feeds it, then logits or embeddings can be read."""

    def __init__(self, model: Model, pointer: Any, batch_tokens: int, log: str) -> None:
        self.model = model
        self.pointer = pointer
        self.batch_tokens = batch_tokens
        self.log = log
        self._batch = native.llama().llama_batch_init(batch_tokens, 0, 1)

    def clear(self) -> None:
        """Forget everything decoded so far (a no-op for models without a KV cache)."""
        library = native.llama()
        memory = library.llama_get_memory(self.pointer)
        if memory:
            library.llama_memory_clear(memory, True)

    def decode(
        self, tokens: Sequence[int], *, start: int = 0, sequence: int = 0, logits_from: int = -1
    ) -> None:
        """Feed at most `batch_tokens` tokens at positions `start`…; keep logits from an index on.

        `logits_from` counts within `tokens`; -1 keeps the last one's only.
        """
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        first = count - 1 if logits_from < 0 else logits_from
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = index >= first
        self._run(count)

    def decode_each(self, given: Sequence[tuple[int, int, int]]) -> None:
        """Feed one token to each of several sequences: (token, position, sequence); keep all logits."""
        self.decode_cells([(*one, True) for one in given])

    def decode_cells(self, given: Sequence[tuple[int, int, int, bool]]) -> None:
        """Feed at most `batch_tokens` tokens: (token, position, sequence, whether logits are kept)."""
        batch = self._batch
        batch.n_tokens = len(given)
        for index, (token, position, sequence, keep) in enumerate(given):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = keep
        self._run(len(given))

    def share(self, sequence: int, other: int) -> None:
        """Let another sequence begin with all that one holds so far."""
        library = native.llama()
        library.llama_memory_seq_cp(library.llama_get_memory(self.pointer), sequence, other, -1, -1)

    def _run(self, count: int) -> None:
        code = native.llama().llama_decode(self.pointer, self._batch)
        if code != 0:
            raise StepFailed(
                f"llama.cpp could not decode {count} tokens (code {code}): {native.last_errors()}",
                where=self.model.title,
            )

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """Return a view of the logits kept by the last decode; gone with the next."""
        library = native.llama()
        pointer = library.llama_get_logits(self.pointer)
        if not pointer:
            raise StepFailed("llama.cpp gave no logits", where=self.model.title)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.model.vocabulary))

    def flash_attention(self) -> bool:
        """Tell from the log whether flash attention is in use."""
        said = re.findall(r"Flash Attention (enabled|not supported)", self.log)
        if said:
            return bool(said[-1] == "enabled")
        return bool(re.search(r"flash_attn += enabled", self.log))

    def close(self) -> None:
        """Free the batch and the context."""
        library = native.llama()
        library.llama_batch_free(self._batch)
        library.llama_free(self.pointer)


@contextlib.contextmanager
def open_context(
    model: Model,
    *,
    context_tokens: int,
    batch_tokens: int = 512,
    micro_batch_tokens: int = 0,
    sequences: int = 1,
    kv_cache: str = "f16",
    flash_attention: str = "auto",
    threads: int = 0,
    **parameters: Any,
) -> Iterator[Context]:
    """Make a context of `context_tokens` in all; `parameters` are fields of llama_context_params.

    Raises:
        MemoryError: the KV cache or the compute buffers could not be allocated.
        StepFailed: llama.cpp refused for another reason.
    """
    library = native.llama()
    given = library.llama_context_default_params()
    given.n_ctx, given.n_seq_max = context_tokens, sequences
    given.n_batch = batch_tokens
    given.n_ubatch = micro_batch_tokens or _micro_batch(model, batch_tokens)
    given.n_threads = given.n_threads_batch = threads or usable_threads(model.path)
    given.type_k = given.type_v = _KV_TYPES[kv_cache]
    given.flash_attn_type = _FLASH[flash_attention]
    # llama.h's default keeps the full context for layers that see only a window; servers do not.
    given.swa_full = False
    for name, value in parameters.items():
        setattr(given, name, value)
    with native.listening() as said:
        pointer = library.llama_init_from_model(model.pointer, given)
        log = said()
    if not pointer:
        reason = native.last_errors()
        if "alloc" in log:
            raise MemoryError(f"no room for a context of {context_tokens} tokens: {reason}")
        raise StepFailed(f"llama.cpp made no context: {reason}", where=model.title)
    context = Context(model, pointer, batch_tokens, log)
    try:
        use_adapters(model, pointer)
        yield context
    finally:
        context.close()


def _micro_batch(model: Model, batch_tokens: int) -> int:
    # Logits of a micro batch take tokens x vocabulary x 4 bytes: 311 MB at 512 x 152k.
    return min(batch_tokens, 128 if model.vocabulary > _BIG_VOCABULARY else 512)
