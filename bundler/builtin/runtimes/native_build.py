"""Compiles llama.cpp's own `llama-server`, once: for any x86-64 processor, and for Vulkan cards.

The source is the sdist that the lock pins. What comes out depends on its digest, the flags, the
patch below and the compilers, and is kept in the store under the digest of these: a second build
takes no compiler's time. C++'s own library is linked statically, so that drivers of the machine,
which bring their own, never meet another one; the C library is not (see ADR 20).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bundler.builtin.runtimes import elf
from bundler.builtin.runtimes.launcher import version_of
from bundler.builtin.runtimes.unpack import Bounds, unpack
from bundler.errors import DamagedError, Problem, StepFailed
from bundler.store import Store, StoredResult
from bundler.value import digest

TARGETS = ("llama-server",)
"""What CMake is asked for; the modules of the processor and of Vulkan are drawn in by it."""
_LINK = "-static-libstdc++ -static-libgcc -Wl,--exclude-libs,libstdc++.a:libgcc.a:libgcc_eh.a"
FLAGS: Mapping[str, str] = {
    "CMAKE_BUILD_TYPE": "Release",
    # One module per family of processors, picked at start; no instruction beyond plain x86-64 else.
    "GGML_NATIVE": "OFF", "GGML_BACKEND_DL": "ON", "GGML_CPU_ALL_VARIANTS": "ON",
    "GGML_VULKAN": "ON", "GGML_OPENMP": "OFF", "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_TOOLS": "ON", "LLAMA_BUILD_SERVER": "ON",
    # No page of its own, nothing that fetches or starts anything.
    "LLAMA_BUILD_UI": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF", "LLAMA_OPENSSL": "OFF",
    "LLAMA_SUBPROCESS": "OFF",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON", "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "CMAKE_EXE_LINKER_FLAGS": _LINK, "CMAKE_SHARED_LINKER_FLAGS": _LINK,
    "CMAKE_MODULE_LINKER_FLAGS": _LINK,
}  # fmt: skip
"""How it is compiled."""
PROGRAMS = {
    "cmake": "cmake", "ninja": "ninja-build", "cc": "gcc", "c++": "g++", "strip": "binutils",
    "glslc": "glslc",
}  # fmt: skip
"""Programs that compiling takes, and the Debian packages they come with."""
HEADERS = {
    Path("/usr/include/vulkan/vulkan.hpp"): "libvulkan-dev",
    Path("/usr/include/spirv/unified1/spirv.hpp"): "spirv-headers",
}
"""Headers that Vulkan's module takes, and their Debian packages."""
# ggml-vulkan names types of VK_EXT_layer_settings, which headers before 1.3.272 (Debian 12) lack;
# it uses them for validation only, which nobody asks for here.
VULKAN_SOURCE = "ggml/src/ggml-vulkan/ggml-vulkan.cpp"
_BEFORE = "    std::vector<vk::LayerSettingEXT> settings = {\n"
_AFTER = (
    "    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, "
    "extensions, &layer_setting_info);\n"
)
_INSIDE = "llama.cpp/"
_BOUNDS = Bounds(total_bytes=1 << 30, files=20_000)
_STEP = re.compile(r"\[(\d+)/(\d+)\]")
_VERSION_NEEDED = re.compile(r"GLIBC_2\.(\d+)")
_LAST_LINES = 30

Progress = Callable[..., None]


def build_key(source_sha256: str) -> str:
    """Return the digest of everything that can change what comes out."""
    return digest(
        {
            "what": "llama-server", "source": source_sha256, "flags": dict(FLAGS),
            "patch": [_BEFORE, _AFTER], "programs": {p: version_of(p) for p in PROGRAMS},
        }
    )  # fmt: skip


def check_programs(
    which: Callable[[str], str | None] = shutil.which,
    exists: Callable[[Path], bool] = Path.exists,
) -> None:
    """Make sure that everything is here before minutes are spent.

    Raises:
        StepFailed: what is missing, all of it, with the Debian packages that bring it.
    """
    missing = [(name, package) for name, package in PROGRAMS.items() if which(name) is None]
    missing += [(str(path), package) for path, package in HEADERS.items() if not exists(path)]
    if missing:
        packages = " ".join(dict.fromkeys(package for _, package in missing))
        raise StepFailed(
            Problem("is needed to compile llama-server and is not here", name,
                    f"on Debian: apt-get install {packages}") for name, _ in missing
        )  # fmt: skip


def compiled(source: Path, source_sha256: str, store: Store, progress: Progress) -> StoredResult:
    """Return llama-server and its modules, compiled now or kept from an earlier time.

    Raises:
        StepFailed: a program is missing, or the compiler failed; its last lines are told.
        UnsafeInput: the archive holds what no honest one holds.
    """
    key = build_key(source_sha256)
    with store.locked(f"llama-server-{key[:16]}"):
        kept = store.result(key)
        if kept is not None:
            return kept
        check_programs()
        with store.scratch() as folder:
            compile_into(folder, source, progress)
            made = folder / "made"
            gather(folder / "build" / "bin", made)
            result = StoredResult(store.adopt_folder(made), {})
        store.keep_result(key, result)
        return result


def compile_into(
    folder: Path, source: Path, progress: Progress, targets: Sequence[str] = TARGETS
) -> None:
    """Unpack, patch, configure and compile below `folder`; programs are in its `build/bin` then."""
    unpack(source, folder / "source", name="source.tar.gz", select=inside, bounds=_BOUNDS)
    patch(folder / "source" / VULKAN_SOURCE)
    run_compiler(configure_command(folder), progress)
    run_compiler(["cmake", "--build", str(folder / "build"), "--target", *targets], progress)


def inside(name: str) -> str | None:
    """Return where a file of the sdist goes: only llama.cpp itself is unpacked."""
    _, found, rest = name.partition(f"/vendor/{_INSIDE}")
    return rest if found and rest else None


def patch(path: Path) -> None:
    """Let ggml-vulkan compile with headers that do not know VK_EXT_layer_settings.

    Raises:
        StepFailed: the file is not the one that the patch was made for.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(_BEFORE) != 1 or text.count(_AFTER) != 1:
        raise StepFailed(
            "is not what our patch for older Vulkan headers was made for", where=VULKAN_SOURCE,
            hint="take the version of llama-cpp-python that this version of bundler pins",
        )  # fmt: skip
    plain = _AFTER.replace(", &layer_setting_info", "")
    text = text.replace(_BEFORE, "#ifdef VK_EXT_layer_settings\n" + _BEFORE)
    text = text.replace(_AFTER, f"{_AFTER}#else\n{plain}#endif\n")
    path.write_text(text, encoding="utf-8")


def configure_command(folder: Path) -> list[str]:
    """Return CMake's command line for a source in `folder`; no path of it gets into the programs."""
    hide = f"-ffile-prefix-map={folder / 'source'}=llama.cpp"
    flags = {**FLAGS, "CMAKE_C_FLAGS": hide, "CMAKE_CXX_FLAGS": hide}
    given = [f"-D{name}={value}" for name, value in flags.items()]
    places = ["-S", str(folder / "source"), "-B", str(folder / "build"), "-G", "Ninja"]
    return ["cmake", *places, *given]


def run_compiler(command: Sequence[str], progress: Progress) -> None:
    """Run one program to its end, showing ninja's `[34/140]` as progress.

    Raises:
        StepFailed: it failed; its last lines say why.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if step := _STEP.match(line):
                progress(int(step[1]), int(step[2]), "steps")
            last.append(line.rstrip()[:300])
    if process.returncode:
        raise StepFailed(
            "llama-server could not be compiled:\n" + "\n".join(last), where=command[0],
            hint="the first error above says why; compilers, Vulkan headers and glslc must be those "
            "of one release of the system",
        )  # fmt: skip


# -- what is taken ---------------------------------------------------------------------------------


def gather(built: Path, folder: Path) -> None:
    """Copy the program and its libraries to `folder`, without symbols, links become plain files.

    Vulkan's module lies in a folder of its own: where only the processor is to be used it is never
    seen. Each library is there once, under the name by which it is asked for.

    Raises:
        StepFailed: a part is not there.
    """
    libraries = sorted(built.glob("lib*.so*"))
    taken = {"llama-server": built / "llama-server"}
    taken |= {path.name: path for path in libraries if is_module(path.name)}
    wanted = [built / "llama-server"]
    while wanted:
        for name in elf.needed_libraries(wanted.pop()):
            if (built / name).exists() and name not in taken:
                taken[name] = built / name
                wanted.append(built / name)
    missing = [n for n in ("llama-server", "libggml-vulkan.so", "libggml-cpu-x64.so")
               if n not in taken or not taken[n].is_file()]  # fmt: skip
    if missing:
        raise StepFailed(f"compiling did not make {', '.join(missing)}", where="llama-server")
    for name, path in sorted(taken.items()):
        place = folder / "vulkan" / name if "vulkan" in name else folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.resolve(), place)
        elf.strip_symbols(place)


def is_module(name: str) -> bool:
    """Say whether a library is one of ggml's modules, which are loaded by name and not asked for."""
    return re.fullmatch(r"libggml-(cpu-\w+|vulkan)\.so", name) is not None


def lay_out(result: StoredResult, store: Store, folder: Path) -> None:
    """Copy what was compiled from the store to `folder`.

    Raises:
        DamagedError: the store's copy is not what was compiled.
    """
    for name, (sha256, _) in result.files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.verified(sha256), place)
    if not (folder / "llama-server").is_file():
        raise DamagedError("has no llama-server", where="kept build of llama-server")


def c_library_floor(folder: Path) -> str:
    """Return the oldest GNU C library that everything in `folder` runs with, such as `2.34`.

    Read from the versions of symbols the files ask for, which ELF names as `GLIBC_2.n`.
    """
    found = [
        int(minor)
        for path in folder.rglob("*")
        if path.is_file()
        for minor in _VERSION_NEEDED.findall(path.read_bytes().decode("latin-1"))
    ]
    return f"2.{max(found, default=0)}"
