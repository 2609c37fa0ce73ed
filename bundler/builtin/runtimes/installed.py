"""Packages of the building environment: which ones are needed, and their files, copied unchanged.

What is copied is what `RECORD` lists with a digest, checked against it; what differs from machine
to machine (who installed it, from where, when; scripts with an absolute path in their first line;
compiled modules) stays behind.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bundler.errors import DamagedError, Problem, StepFailed
from bundler.value import digest

_NOT_METADATA = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
# Only compilers and type checkers read these.
_NOT_NEEDED = (".pyc", ".pyi", ".pyx", ".pxd", ".c", ".h", ".hpp", ".cpp", ".a", ".lib")
# Classifiers that mean exactly one licence; "BSD License" does not.
_SPDX = {"MIT License": "MIT", "Apache Software License": "Apache-2.0"}


@dataclass(frozen=True)
class InstalledFile:
    """One file of a package, as `RECORD` promises it."""

    path: str
    """Relative to `site-packages`."""
    source: Path
    sha256: str


@dataclass(frozen=True)
class InstalledPackage:
    """One package with the files a bundle needs of it."""

    name: str
    version: str
    licence: str
    """SPDX expression where the package states one, its own words otherwise."""
    files: tuple[InstalledFile, ...]

    @property
    def digest(self) -> str:
        """One digest over every path and content."""
        return digest([[file.path, file.sha256] for file in self.files])


def installed_packages(names: Iterable[str]) -> tuple[InstalledPackage, ...]:
    """Return the named packages and all they require here, sorted by name.

    Raises:
        StepFailed: one of them is not installed; all missing ones are named.
    """
    found: dict[str, metadata.Distribution] = {}
    problems: list[Problem] = []
    waiting = [(str(canonicalize_name(name)), "bundler") for name in names]
    while waiting:
        name, wanted_by = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            hint = f"install it: python -m pip install {name}"
            problems.append(Problem(f"{name} is not installed", f"needed by {wanted_by}", hint))
            continue
        waiting += [(needed, name) for needed in requirements(found[name].requires or ())]
    if problems:
        raise StepFailed(problems)
    return tuple(_package(name, found[name]) for name in sorted(found))


def requirements(lines: Iterable[str], environment: dict[str, str] | None = None) -> list[str]:
    """Return the names among requirement lines that hold for `environment` (this one if None)."""
    needed: list[str] = []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": "", **(environment or {})}):
            needed.append(canonicalize_name(requirement.name))
    return needed


def copy_packages(packages: Iterable[InstalledPackage], site: Path) -> None:
    """Copy packages to the folder `site`, checking every file against its recorded digest.

    Raises:
        DamagedError: files are not what was installed; all of them are named.
    """
    changed = []
    for package in packages:
        for file in package.files:
            data = file.source.read_bytes()
            if hashlib.sha256(data).hexdigest() != file.sha256:
                changed.append(Problem("was changed after it was installed", file.path))
                continue
            target = site / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    if changed:
        raise DamagedError(changed)


def licence_of(information: Any) -> str:
    """Return a package's licence as it states it: expression, then field, then classifier."""
    expression = information.get("License-Expression") or information.get("License") or ""
    if expression and "\n" not in expression and len(expression) <= 100:
        return expression
    classifiers = information.get_all("Classifier") or []
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    return _SPDX.get(named[0], named[0]) if named else "unknown"


def _package(name: str, distribution: metadata.Distribution) -> InstalledPackage:
    files = []
    for path in distribution.files or ():
        text = path.as_posix()
        if path.hash is None or path.hash.mode != "sha256" or not is_kept(text):
            continue
        source = Path(str(distribution.locate_file(path)))
        files.append(InstalledFile(text, source, _hexadecimal(path.hash.value)))
    if not files:
        raise StepFailed(
            f"{name} was installed without a record of its files", where="site-packages",
            hint=f"install it from a wheel: python -m pip install --force-reinstall {name}",
        )  # fmt: skip
    licence = licence_of(distribution.metadata)
    files.sort(key=lambda file: file.path)
    return InstalledPackage(name, distribution.version, licence, tuple(files))


def is_kept(path: str) -> bool:
    """Say whether a file of a package goes into a bundle."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "__pycache__" in parts:
        return False
    if ".dist-info" in parts[0] and len(parts) == 2 and parts[1] in _NOT_METADATA:
        return False
    return not path.endswith(_NOT_NEEDED)


def _hexadecimal(value: str) -> str:
    """Turn RECORD's unpadded URL-safe base64 into hexadecimal digits (PEP 376)."""
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
