"""The runtime `xllamacpp`: llama.cpp's server from ready-made wheels, under a portable Python.

For the platform of the building machine (Linux) everything comes from the building environment
itself, unchanged and without a network; for other platforms from wheels and a ready-made Python
that are pinned by digest (see `pinned.py`).
"""

from __future__ import annotations

import platform as machine
import shutil
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from bundler.builtin.runtimes import elf, licences
from bundler.builtin.runtimes.installed import copy_packages, installed_packages
from bundler.builtin.runtimes.launcher import version_of
from bundler.builtin.runtimes.licences import copy_common_texts, write_sources_note
from bundler.builtin.runtimes.packages import ACCELERATORS, COMPANIONS, PACKAGES
from bundler.builtin.runtimes.pinned import PYTHON_RELEASE, PYTHON_VERSION, locked_files
from bundler.builtin.runtimes.portable_python import (
    Interpreter,
    building_interpreter,
    compile_modules,
    make_portable_python,
)
from bundler.builtin.runtimes.standalone import interpreter_path, stage_standalone
from bundler.errors import LockError, RecipeError, StepFailed
from bundler.hardware import Accelerator, Platform
from bundler.hookspecs import Task
from bundler.lock import LockedFile, Resolution
from bundler.store import hash_file
from bundler.value import digest, pretty_json
from bundler.world import World

# `du -s runtime/linux-x86_64` of the embedded example; wheels and archives unpack to about three
# times their size. Both only forecast how large a bundle will be; tests hold the first to it.
INSTALLED_TREE_BYTES = 126_000_000
UNPACKED_FACTOR = 3
SERVER = Path(__file__).with_name("serve_xllamacpp.py")
DESCRIPTION = {
    "command": [
        "{python}", "{runtime}/serve_xllamacpp.py", "--model", "{model}", "--port", "{port}",
        "--context-tokens", "{context_tokens}", "--parallel", "{parallel}",
        "--kv-cache", "{kv_cache}", "--role", "{role}", "--gpu-layers", "{gpu_layers}",
        "--threads", "{threads}",
    ],
    "adapter": ["--adapter", "{scale}:{file}"],
    "projector": ["--projector", "{file}"],
    "draft": [
        "--draft", "{file}", "--draft-kv-cache", "{kv_cache}", "--draft-gpu-layers", "{gpu_layers}",
    ],
    "devices": ["{python}", "{runtime}/serve_xllamacpp.py", "--list-devices"],
    "environment": {},
    "health": "/health",
    "api_key_environment": "BUNDLER_MODEL_KEY",
}  # fmt: skip
"""What the station reads as `runtime/<platform>/xllamacpp.json`."""


def host_platform() -> str:
    """Return the building machine's platform as bundles name it; `linux-riscv64` and the like too."""
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, "unknown")
    processor = machine.machine().lower()
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(processor, processor)
    return f"{system}-{'arm64' if (system, processor) == ('macos', 'aarch64') else processor}"


class XllamacppRuntime:
    """Serves GGUF models by llama.cpp's own server, as a child of the station."""

    name = "xllamacpp"
    formats: frozenset[str] = frozenset({"gguf"})
    companions = COMPANIONS
    platforms: frozenset[Platform] = frozenset(get_args(Platform))
    accelerators: Mapping[Platform, frozenset[Accelerator]] = ACCELERATORS

    def tool(self) -> str:
        """Fingerprint of what shapes the copy; what is copied is the lock's revision."""
        own = {
            path.name: hash_file(path)
            for path in sorted(Path(__file__).parent.iterdir())
            if path.suffix in (".py", ".c", ".json")
        }
        return digest(
            {
                "code": own,
                "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
                "compiler": version_of("cc"),
                "strip": version_of("strip"),
                "zlib": zlib.ZLIB_RUNTIME_VERSION,
            }
        )

    def needs(self, platform: Platform, world: World) -> Resolution:
        """Say what the tree for `platform` is made of: this environment, or pinned files."""
        files: tuple[LockedFile, ...] = ()
        if copies_installed(platform, world):
            revision, staged = installed_revision(), INSTALLED_TREE_BYTES
        else:
            files = locked_files(platform, world)
            revision = f"{PYTHON_VERSION}+{PYTHON_RELEASE}"
            staged = UNPACKED_FACTOR * sum(file.size_bytes for file in files)
        return Resolution(
            source="pypi", reference=f"{self.name}/{platform}", revision=revision,
            files=files, licence="MIT", staged_bytes=staged,
        )  # fmt: skip

    def run(self, task: Task) -> Mapping[str, Any]:
        """Leave python/, site/, the server's script and description, and licence texts."""
        platform = task.parameters["platform"]
        if task.inputs:
            components, python = stage_standalone(platform, task.inputs, task.output)
        else:
            self._check_installed(platform, task.parameters["revision"])
            components = stage_installed(building_interpreter(), task.output)
            python = interpreter_path(platform)
        copy_common_texts(task.output / "licenses")
        write_sources_note(components, task.output / "licenses")
        (task.output / f"{self.name}.json").write_text(pretty_json(DESCRIPTION))
        shutil.copyfile(SERVER, task.output / SERVER.name)
        programs = executables(task.output)
        for path in programs:
            (task.output / path).chmod(0o755)
        return {
            "platform": platform,
            "python": python,
            "components": components,
            "executables": programs,
        }

    def _check_installed(self, platform: str, revision: str) -> None:
        """Refuse to copy an environment that is not the one of the lock."""
        where = f"runtime {self.name} for {platform}"
        if platform != host_platform():
            raise LockError(
                f"the lock was made on a {platform} machine, and its runtime can only be copied there",
                where=where,
                hint="build there, or lock here with BUNDLER_PORTABLE_PYTHON=standalone",
            )
        if revision != installed_revision():
            raise LockError(
                "the packages or the Python of this machine are not those of the lock",
                where=where,
                hint="run `bundler lock` to take the present ones",
            )


def copies_installed(platform: Platform, world: World) -> bool:
    """Say whether a platform's runtime is a copy of this environment."""
    wish = world.environment.get("BUNDLER_PORTABLE_PYTHON", "installed")
    if wish not in ("installed", "standalone"):
        raise RecipeError(
            f"{wish!r} is neither 'installed' nor 'standalone'", where="BUNDLER_PORTABLE_PYTHON"
        )
    return wish == "installed" and platform == host_platform() and sys.platform == "linux"


def installed_revision() -> str:
    """Return the digest of what is installed: interpreter, its libraries, packages, C library."""
    interpreter = building_interpreter()
    library = interpreter.libraries / str(sysconfig.get_config_var("INSTSONAME"))
    return digest(
        {
            "python": sys.version,
            "interpreter": hash_file(interpreter.executable),
            "library": hash_file(library) if library.is_file() else "",
            "c_library": "-".join(machine.libc_ver()),
            "packages": {
                package.name: [package.version, package.digest]
                for package in installed_packages(PACKAGES)
            },
        }
    )


def stage_installed(interpreter: Interpreter, folder: Path) -> list[licences.Component]:
    """Put a portable copy of this environment into `folder`; return what it consists of."""
    packages = installed_packages(PACKAGES)
    site, texts = folder / "site", folder / "licenses"
    copy_packages(packages, site)
    modules = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.py"))
    compile_modules(interpreter.executable, site, modules)
    for path in sorted(site.rglob("*.so*")):
        if elf.is_elf(path):
            elf.strip_symbols(path)
    copied = make_portable_python(interpreter, folder / "python", site=site)
    check_imports(folder / "python" / "bin" / "python3", site)
    shutil.copy(folder / "python" / "bin" / "python3", folder / "station")
    own = {path: source for path, source in copied.items() if "libpython" not in path}
    return [
        licences.python_component(interpreter, python_files(folder, own), texts),
        *licences.library_components(own, "python", texts),
        *licences.package_components(packages, "site", texts),
    ]


def check_imports(python: Path, site: Path) -> None:
    """Import every package with the copied Python, in an empty environment.

    Raises:
        StepFailed: something that worked in the building environment does not in the copy.
    """
    modules = sorted(
        path.name.partition(".")[0]
        for path in site.iterdir()
        if path.name.endswith((".py", ".so")) or (path / "__init__.py").exists()
    )
    script = "import sys, importlib; sys.path.insert(0, sys.argv[1])\n"
    script += "for name in sys.argv[2:]: importlib.import_module(name)"
    done = subprocess.run(
        [str(python), "-c", script, str(site), *modules],
        env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StepFailed(
            f"the copied Python cannot load its packages: {done.stderr.strip()[-600:]}",
            where="portable Python",
        )


def python_files(folder: Path, libraries: Mapping[str, Path]) -> list[str]:
    """Return the files of python/ that are Python's own, not a system library's."""
    every = (
        path.relative_to(folder).as_posix()
        for path in (folder / "python").rglob("*")
        if path.is_file()
    )
    return sorted(path for path in every if path.removeprefix("python/") not in libraries)


def executables(folder: Path) -> list[str]:
    """Return what must be executable on filesystems that know such a thing."""
    programs = [folder / "station", *(folder / "python" / "bin").glob("*")]
    programs += (folder / "python" / "libexec").glob("*")
    programs += (folder / "python" / "glibc").glob("ld-*")
    programs.append(folder / "site" / "par2" / "binaries" / "par2")
    return sorted(path.relative_to(folder).as_posix() for path in programs if path.is_file())
