"""Jobs for a child process: what llama.cpp itself says of types and of memory."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.schemes import SCHEMES

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), size = +[\d.]+ MiB"
    r"(?: -> +[\d.]+ MiB \((\S+)\))?"
)
_KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}


def dry_run(arguments: dict[str, Any], report: Any) -> dict[str, Any]:
    """Return the type of every tensor under each scheme, as llama.cpp's dry run logs it."""
    llama = native.llama()
    answers: dict[str, Any] = {}
    for scheme in arguments["schemes"]:
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = SCHEMES[scheme].number
        parameters.dry_run = True
        if arguments["imatrix"]:
            _give_imatrix(parameters)
        with native.listening() as said:
            code = llama.llama_model_quantize(
                arguments["path"].encode(), b"not written", ctypes.byref(parameters)
            )
            text = said()
        assert code == 0, text[-2000:]
        found = {m[1]: (m[3] or m[2]).upper() for m in _LINE.finditer(text)}
        fallback = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", text)
        answers[scheme] = {
            "types": found,
            "fallbacks": int(fallback[1]) if fallback else 0,
            "needs_imatrix": "will require an imatrix" in text,
        }
    return answers


def _give_imatrix(parameters: Any) -> None:
    """Hand over an importance matrix with one entry for a tensor that is not there."""
    values = (ctypes.c_float * 1)(1.0)
    entry_type = type(parameters.imatrix)._type_
    entries = (entry_type * 2)()
    entries[0].name = b"none"
    entries[0].data = ctypes.cast(values, type(entries[0].data))
    entries[0].size = 1
    parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    parameters.bundler_keep = (values, entries)


class _Map(ctypes.Structure):
    """A libstdc++ `std::map`, as far as walking it needs."""

    _fields_ = (
        ("compare", ctypes.c_size_t), ("color", ctypes.c_size_t), ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p), ("right", ctypes.c_void_p), ("count", ctypes.c_size_t),
    )  # fmt: skip


class _Node(ctypes.Structure):
    """A node of `std::map<buffer type, {model, context, compute}>`."""

    _fields_ = (
        ("color", ctypes.c_size_t), ("parent", ctypes.c_void_p), ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p), ("buffer", ctypes.c_void_p), ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t), ("compute", ctypes.c_size_t),
    )  # fmt: skip


def _breakdown(context: Any) -> dict[str, list[int]]:
    """Return bytes of weights, KV cache and compute buffers by buffer type."""
    ask = native.symbol("_Z26llama_get_memory_breakdownPK13llama_context", _Map, ctypes.c_void_p)
    name = native.symbol("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    found = ask(context)
    answer: dict[str, list[int]] = {}

    def walk(address: int | None) -> None:
        if address:
            node = _Node.from_address(address)
            walk(node.left)
            answer[name(node.buffer).decode()] = [node.model, node.context, node.compute]
            walk(node.right)

    walk(found.parent)
    assert len(answer) == found.count
    return answer


def breakdowns(arguments: dict[str, Any], report: Any) -> list[dict[str, list[int]]]:
    """Open a model without (or with) allocating it, and return its memory in each cell."""
    llama = native.llama()
    parameters = llama.llama_model_default_params()
    parameters.no_alloc = not arguments.get("allocate", False)
    parameters.load_mode = 0
    parameters.use_extra_bufts = arguments.get("repack", False)
    model = llama.llama_model_load_from_file(arguments["path"].encode(), parameters)
    assert model, native.last_errors()
    answers = []
    for cell in arguments["cells"]:
        wanted = llama.llama_context_default_params()
        wanted.n_seq_max = cell.get("parallel", 1)
        wanted.n_ctx = cell["context_tokens"] * wanted.n_seq_max
        wanted.n_batch = cell.get("batch_tokens", 512)
        wanted.n_ubatch = cell.get("batch_tokens", 512)
        wanted.type_k = wanted.type_v = _KV_TYPES[cell.get("kv_cache", "f16")]
        wanted.flash_attn_type = 1 if cell.get("flash_attention", True) else 0
        wanted.embeddings = cell.get("embeddings", False)
        wanted.swa_full = False  # as llama.cpp's server has it
        context = llama.llama_init_from_model(model, wanted)
        assert context, native.last_errors()
        answers.append(_breakdown(context))
        llama.llama_free(context)
    llama.llama_model_free(model)
    return answers


def quantize(arguments: dict[str, Any], report: Any) -> int:
    """Really quantize a file with one of llama.cpp's schemes."""
    llama = native.llama()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = SCHEMES[arguments["scheme"]].number
    parameters.nthread = 1
    source, target = arguments["source"].encode(), arguments["target"].encode()
    code = llama.llama_model_quantize(source, target, ctypes.byref(parameters))
    assert code == 0, native.last_errors()
    return int(code)
