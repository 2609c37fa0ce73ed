"""llama.cpp's library in this process: loading it, its log, its devices, and who it is.

The only module that imports llama_cpp, and only the low-level binding: the high-level class hides
errors (its level numbers are older than the library's) and has no door for `cb_eval`. Runs only in
a child process (`child`); importing this module does not load the library, `llama()` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bundler.errors import StepFailed

INFO, WARN, ERROR, CONTINUED = 2, 3, 4, 5
"""Log levels of ggml.h (DEBUG is 1); CONTINUED adds to the line before, whatever its level."""
_KEPT_PIECES = 20_000

DeviceKind = Literal["cpu", "cuda", "vulkan", "metal", "rocm", "other"]
# Names of ggml's backend registries → our words. ggml-metal calls itself MTL since 2026.
_KINDS: dict[str, DeviceKind] = {
    "cuda": "cuda", "rocm": "rocm", "hip": "rocm", "vulkan": "vulkan", "metal": "metal",
    "mtl": "metal", "cpu": "cpu",
}  # fmt: skip
_MODULES = {"cuda": "CUDA", "hip": "ROCm", "vulkan": "Vulkan"}
"""Modules of accelerators by file name, with the name of each in ggml's registry."""
_LIBRARY_SUFFIXES = (".so", ".dylib", ".dll")
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: CPU 0, GPU 1, IGPU 2, ACCEL 3


class NativeDevice(NamedTuple):
    """One device that a backend of this build sees."""

    number: int
    kind: DeviceKind
    name: str
    """The backend's name of it: `CUDA0`, `Vulkan0`, `CPU`."""
    description: str
    is_gpu: bool
    free_bytes: int
    total_bytes: int


class _LogKeeper:
    """Keeps what the library says, echoes it to stderr, and lets a job listen."""

    def __init__(self) -> None:
        self.pieces: deque[tuple[int, str]] = deque(maxlen=_KEPT_PIECES)
        self.listener: Callable[[str], None] | None = None
        self.failure: BaseException | None = None

    def __call__(self, level: int, text: bytes, _data: Any) -> None:
        # An exception would be swallowed by ctypes: keep it, `llama_call` raises it.
        try:
            said = text.decode("utf-8", "replace")
            self.pieces.append((level, said))
            if level != 1:
                sys.stderr.write(said)
            if self.listener is not None:
                self.listener(said)
        except BaseException as error:  # noqa: BLE001
            self.failure = self.failure or error


_log = _LogKeeper()
_kept: list[Any] = []


@functools.cache
def llama() -> Any:
    """Load llama.cpp with its backends and our log, once; return the low-level binding.

    Raises:
        StepFailed: llama-cpp-python is not installed or cannot be loaded.
    """
    try:
        from llama_cpp import llama_cpp as library
    except (ImportError, OSError, RuntimeError) as error:
        raise StepFailed(
            f"llama-cpp-python cannot be loaded: {error}",
            hint="install it (pip install llama-cpp-python), or set LLAMA_CPP_LIB_PATH to the "
            "folder of a llama.cpp build that fits this machine",
        ) from error
    callback = library.llama_log_callback(_log)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    _kept.append(callback)  # must outlive every call into the library
    _load_backends(library)
    library.llama_backend_init()
    return library


def _folder(library: Any) -> Path:
    return Path(library._base_path)


def _load_backends(library: Any) -> None:
    """Load backends that are files of their own (GGML_BACKEND_DL builds load none by themselves)."""
    if _symbol_of(library, "ggml_backend_dev_count", ctypes.c_size_t)() == 0:
        load = _symbol_of(library, "ggml_backend_load_all_from_path", None, ctypes.c_char_p)
        load(os.fsencode(_folder(library)))
    if _symbol_of(library, "ggml_backend_dev_count", ctypes.c_size_t)() == 0:
        raise StepFailed(
            "llama.cpp was loaded but has no backend, not even for the CPU",
            where=str(_folder(library)),
            hint="reinstall llama-cpp-python, or set LLAMA_CPP_LIB_PATH to a folder that also "
            "holds libggml-cpu",
        )
    _load_modules_beside(library)


def _load_modules_beside(library: Any) -> None:
    """Load accelerators' modules that lie beside a build which knows the processor alone.

    A build that knows an accelerator has it in its registry by now. What cannot be loaded (no
    driver, no loader) is said in the log, and is missing from `devices`.
    """
    known = _symbol_of(library, "ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
    load = _symbol_of(library, "ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
    for name, registry in _MODULES.items():
        for path in sorted(_folder(library).glob(f"*ggml-{name}.*")):
            if path.suffix in _LIBRARY_SUFFIXES and not known(registry.encode()):
                load(os.fsencode(path))


def symbol(name: str, result: Any, *arguments: Any) -> Any:
    """Return a C function of libllama or of the ggml libraries that it loaded."""
    return _symbol_of(llama(), name, result, *arguments)


def _symbol_of(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = None
    for handle in _handles(library):
        with contextlib.suppress(AttributeError):
            function = handle[name]
            break
    if function is None:
        raise StepFailed(
            f"this llama.cpp has no function {name}",
            where=str(_folder(library)),
            hint="use llama-cpp-python 0.3.36 or a version known to work with this bundler",
        )
    function.restype, function.argtypes = result, list(arguments)
    return function


def _handles(library: Any) -> list[Any]:
    """Return handles to look symbols up in.

    dlsym on libllama's handle also searches the libraries it depends on. Opening libggml by file
    name instead would load a second copy with an empty registry where a wheel has turned the
    symbolic links into files. Windows does not search dependencies; there the names are unique.
    """
    handles = [library._lib]
    if sys.platform == "win32":
        handles += [ctypes.CDLL(str(p)) for p in sorted(_folder(library).glob("*ggml*.dll"))]
    return handles


def has_symbol(name: str) -> bool:
    """Tell whether the loaded libraries export `name`."""
    for handle in _handles(llama()):
        with contextlib.suppress(AttributeError):
            handle[name]
            return True
    return False


# -- the log ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(listener: Callable[[str], None] | None = None) -> Iterator[Callable[[], str]]:
    """Collect what the library says inside the block; `listener` sees every piece at once.

    Gives a function that returns the text so far. An exception of the listener is raised at the
    end of the block, since ctypes cannot carry it through C.
    """
    _log.pieces.clear()
    _log.listener, _log.failure = listener, None
    try:
        yield lambda: "".join(text for _, text in _log.pieces)
    finally:
        _log.listener = None
    if _log.failure is not None:
        raise _log.failure


def last_errors() -> str:
    """Return what the library last said at level ERROR (or, if nothing, its last warnings)."""
    for wanted in (ERROR, WARN):
        said = [" ".join(text.split()) for level, text in _log.pieces if level == wanted]
        said = [text for text in said if text.strip("= ")]
        if said:
            return "; ".join(said[-4:])
    return "it gave no reason"


# -- devices and identity --------------------------------------------------------------------------


def devices() -> list[NativeDevice]:
    """List what this build's backends see on this machine, in their own order."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    count = symbol("ggml_backend_dev_count", ctypes.c_size_t)()
    get = symbol("ggml_backend_dev_get", pointer, ctypes.c_size_t)
    name = symbol("ggml_backend_dev_name", text, pointer)
    description = symbol("ggml_backend_dev_description", text, pointer)
    kind = symbol("ggml_backend_dev_type", ctypes.c_int, pointer)
    registry = symbol("ggml_backend_dev_backend_reg", pointer, pointer)
    registry_name = symbol("ggml_backend_reg_name", text, pointer)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = symbol("ggml_backend_dev_memory", None, pointer, size, size)
    found = []
    for index in range(count):
        device = get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        backend = registry_name(registry(device)).decode("utf-8", "replace")
        is_gpu = kind(device) in _GPU_TYPES
        found.append(
            NativeDevice(
                index,
                _KINDS.get(backend.lower(), "other") if is_gpu or kind(device) == 0 else "other",
                name(device).decode("utf-8", "replace"),
                description(device).decode("utf-8", "replace").strip(),
                is_gpu,
                free.value,
                total.value,
            )
        )
    return found


def best_devices() -> list[NativeDevice]:
    """Return the accelerators llama.cpp would use, or the CPU when there is none.

    Discrete ones win over integrated ones in llama.cpp itself; CUDA, Metal, ROCm, Vulkan in order.
    """
    found = devices()
    accelerators = [device for device in found if device.is_gpu]
    order = ("cuda", "metal", "rocm", "vulkan", "other")
    if accelerators:
        best = min((device.kind for device in accelerators), key=order.index)
        return [device for device in accelerators if device.kind == best]
    return [device for device in found if device.kind == "cpu"][:1]


def processor() -> list[NativeDevice]:
    """Return the CPU, for what runs there although there is an accelerator."""
    return [device for device in devices() if device.kind == "cpu"][:1]


def build() -> str:
    """Return the version of the binding and llama.cpp's own list of what it was built with."""
    system = llama().llama_print_system_info().decode("utf-8", "replace")
    version = importlib.metadata.version("llama-cpp-python")
    return f"llama-cpp-python {version} | {' '.join(system.split())}"


def fingerprint() -> str:
    """Return a digest-backed identity: version, library files, instruction set, device.

    The device's name is part of it, be it a card or the processor: what is measured on one (speed,
    memory) says nothing of another, even where the same libraries run on both.
    """
    hashed = hashlib.sha256()
    for path in sorted(_folder(llama()).iterdir()):
        if not path.is_file() or path.is_symlink():
            continue
        if any(word in path.name for word in ("ggml", "llama")):
            hashed.update(path.name.encode() + b"\0")
            with path.open("rb") as stream:
                hashed.update(hashlib.file_digest(stream, "sha256").digest())
    names = sorted(f"{device.kind}:{device.description}" for device in best_devices())
    return f"{build()} | {' + '.join(names)} | {hashed.hexdigest()[:16]}"


# -- jobs ------------------------------------------------------------------------------------------


def devices_job(arguments: Any, report: Any) -> Any:
    """Child job: the devices and the build."""
    return {"devices": [device._asdict() for device in devices()], "build": build()}


def fingerprint_job(arguments: Any, report: Any) -> str:
    """Child job: the fingerprint."""
    return fingerprint()
