"""A Python that runs anywhere: a relocated copy of the interpreter this program runs on.

::

    python/bin/python3        the launcher (static; see launcher.c)
    python/libexec/python3.11 the interpreter
    python/glibc/             the building machine's loader and C library
    python/lib/               shared libraries
    python/lib/python3.11/    the modules in C, and one file that marks the place
    python/lib/python311.zip  the standard library, with compiled modules

The standard library is one file because a stick's filesystem gives every file a cluster of up to
128 KiB: a thousand small modules would take 150 MB. Everything is a regular file; the same
interpreter gives the same bytes.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from bundler.builtin.runtimes import elf
from bundler.builtin.runtimes.launcher import compile_launcher
from bundler.errors import StepFailed

_DROPPED_FOLDERS = frozenset(
    {
        "__pycache__", "test", "tests", "idle_test", "idlelib", "tkinter", "turtledemo",
        "ensurepip", "venv", "lib2to3", "distutils", "pydoc_data", "curses", "dbm",
        "site-packages", "dist-packages", "lib-dynload",
    }
)  # fmt: skip
_DROPPED_FILES = (
    "*.pyc",
    "*.a",
    "*.o",
    "turtle.py",
    "crypt.py",
    "nturl2path.py",
    "sitecustomize.py",
)
# Modules nobody at the far end uses, which would draw in readline, ncurses, Tk, Berkeley DB, NIS…
_DROPPED_MODULES = frozenset(
    {
        "_curses", "_curses_panel", "_crypt", "_dbm", "_gdbm", "_tkinter", "_xxinterpchannels",
        "_xxsubinterpreters", "_xxtestfuzz", "audioop", "nis", "ossaudiodev", "readline", "spwd",
        "xxlimited", "xxlimited_35",
    }
)  # fmt: skip
_COMPILER = Path(__file__).with_name("compile_modules.py")
# Loaded by name at run time, or needed by wheels: `ldd` on the interpreter does not show them.
_GLIBC_EXTRAS = (
    "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2",
    "libnss_dns.so.2", "libnss_files.so.2", "libanl.so.1", "libmvec.so.1",
)  # fmt: skip


@dataclass(frozen=True)
class Interpreter:
    """An installed CPython, by where its parts are."""

    executable: Path
    version: str
    short: str
    """`3.11`."""
    stdlib: Path
    extensions: Path
    libraries: Path
    """Folder of its libpython; other libraries are looked for there first."""

    @property
    def program(self) -> str:
        return f"python{self.short}"


def building_interpreter() -> Interpreter:
    """Return the interpreter that runs this program, without its virtual environment."""
    base = {"installed_base": sys.base_prefix, "base": sys.base_prefix}
    base |= {"installed_platbase": sys.base_exec_prefix, "platbase": sys.base_exec_prefix}
    return Interpreter(
        executable=Path(getattr(sys, "_base_executable", sys.executable)).resolve(),
        version=sys.version.partition(" ")[0],
        short=f"{sys.version_info[0]}.{sys.version_info[1]}",
        stdlib=Path(sysconfig.get_path("stdlib", vars=base)),
        extensions=Path(sysconfig.get_config_var("DESTSHARED")),
        libraries=Path(sysconfig.get_config_var("LIBDIR")),
    )


def make_portable_python(
    interpreter: Interpreter, folder: Path, *, site: Path | None = None
) -> dict[str, Path]:
    """Leave a copy of `interpreter` in `folder`, which must not exist.

    `site` holds packages it must be able to load: the libraries their modules in C need are
    copied too.

    Returns:
        The path inside `folder` of every copied library → where it was copied from.

    Raises:
        StepFailed: a library is missing, or there is no C compiler or `strip`.
    """
    places = {name: folder / name for name in ("bin", "libexec", "glibc", "lib")}
    dynload = places["lib"] / interpreter.program / "lib-dynload"
    for place in (*places.values(), dynload):
        place.mkdir(parents=True)
    program = places["libexec"] / interpreter.program
    _copy(interpreter.executable, program)
    modules = _extension_modules(interpreter)
    for module in modules:
        _copy(module, dynload / module.name)
    copied = _copy_libraries(interpreter, modules, site, folder)
    # The C library comes as its distribution made it: stripped, with no search paths.
    for file in (program, *dynload.iterdir(), *places["lib"].glob("*.so*")):
        elf.forget_absolute_search_paths(file)
        elf.strip_symbols(file)
    _write_standard_library(interpreter, folder)
    loader = next(path.name for path in places["glibc"].iterdir() if path.name.startswith("ld-"))
    _check_loader(places["glibc"] / loader)
    compile_launcher(places["bin"] / "python3", loader=loader, program=interpreter.program)
    return copied


def _extension_modules(interpreter: Interpreter) -> list[Path]:
    """Return the interpreter's modules in C that are kept, sorted."""
    return sorted(
        path
        for path in interpreter.extensions.glob("*.so")
        if (name := path.name.partition(".")[0]) not in _DROPPED_MODULES
        and not name.startswith(("_test", "_ctypes_test"))
    )


def _copy_libraries(
    interpreter: Interpreter, modules: list[Path], site: Path | None, folder: Path
) -> dict[str, Path]:
    """Copy all libraries that are needed, the C library's set apart from the others."""
    packaged = (
        [] if site is None else sorted(path for path in site.rglob("*.so*") if elf.is_elf(path))
    )
    files = [interpreter.executable, *modules, *packaged]
    needed = dict(elf.libraries_of(files, interpreter.libraries))
    if "libc.so.6" not in needed:
        raise StepFailed(
            f"{interpreter.executable.name} does not use the GNU C library, so it cannot be copied",
            where="portable Python",
            hint="set BUNDLER_PORTABLE_PYTHON=standalone to ship a ready-made Python",
        )
    c_library = needed["libc.so.6"].parent
    for name in _GLIBC_EXTRAS:
        if (c_library / name).exists():
            needed.setdefault(name, c_library / name)
    copied = {}
    for name, source in sorted(needed.items()):
        if site is not None and source.resolve().is_relative_to(site.resolve()):
            continue
        path = f"{'glibc' if elf.is_glibc(name) else 'lib'}/{name}"
        _copy(source, folder / path)
        copied[path] = source
    return copied


def _copy(source: Path, target: Path) -> None:
    """Copy a program or library's bytes, following links, as a new executable file."""
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _check_loader(loader: Path) -> None:
    """Make sure that the loader can be told the program's name (glibc 2.33 or newer)."""
    said = subprocess.run([str(loader), "--help"], capture_output=True, text=True, check=False)
    if "--argv0" not in said.stdout + said.stderr:
        raise StepFailed(
            "this machine's C library is older than 2.33: its loader cannot start a copied Python",
            where=loader.name,
            hint="build on a newer system (Debian 12 or later), or set "
            "BUNDLER_PORTABLE_PYTHON=standalone to ship a ready-made Python",
        )


def _write_standard_library(interpreter: Interpreter, folder: Path) -> None:
    """Put the standard library into one archive, and the file that marks the place beside it."""
    files = [
        path.relative_to(interpreter.stdlib).as_posix()
        for path in sorted(interpreter.stdlib.rglob("*"))
        if path.is_file() and _is_kept(path.relative_to(interpreter.stdlib))
    ]
    archive = folder / "lib" / f"python{interpreter.short.replace('.', '')}.zip"
    compile_modules(interpreter.executable, interpreter.stdlib, files, archive)
    # CPython's getpath looks for lib/python3.11/os.py to know its prefix.
    shutil.copyfile(interpreter.stdlib / "os.py", folder / "lib" / interpreter.program / "os.py")


def _is_kept(path: Path) -> bool:
    if not _DROPPED_FOLDERS.isdisjoint(path.parts[:-1]):
        return False
    if path.parts[0].startswith("config-"):
        return False
    return not any(fnmatch.fnmatch(path.name, pattern) for pattern in _DROPPED_FILES)


def compile_modules(
    interpreter: Path, root: Path, files: list[str], archive: Path | None = None
) -> None:
    """Compile modules under `root` with `interpreter`; see `compile_modules.py` for the form.

    Raises:
        StepFailed: a module could not be compiled.
    """
    order = json.dumps({"root": str(root), "files": files, "archive": archive and str(archive)})
    done = subprocess.run(
        [str(interpreter), "-I", "-S", "-X", "utf8", str(_COMPILER)],
        input=order, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StepFailed(
            "modules could not be compiled: " + done.stderr.strip()[-600:], where=str(root)
        )
