"""The runtime `llama-server`: llama.cpp's own server, compiled here, for cards that speak Vulkan.

Its tree is that of the runtime `xllamacpp` (the portable Python and what the station imports) with
`native/` beside it, so that the two can stand in one recipe: what both bring has the same bytes.
See ADR 20.
"""

from __future__ import annotations

import ctypes.util
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundler.builtin.runtimes import elf
from bundler.builtin.runtimes.licences import library_components, write_sources_note
from bundler.builtin.runtimes.native_build import (
    build_key,
    c_library_floor,
    compiled,
    lay_out,
)
from bundler.builtin.runtimes.packages import CARD_ACCELERATORS, CARD_PLATFORMS, COMPANIONS
from bundler.builtin.runtimes.pinned import llama_source
from bundler.builtin.runtimes.xllamacpp import DESCRIPTION as XLLAMACPP
from bundler.builtin.runtimes.xllamacpp import XllamacppRuntime, host_platform
from bundler.errors import LockError, StepFailed
from bundler.hardware import Accelerator, Platform
from bundler.hookspecs import Task
from bundler.lock import Resolution
from bundler.value import digest, pretty_json
from bundler.world import World

SERVER = Path(__file__).with_name("serve_llama_server.py")
LICENCE = Path(__file__).with_name("llama_cpp_licence.txt")
NATIVE_TREE_BYTES = 70_000_000
"""What `native/` takes, for the forecast of a bundle's size: 29 MB of Vulkan's module (measured), 23
MB of the processor's modules (measured), server and libraries."""
DESCRIPTION = {
    **XLLAMACPP,
    "command": [word.replace("serve_xllamacpp", "serve_llama_server")
                for word in XLLAMACPP["command"]],
    "devices": ["{python}", "{runtime}/serve_llama_server.py", "--list-devices"],
}  # fmt: skip
"""What the station reads as `runtime/<platform>/llama-server.json`: the options are the same."""


class LlamaServerRuntime:
    """Serves GGUF models by llama.cpp's server, on a card by Vulkan or on any x86-64 processor."""

    name = "llama-server"
    formats: frozenset[str] = frozenset({"gguf"})
    companions = COMPANIONS
    platforms = CARD_PLATFORMS
    accelerators: Mapping[Platform, frozenset[Accelerator]] = CARD_ACCELERATORS

    def __init__(self) -> None:
        self._under = XllamacppRuntime()

    def tool(self) -> str:
        """Fingerprint of what compiles and of what shapes the copy."""
        return digest({"under": self._under.tool(), "build": build_key("")})

    def needs(self, platform: Platform, world: World) -> Resolution:
        """Say what the tree is made of: what `xllamacpp`'s is, and llama.cpp's source.

        Raises:
            LockError: the platform is not one that it can be compiled for here.
        """
        self._check_platform(platform)
        under, source = self._under.needs(platform, world), llama_source()
        return under.model_copy(
            update={
                "reference": f"{self.name}/{platform}",
                "files": (*under.files, source),
                "staged_bytes": (under.staged_bytes or 0) + NATIVE_TREE_BYTES,
            }
        )

    def run(self, task: Task) -> Mapping[str, Any]:
        """Leave the tree of `xllamacpp`, native/, the script that starts it and its description."""
        platform = task.parameters["platform"]
        self._check_platform(platform)
        source = llama_source()
        inputs = {name: path for name, path in task.inputs.items() if name != source.path}
        if len(inputs) == len(task.inputs):
            raise LockError("does not name llama.cpp's source of this version of bundler",
                            where=f"runtime {self.name}",
                            hint="make the lock anew: bundler lock")  # fmt: skip
        facts = self._under.run(replace(task, inputs=inputs))
        native = task.output / "native"
        made = compiled(task.inputs[source.path], source.sha256, task.world.store, task.progress)
        lay_out(made, task.world.store, native)
        loader = vulkan_loader()
        (native / "loader").mkdir()
        shutil.copyfile(loader.resolve(), native / "loader" / "libvulkan.so.1")
        floor = c_library_floor(native)
        (task.output / f"{self.name}.json").write_text(pretty_json(DESCRIPTION))
        shutil.copyfile(SERVER, task.output / SERVER.name)
        components = [
            own_component(task.output, source.path),
            *library_components({"loader/libvulkan.so.1": loader}, "native",
                                task.output / "licenses"),
        ]  # fmt: skip
        write_own_note(components, task.output / "licenses")
        (native / "llama-server").chmod(0o755)
        return {
            **facts,
            "components": [*facts["components"], *components],
            "executables": sorted([*facts["executables"], "native/llama-server"]),
            "c_library_floor": floor,
        }

    def _check_platform(self, platform: str) -> None:
        """Refuse what cannot be compiled here: there is no cross compiler."""
        if platform not in CARD_PLATFORMS or platform != host_platform():
            raise LockError(
                f"can be put together for linux-x86_64 only, on such a machine (this is "
                f"{host_platform()}), and not for {platform}",
                where=f"runtime {self.name}",
                hint="leave it out of `runtime.use`, or make a bundle of its own for linux-x86_64",
            )


def vulkan_loader() -> Path:
    """Return Vulkan's loader on this machine: taken along for machines that have a driver only.

    Raises:
        StepFailed: it is not here.
    """
    server = ctypes.util.find_library("vulkan")
    found = server and next(
        (p for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
         if (p := Path(folder, server)).exists()), None)  # fmt: skip
    if not found or not elf.is_elf(found):
        raise StepFailed("Vulkan's loader is not on this machine", where="libvulkan.so.1",
                         hint="on Debian: apt-get install libvulkan1")  # fmt: skip
    return found


def own_component(folder: Path, archive: str) -> Mapping[str, Any]:
    """Return llama.cpp as a component: everything in native/ but Vulkan's loader."""
    version = re.sub(r".*-(\d[^-]*)\.tar\.gz", r"\1", archive)
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in (folder / "native").rglob("*")
        if path.is_file() and "loader" not in path.parts
    )
    text = folder / "licenses" / "llama.cpp" / "LICENSE"
    text.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(LICENCE, text)
    return {
        "name": "llama.cpp", "version": f"llama-cpp-python-{version}", "licence": "MIT",
        "files": files, "licence_files": ["llama.cpp/LICENSE"],
    }  # fmt: skip


def write_own_note(components: list[Mapping[str, Any]], folder: Path) -> None:
    """Write where the sources are, in a file of its own: the other runtime has one too."""
    write_sources_note(components, folder / "llama-server")
