"""Pins the wheels that runtimes for other platforms are made of: writes `wheels.json` anew.

    python tools/pin_wheels.py [--downloads FOLDER]

Takes the versions installed here, asks pip for each package's wheel for each platform, and writes
down names, versions, sizes, digests and licences. Addresses are not written down: pip finds the
wheels again wherever it is configured to look, and the digest says whether they are these.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_bytes
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from bundler.builtin.runtimes.installed import licence_of, requirements
from bundler.builtin.runtimes.packages import PACKAGES, PLATFORM_PACKAGES
from bundler.builtin.runtimes.pinned import PIP_PLATFORMS, PYTHON_VERSION, TABLE
from bundler.hardware import Platform

# Marker variables of each platform (packaging.python.org, "Dependency specifiers").
_MARKERS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
_MACHINES = {"windows-x86_64": "AMD64"}


def main() -> None:
    """Download what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--downloads", type=Path, help="keep the wheels here for the next time")
    downloads = parser.parse_args().downloads or Path(tempfile.mkdtemp(prefix="wheels-"))
    platforms = {platform: pin(platform, downloads / platform) for platform in PIP_PLATFORMS}
    text = json.dumps({"schema_version": 1, "platforms": platforms}, indent=1, sort_keys=True)
    TABLE.write_text(text + "\n")
    for platform, wheels in platforms.items():
        total = sum(wheel["size_bytes"] for wheel in wheels)
        sys.stdout.write(f"{platform}: {len(wheels)} wheels, {total:,} bytes\n")


def pin(platform: Platform, folder: Path) -> list[dict[str, Any]]:
    """Return the wheels of all packages and of all they require on `platform`, sorted by name."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **_MARKERS[platform.partition("-")[0]],
        "platform_machine": _MACHINES.get(platform, platform.partition("-")[2]),
        "python_version": ".".join(PYTHON_VERSION.split(".")[:2]),
        "python_full_version": PYTHON_VERSION,
    }
    found: dict[str, dict[str, Any]] = {}
    waiting = [*PACKAGES, *PLATFORM_PACKAGES.get(platform, ())]
    while waiting:
        name = waiting.pop()
        if name not in found:
            wheel = download(name, platform, folder)
            about = wheel_metadata(wheel)
            found[name] = describe(name, wheel, about)
            waiting += requirements(about.get_all("Requires-Dist") or (), environment)
    return [found[name] for name in sorted(found)]


def download(name: str, platform: str, folder: Path) -> Path:
    """Return the wheel of a package, in the installed version if there is one.

    Where its publisher makes that version for this platform no more, it is the last one before it.
    """
    try:
        wish = f"{name}<={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        wish = name
    place = folder / name
    if not list(place.glob("*.whl")):
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary=:all:", f"--python-version={PYTHON_VERSION}", f"--dest={place}",
            *(f"--platform={tag}" for tag in PIP_PLATFORMS[platform]), wish,
        ]  # fmt: skip
        subprocess.run(command, check=True)
    (wheel,) = place.glob("*.whl")
    return wheel


def wheel_metadata(wheel: Path) -> Any:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def describe(name: str, wheel: Path, about: Any) -> dict[str, Any]:
    """Return a wheel's row of the table."""
    data = wheel.read_bytes()
    return {
        "name": name,
        "version": about["Version"],
        "file": wheel.name,
        "size_bytes": len(data),
        "sha256": sha256(data).hexdigest(),
        "licence": licence_of(about),
    }


if __name__ == "__main__":
    main()
