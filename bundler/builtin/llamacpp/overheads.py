"""What a backend takes beside all buffers that a model itself asks for: data, with sources."""

from __future__ import annotations

from dataclasses import dataclass

from bundler.hardware import Accelerator

_MIB = 1 << 20


@dataclass(frozen=True)
class Overhead:
    """Bytes of one process."""

    device_bytes: int
    """On each accelerator."""
    host_bytes: int
    source: str


# The process itself: 46 MiB were resident with a context but no weights; HTTP server and
# tokenizer tables on top.
_PROCESS_BYTES = 96 * _MIB
PROMPT_CACHE_BYTES = 256 * _MIB
"""Old prompts that a server of a writing model keeps in main memory (`cache_ram_mib`; the bundle's
server, builtin/runtimes/serve_xllamacpp.py, asks for this much instead of llama.cpp's 8 GiB)."""
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
