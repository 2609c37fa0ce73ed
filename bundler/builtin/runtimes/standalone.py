"""A runtime tree from pinned parts: a ready-made Python and wheels, for any platform.

python-build-standalone's archives hold one folder `python/`; what nobody at the far end uses (Tk,
pip, headers, tests) is dropped. Nothing of another platform can be run here, so nothing is
stripped, and the Python keeps its standard library as plain files.

The Linux wheel of xllamacpp needs libstdc++, libgomp and libgcc_s. In a copy of this machine's
Python they come along; here they are the far machine's own (Debian: libstdc++6, libgomp1). Without
them search and reader work and the model does not, which the station says.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
from collections.abc import Callable, Mapping
from email import message_from_bytes
from pathlib import Path
from typing import Any

from bundler.builtin.runtimes import elf
from bundler.builtin.runtimes.installed import is_kept, licence_of
from bundler.builtin.runtimes.licences import LICENCE_FILE, Component
from bundler.builtin.runtimes.pinned import PYTHON_VERSION, pinned_wheels, python_archive
from bundler.builtin.runtimes.portable_python import compile_modules
from bundler.builtin.runtimes.unpack import unpack
from bundler.errors import UnsafeInput
from bundler.hardware import Platform

_DROPPED_FOLDERS = frozenset(
    {
        "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "venv", "lib2to3",
        "distutils", "pydoc_data", "site-packages", "__pycache__", "include", "share", "libs",
        "tcl", "Scripts", "pkgconfig", "curses", "dbm",
    }
)  # fmt: skip
_DROPPED = (
    "bin/2to3*", "bin/idle*", "bin/pip*", "bin/pydoc*", "bin/python*-config", "bin/python",
    "lib/tcl*/*", "lib/tk*/*", "lib/itcl*/*", "lib/thread*/*", "lib/libtcl*",
    "lib/libtk*", "lib/*/config-*", "*/_tkinter*", "DLLs/tcl*", "DLLs/tk*", "DLLs/_test*",
    "DLLs/*.lib", "DLLs/zlib*.dll.a", "*.a", "*.pdb", "*/_test*.so", "*/turtle.py", "*.pyc",
)  # fmt: skip
_BESIDE_PYTHON = frozenset({"msvcp140.dll", "vcomp140.dll"})


def stage_standalone(
    platform: Platform, inputs: Mapping[str, Path], folder: Path
) -> tuple[list[Component], str]:
    """Put a runtime's Python and packages into `folder`.

    Args:
        platform: the far machine's.
        inputs: file name → verified file, of the archive and of every wheel.
        folder: gets python/, site/ and licenses/.

    Returns:
        What it consists of, and the path of the interpreter.
    """
    texts = folder / "licenses"
    components = [_unpack_python(inputs[python_archive(platform)], platform, folder, texts)]
    licences = {wheel.file: wheel.licence for wheel in pinned_wheels(platform)}
    for name in sorted(name for name in inputs if name.endswith(".whl")):
        components.append(_unpack_wheel(inputs[name], name, folder, texts, licences.get(name, "")))
    # Compiled modules are the same for all machines, but not for all versions of Python.
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON_VERSION.rpartition(".")[0]:
        for root in (folder / "site", _library(folder / "python", platform)):
            modules = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
            compile_modules(Path(sys.executable), root, modules)
    return components, interpreter_path(platform)


def interpreter_path(platform: Platform) -> str:
    """Return where the interpreter lies in a runtime's tree."""
    windows = platform.startswith("windows")
    return "python/python.exe" if windows else "python/bin/python3"


def _library(python: Path, platform: Platform) -> Path:
    """Return the folder of the standard library."""
    if platform.startswith("windows"):
        return python / "Lib"
    return python / "lib" / f"python{PYTHON_VERSION.rpartition('.')[0]}"


def _unpack_python(archive: Path, platform: Platform, folder: Path, texts: Path) -> Component:
    files = unpack(archive, folder, name=python_archive(platform), select=_select_python)
    program = folder / interpreter_path(platform)
    if program.relative_to(folder).as_posix() not in files:
        raise UnsafeInput(f"holds no {interpreter_path(platform)}", where=python_archive(platform))
    # The Linux programs have their libpython linked in; the library is there for embedding.
    if elf.is_elf(program):
        wanted = set(elf.needed_libraries(program))
        for library in (folder / "python" / "lib").glob("libpython*.so*"):
            if library.name not in wanted:
                library.unlink()
    # bin/python3 was a link to it; a stick has no links, and one copy is enough.
    (folder / "python" / "bin" / f"python{PYTHON_VERSION.rpartition('.')[0]}").unlink(
        missing_ok=True
    )
    files = [path for path in files if (folder / path).exists()]
    return {
        "name": "python", "version": PYTHON_VERSION, "licence": "Python-2.0", "files": files,
        "licence_files": _copy_licences(files, folder, texts / "python", "LICENSE.txt".__eq__),
    }  # fmt: skip


def _select_python(name: str) -> str | None:
    """Say where a member of the archive goes; None for what nobody needs."""
    top, _, path = name.removeprefix("./").partition("/")
    if top != "python" or not path:
        return None
    if not _DROPPED_FOLDERS.isdisjoint(path.split("/")[:-1]):
        return None
    if any(fnmatch.fnmatchcase(path, drop) for drop in _DROPPED):
        return None
    return f"python/{path}"


def _unpack_wheel(
    wheel: Path, name: str, folder: Path, texts: Path, licence: str
) -> dict[str, Any]:
    files = unpack(wheel, folder, name=name, select=_select_wheel)
    (about,) = (path for path in files if path.endswith(".dist-info/METADATA"))
    metadata: Any = message_from_bytes((folder / about).read_bytes())
    package = metadata["Name"].lower().replace("_", "-").replace(".", "-")
    own = [path for path in files if ".dist-info/" in path]
    return {
        "name": package, "version": metadata["Version"], "licence": licence or licence_of(metadata),
        "files": files,
        "licence_files": _copy_licences(
            own, folder, texts / package, lambda file: bool(LICENCE_FILE.search(file))
        ),
    }  # fmt: skip


def _select_wheel(name: str) -> str | None:
    """Say where a file of a wheel goes (PEP 427: `.data` folders are spread out).

    Of what goes beside the interpreter only the libraries are wanted that packages load; a
    Python already has its own.
    """
    top, _, rest = name.partition("/")
    if top.endswith(".data"):
        kind, _, path = rest.partition("/")
        if kind == "data":
            return f"python/{path}" if path.lower() in _BESIDE_PYTHON else None
        return f"site/{path}" if kind in ("purelib", "platlib") and is_kept(path) else None
    return f"site/{name}" if is_kept(name) else None


def _copy_licences(
    paths: list[str], root: Path, target: Path, is_licence: Callable[[str], bool]
) -> list[str]:
    """Copy the licence texts among `paths` to `target`; return where, from the folder above."""
    copied = []
    for path in paths:
        name = path.rpartition("/")[2]
        if is_licence(name) and not (target / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, target / name)
            copied.append(f"{target.name}/{name}")
    return copied
