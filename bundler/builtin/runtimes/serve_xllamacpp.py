"""Serves one model at the far end: llama.cpp's own server, as the xllamacpp wheel brings it.

Started by the station as a child, once for each model, with nothing but the bundle's Python:

    python serve_xllamacpp.py --model FILE --port PORT --context-tokens N --parallel N
        --kv-cache f16|q8_0|q4_0 --role chat|code|draft|embed|rerank --gpu-layers N --threads N
        [--adapter SCALE:FILE]… [--projector FILE]
        [--draft FILE --draft-kv-cache f16|q8_0|q4_0 --draft-gpu-layers N]

    python serve_xllamacpp.py --list-devices

prints the accelerators it can use as one line of JSON: kind, name, free_bytes, total_bytes, shared.

It listens on 127.0.0.1 only, answers only those who know the key in `BUNDLER_MODEL_KEY`, and ends
when its parent does. `GET /health` answers when the model is loaded.

Exit codes: 2 wrong use, 3 this machine's processor cannot run it, 4 the model cannot be served.
A file that llama.cpp itself aborts on (SIGABRT) takes this process with it and nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

WRONG_USE, WRONG_PROCESSOR, WRONG_MODEL = 2, 3, 4
KEY = "BUNDLER_MODEL_KEY"
KV_CACHES = ("f16", "q8_0", "q4_0")
ROLES = ("chat", "code", "draft", "embed", "rerank")
# What the x86-64 wheels are compiled for (their build sets GGML_NATIVE=OFF and keeps these on).
X86_FEATURES = ("avx2", "fma", "f16c", "bmi2")
ALL_LAYERS = 9999
# Old prompts kept in main memory so that a conversation need not be read anew; llama.cpp's own
# default of 8 GiB would push the models themselves out of a small machine.
PROMPT_CACHE_MIB = 256
# Of one image; llama.cpp's own limit for those projectors that take images of any size.
MOST_IMAGE_TOKENS = 4096
# Words that a draft guesses before they are checked: llama.cpp's default, as it was planned.
DRAFTED_TOKENS = 3
# A model that is planned for main memory must not take any of a card's: llama.cpp would reserve
# buffers of hundreds of MiB there, and each process some more, without a single layer on it.
HIDDEN_ACCELERATORS = {
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "GGML_VK_VISIBLE_DEVICES": "",
}


def fail(code: int, message: str, hint: str) -> NoReturn:
    """Say in two lines what is wrong and what helps, and end."""
    sys.stderr.write(f"error: {message}\nhint: {hint}\n")
    raise SystemExit(code)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Check everything that can be checked, then serve until the parent is gone."""
    if (sys.argv[1:] if words is None else list(words)) == ["--list-devices"]:
        list_devices()
    wish = parse(words)
    key = os.environ.pop(KEY, "")
    if len(key) < 16:
        fail(WRONG_USE, f"{KEY} holds no key of 16 characters or more", "the station sets it")
    for file in files(wish):
        if not Path(file).is_file():
            fail(WRONG_MODEL, f"{file}: not there", "verify the bundle: a file is missing")
    missing = missing_processor_features()
    if missing:
        fail(
            WRONG_PROCESSOR,
            f"this processor lacks {', '.join(missing)}, which the model server needs",
            "search and the reader work without it",
        )
    watch_parent(os.getppid())
    serve(wish, key)


def files(wish: argparse.Namespace) -> list[str]:
    """Return every file that is to be opened."""
    beside = [file for file in (wish.projector, wish.draft) if file]
    return [wish.model, *(file for _, file in wish.adapter), *beside]


def list_devices() -> NoReturn:
    """Print what models could run on beside the processor, and end."""
    listed = []
    if not missing_processor_features():
        sys.path.insert(0, str(Path(__file__).resolve().parent / "site"))
        import xllamacpp

        listed = accelerators(xllamacpp.get_device_info())
    sys.stdout.write(json.dumps(listed) + "\n")
    sys.stdout.flush()
    raise SystemExit(0)


def accelerators(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Return llama.cpp's devices as the station reads them; the processor is none of them.

    Their names are a word of the backend and a number: `CUDA0`, `ROCm0`, `Vulkan0`, `MTL0`.
    """
    kinds = {"CUDA": "cuda", "ROCm": "rocm", "Vulkan": "vulkan", "MTL": "metal", "Metal": "metal"}
    listed = []
    for device in found:
        sort = getattr(device["type"], "name", str(device["type"])).rpartition("_")[2]
        if sort in ("GPU", "IGPU"):
            word = str(device["name"]).rstrip("0123456789")
            kind = kinds.get(word, word.lower() or "other")
            listed.append(
                {
                    "kind": kind,
                    "name": str(device["description"] or device["name"])[:200],
                    "free_bytes": int(device["memory_free"]),
                    "total_bytes": int(device["memory_total"]),
                    "shared": sort == "IGPU" or kind == "metal",
                }
            )
    return listed


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as checked values."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=number(0, 65535), required=True)
    parser.add_argument("--context-tokens", type=number(64, 10_000_000), required=True)
    parser.add_argument("--parallel", type=number(1, 256), default=1)
    parser.add_argument("--kv-cache", choices=KV_CACHES, default="f16")
    parser.add_argument("--role", choices=ROLES, default="chat")
    parser.add_argument("--gpu-layers", type=number(-1, ALL_LAYERS), default=-1)
    parser.add_argument("--threads", type=number(0, 1024), default=0)
    parser.add_argument("--adapter", type=adapter, action="append", default=[])
    parser.add_argument("--projector", default="")
    parser.add_argument("--draft", default="")
    parser.add_argument("--draft-kv-cache", choices=KV_CACHES, default="f16")
    parser.add_argument("--draft-gpu-layers", type=number(-1, ALL_LAYERS), default=-1)
    return parser.parse_args(words)


def adapter(text: str) -> tuple[float, str]:
    """Return the scale and the file of a LoRA adapter."""
    scale, colon, file = text.partition(":")
    if not colon or not file or not math.isfinite(float(scale)):
        raise argparse.ArgumentTypeError(f"{text!r} is not SCALE:FILE")
    return float(scale), file


def number(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers between two bounds."""

    def read(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return int(text)

    return read


def missing_processor_features() -> list[str]:
    """Name the instruction sets the wheel needs and this processor lacks.

    Asked before anything is loaded, since the first missing instruction would end the process
    without a word (SIGILL).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    if sys.platform == "win32":
        avx2 = ctypes.windll.kernel32.IsProcessorFeaturePresent(
            40
        )  # PF_AVX2_INSTRUCTIONS_AVAILABLE
        return [] if avx2 else ["avx2"]
    if sys.platform == "darwin":
        return [] if _mac_feature(b"hw.optional.avx2_0") else ["avx2"]
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []  # No /proc here: nothing is known, and trying harms only this process.
    return linux_missing(text)


def linux_missing(cpuinfo: str) -> list[str]:
    """Name what a Linux machine's /proc/cpuinfo does not list."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), None)
    return [] if flags is None else [name for name in X86_FEATURES if name not in flags.split()]


def _mac_feature(name: bytes) -> bool:
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    system = ctypes.CDLL(None)
    done = system.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return done == 0 and value.value == 1


def watch_parent(parent: int) -> None:
    """End this process within a second after its parent did, however that came."""

    def watch() -> None:
        if sys.platform == "win32":
            _wait_windows(parent)
        else:
            while os.getppid() == parent:
                time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _wait_windows(process: int) -> None:
    library: Any = getattr(ctypes, "WinDLL")  # noqa: B009 - exists on Windows only
    kernel = library("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    handle = kernel.OpenProcess(0x00100000, False, process)  # SYNCHRONIZE
    if handle:
        kernel.WaitForSingleObject(handle, 0xFFFFFFFF)


def serve(wish: argparse.Namespace, key: str) -> NoReturn:
    """Load the model and serve it for good."""
    sys.path.insert(0, str(Path(__file__).resolve().parent / "site"))
    if wish.gpu_layers == 0:
        os.environ.update(HIDDEN_ACCELERATORS)
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(xllamacpp, wish, key))
    except Exception as error:  # noqa: BLE001 - whatever the extension raises is said below
        fail(WRONG_MODEL, f"{wish.model}: {error}", "verify the bundle; the log above says more")
    sys.stdout.write(f"serving {server.listening_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)


def parameters(xllamacpp: Any, wish: argparse.Namespace, key: str) -> Any:
    """Translate the wish into llama.cpp's words."""
    given = xllamacpp.CommonParams()
    given.model.path = wish.model
    given.hostnames = ["127.0.0.1"]
    given.port = wish.port
    given.api_keys = [key]
    given.cors_origins = ""
    given.cors_credentials = False
    given.ui = False
    given.endpoint_slots = False
    given.offline = True
    # What was planned and proven is what runs: no fitting of context or layers behind our back.
    given.fit_params = False
    given.n_ctx = wish.context_tokens * wish.parallel
    given.n_parallel = wish.parallel
    given.n_predict = wish.context_tokens
    given.n_gpu_layers = ALL_LAYERS if wish.gpu_layers < 0 else wish.gpu_layers
    # Metal cannot be hidden; it then computes nothing, so that it needs no buffers either.
    given.no_op_offload = given.no_kv_offload = wish.gpu_layers == 0
    given.cache_ram_mib = PROMPT_CACHE_MIB
    # Copies of a sliding window's or a recurrent state that no plan knows of: up to 32 for each user.
    given.n_ctx_checkpoints = 0
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{wish.kv_cache.upper()}")
    given.cache_type_k = given.cache_type_v = kind
    if wish.threads:
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = wish.threads
    given.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(file, scale) for scale, file in wish.adapter
    ]
    if wish.projector:
        given.mmproj.path = wish.projector
        given.mmproj_use_gpu = wish.gpu_layers != 0
        # As it was planned: what computing takes grows with the square of an image's tokens.
        given.image_max_tokens = min(MOST_IMAGE_TOKENS, wish.context_tokens // 2)
    if wish.draft:
        draft_for(xllamacpp, given.speculative, wish)
    if wish.role in ("embed", "rerank"):
        given.embedding = True
        # A text that is embedded must fit into one batch.
        given.n_batch = given.n_ubatch = wish.context_tokens
    if wish.role == "rerank":
        given.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    return given


def draft_for(xllamacpp: Any, given: Any, wish: argparse.Namespace) -> None:
    """Let a small model guess the next words, which the model checks: the same answers, sooner."""
    given.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    draft = given.draft
    draft.mparams.path = wish.draft
    draft.n_max = DRAFTED_TOKENS
    layers = 0 if wish.gpu_layers == 0 else wish.draft_gpu_layers
    draft.n_gpu_layers = ALL_LAYERS if layers < 0 else layers
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{wish.draft_kv_cache.upper()}")
    draft.cache_type_k = draft.cache_type_v = kind
    if wish.threads:
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = wish.threads


if __name__ == "__main__":
    main()
