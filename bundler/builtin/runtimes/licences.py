"""Licence texts of everything that is copied, gathered into one folder, and who asks for which.

Texts of libraries come from the packages they were installed by; on systems without `dpkg` a
library's origin is not known and its component says so, so that a bill of materials shows the gap.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bundler.builtin.runtimes.installed import InstalledPackage
from bundler.builtin.runtimes.portable_python import Interpreter

_DOC = Path("/usr/share/doc")
_COMMON = Path("/usr/share/common-licenses")
_MENTION = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.-]*[A-Za-z0-9])")
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
# SPDX expressions of the libraries a Python and our packages draw in, by Debian package, as their
# copyright files state them (Debian 12). `+` and version suffixes are cut before looking here.
_SPDX = {
    "libbz2-1.0": "bzip2-1.0.6",
    "libc6": "LGPL-2.1-or-later",
    "libcrypt1": "LGPL-2.1-or-later",
    "libexpat1": "MIT",
    "libffi8": "MIT",
    "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgomp1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "liblzma5": "0BSD",
    "libmpdec3": "BSD-2-Clause",
    "libsqlite3-0": "blessing",
    "libssl3": "Apache-2.0",
    "libstdc++6": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libuuid1": "BSD-3-Clause",
    "libvulkan1": "Apache-2.0",
    "zlib1g": "Zlib",
}

Component = Mapping[str, Any]
"""`name`, `version`, `licence`, `files` (paths in the runtime's tree), `licence_files`."""


def python_component(interpreter: Interpreter, files: list[str], folder: Path) -> Component:
    """Copy Python's own licence into `folder` and return its component."""
    text = interpreter.stdlib / "LICENSE.txt"
    copied = _copy([text] if text.exists() else [], folder / "python")
    return {
        "name": "python", "version": interpreter.version, "licence": "Python-2.0",
        "files": files, "licence_files": copied,
    }  # fmt: skip


def package_components(
    packages: Iterable[InstalledPackage], site: str, folder: Path
) -> list[Component]:
    """Copy the licence texts of packages and return a component for each."""
    components: list[Component] = []
    for package in packages:
        texts = [
            file.source
            for file in package.files
            if ".dist-info/" in file.path and LICENCE_FILE.search(file.source.name)
        ]
        components.append(
            {
                "name": package.name, "version": package.version, "licence": package.licence,
                "files": [f"{site}/{file.path}" for file in package.files],
                "licence_files": _copy(texts, folder / package.name),
            }
        )  # fmt: skip
    return components


def library_components(copied: Mapping[str, Path], prefix: str, folder: Path) -> list[Component]:
    """Return a component for each system package that copied libraries belong to.

    `copied` maps a path in the tree to where the file came from.
    """
    owners = _owners(copied.values())
    by_package: dict[tuple[str, str], list[str]] = {}
    for path, source in sorted(copied.items()):
        package = owners.get(source, (source.name, "unknown"))
        by_package.setdefault(package, []).append(f"{prefix}/{path}")
    components: list[Component] = []
    for (name, version), files in sorted(by_package.items()):
        texts = [path for path in (_DOC / name / "copyright",) if path.exists()]
        components.append(
            {
                "name": name, "version": version, "licence": _SPDX.get(name, "unknown"),
                "files": files, "licence_files": _copy(texts, folder / name),
            }
        )  # fmt: skip
    return components


def write_sources_note(components: Iterable[Component], folder: Path) -> None:
    """Write where the source code of every copied program can be had, by name and version.

    The GNU licences ask for it. Distributions and package indexes keep the source of what they
    publish under the same name and version.
    """
    lines = [
        "Source code of the programs in this folder",
        "",
        "Each is an unchanged build (debug symbols removed) of the named version. Its source is",
        "kept by its publisher under that name and version: for Python packages the sdist on the",
        "Python Package Index, for system libraries the source package of the distribution.",
        "",
        *(f"{c['name']} {c['version']}: {c['licence']}" for c in components),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SOURCES.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_common_texts(folder: Path) -> list[str]:
    """Copy the full licence texts that Debian's copyright files only mention by path."""
    wanted = {
        name
        for text in folder.rglob("copyright")
        for name in _MENTION.findall(text.read_text(errors="replace"))
    }
    return _copy([_COMMON / name for name in sorted(wanted) if (_COMMON / name).is_file()],
                 folder / "common")  # fmt: skip


def _owners(files: Iterable[Path]) -> dict[Path, tuple[str, str]]:
    """Return (package, version) of each file that dpkg knows, links followed."""
    if shutil.which("dpkg-query") is None:
        return {}
    names: dict[str, Path] = {}
    for file in files:
        for path in (str(file), str(file.resolve())):
            names[path] = names[path.removeprefix("/usr")] = file
    listing = _query("--search", *sorted(names))
    packages = {}
    for line in listing.splitlines():
        package, _, path = line.partition(": ")
        if path in names and "," not in package:
            packages[names[path]] = package.partition(":")[0]
    versions = dict(
        line.split("\t", 1)
        for line in _query(
            "--show", "--showformat=${Package}\\t${Version}\\n", *sorted(set(packages.values()))
        ).splitlines()
    )
    return {file: (name, versions.get(name, "unknown")) for file, name in packages.items()}


def _query(*words: str) -> str:
    """Ask dpkg; paths that it does not know make it complain, and are simply not in the answer."""
    return subprocess.run(
        ["dpkg-query", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    ).stdout


def _copy(texts: Iterable[Path], folder: Path) -> list[str]:
    """Copy texts into `folder`; return their paths from the folder above it."""
    copied = []
    for text in texts:
        folder.mkdir(parents=True, exist_ok=True)
        name = text.name if not (folder / text.name).exists() else f"{text.parent.name}-{text.name}"
        shutil.copyfile(text, folder / name)
        copied.append(f"{folder.name}/{name}")
    return copied
