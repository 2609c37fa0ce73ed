"""Jobs for a child process: what llama.cpp itself says of types and of memory."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp import ggml, native
from bundler.builtin.llamacpp.schemes import SCHEMES
from tests import pretended_devices

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


def _open(arguments: dict[str, Any]) -> Any:
    """Open a model; with `devices`, on as many accelerators that are not there."""
    if arguments.get("devices"):
        pretended_devices.register(arguments["devices"])
    llama = native.llama()
    parameters = llama.llama_model_default_params()
    parameters.no_alloc = not arguments.get("allocate", False)
    parameters.load_mode = 0
    parameters.use_extra_bufts = arguments.get("repack", False)
    parameters.n_gpu_layers = arguments.get("gpu_layers", 0)
    model = llama.llama_model_load_from_file(arguments["path"].encode(), parameters)
    assert model, native.last_errors()
    return model


def _context(model: Any, cell: dict[str, Any]) -> Any:
    llama = native.llama()
    wanted = llama.llama_context_default_params()
    wanted.n_seq_max = cell.get("parallel", 1)
    wanted.n_ctx = cell["context_tokens"] * wanted.n_seq_max
    wanted.n_batch = cell.get("batch_tokens", 512)
    wanted.n_ubatch = cell.get("batch_tokens", 512)
    wanted.type_k = wanted.type_v = _KV_TYPES[cell.get("kv_cache", "f16")]
    wanted.flash_attn_type = 1 if cell.get("flash_attention", True) else 0
    wanted.embeddings = cell.get("embeddings", False)
    wanted.swa_full = False  # as llama.cpp's server has it
    if cell.get("output_rows"):
        wanted.n_outputs_max = cell["output_rows"]
    context = llama.llama_init_from_model(model, wanted)
    assert context, native.last_errors()
    return context


def breakdowns(arguments: dict[str, Any], report: Any) -> list[dict[str, list[int]]]:
    """Open a model without (or with) allocating it, and return its memory in each cell."""
    llama = native.llama()
    model = _open(arguments)
    answers = []
    for cell in arguments["cells"]:
        context = _context(model, cell)
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


class _Graph(ctypes.Structure):
    """`struct ggml_cgraph` of ggml-impl.h, as far as its tensors."""

    _fields_ = (
        ("size", ctypes.c_int), ("node_count", ctypes.c_int), ("leaf_count", ctypes.c_int),
        ("nodes", ctypes.POINTER(ctypes.c_void_p)), ("grads", ctypes.c_void_p),
        ("grad_accs", ctypes.c_void_p), ("leaves", ctypes.POINTER(ctypes.c_void_p)),
    )  # fmt: skip


def graphs(arguments: dict[str, Any], report: Any) -> list[dict[str, Any]]:
    """Return, for each cell, the very graph that llama.cpp sizes its compute buffer for.

    Each tensor is [op, type, ne, nb, sources, view_of, flags, held, name], tensors by number.
    """
    llama = native.llama()
    model = _open(arguments)
    reserve = native.symbol(
        "_Z19llama_graph_reserveP13llama_contextjjj", ctypes.POINTER(_Graph), ctypes.c_void_p,
        ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32,
    )  # fmt: skip
    answers = []
    for cell in arguments["cells"]:
        context = _context(model, cell)
        if arguments.get("adapter"):
            adapter = llama.llama_adapter_lora_init(model, arguments["adapter"].encode())
            assert adapter, native.last_errors()
            adapters, scales = (
                (ctypes.c_void_p * 1)(ctypes.cast(adapter, ctypes.c_void_p)),
                (ctypes.c_float * 1)(1.0),
            )
            use = native.symbol(
                "llama_set_adapters_lora", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p,
                ctypes.c_size_t, ctypes.c_void_p,
            )  # fmt: skip
            assert use(context, adapters, 1, scales) == 0
        tokens = min(llama.llama_n_ctx(context), llama.llama_n_ubatch(context))
        users = cell.get("parallel", 1)
        graph = reserve(context, tokens, users, tokens)[0]
        answers.append({"memory": _breakdown(context), **_tensors_of(graph)})
        llama.llama_free(context)
    llama.llama_model_free(model)
    return answers


def _tensors_of(graph: Any) -> dict[str, Any]:
    op_name = native.symbol("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    type_name = native.symbol("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
    ggml.check_layout()
    numbers: dict[int, int] = {}
    tensors: list[list[Any]] = []

    def add(address: int) -> int:
        if address not in numbers:
            tensor = ggml.tensor_at(address)
            numbers[address] = len(tensors)
            row: list[Any] = []
            tensors.append(row)
            sources = [add(source) for source in tensor.src if source]
            view_of = add(tensor.view_src) if tensor.view_src else -1
            row += [
                op_name(tensor.op).decode(), type_name(tensor.type).decode().upper(),
                list(tensor.ne), list(tensor.nb), sources, view_of, tensor.flags,
                bool(tensor.buffer or tensor.data), tensor.name.decode(),
            ]  # fmt: skip
        return numbers[address]

    nodes = [add(graph.nodes[index]) for index in range(graph.node_count)]
    leaves = [add(graph.leaves[index]) for index in range(graph.leaf_count)]
    return {"tensors": tensors, "nodes": nodes, "leaves": leaves}


def proof_cache(arguments: dict[str, Any], report: Any) -> int:
    """Return the cache of a context as proofs open it, for a model that is not allocated."""
    from bundler.builtin.llamacpp.session import open_context, open_model

    path = Path(arguments["path"])
    with (
        open_model(path, gpu=False, no_alloc=True, load_mode=0) as model,
        open_context(
            model, context_tokens=arguments["tokens"], micro_batch_tokens=512,
            flash_attention="on",
        ) as context,
    ):  # fmt: skip
        return sum(figures[1] for figures in _breakdown(context.pointer).values())


def device_peak(arguments: dict[str, Any], report: Any) -> int:
    """Load on the accelerator, fill every user's context, generate; return NVML's peak of it."""
    from bundler.builtin.llamacpp.nvidia import gpu_meter
    from bundler.builtin.llamacpp.session import open_context, open_model, require_full_offload

    cell = arguments["cell"]
    context_tokens, users = cell["context_tokens"], cell["parallel"]
    with (
        gpu_meter(wanted=True) as meter,
        open_model(Path(arguments["path"]), gpu=True, load_mode=0) as model,
        open_context(
            model, context_tokens=context_tokens * users, sequences=users,
            batch_tokens=cell["batch_tokens"], micro_batch_tokens=cell["batch_tokens"],
            kv_cache=cell["kv_cache"], flash_attention="on",
        ) as context,
    ):  # fmt: skip
        require_full_offload(model)
        for user in range(users):
            for first in range(0, context_tokens - 16, context.batch_tokens):
                size = min(context.batch_tokens, context_tokens - 16 - first)
                context.decode([1] * size, start=first, sequence=user)
                meter.sample()
            for position in range(context_tokens - 16, context_tokens):
                context.decode([1], start=position, sequence=user)
            meter.sample()
        assert meter.source, "NVML does not see this process"
        return int(meter.peak_bytes)
