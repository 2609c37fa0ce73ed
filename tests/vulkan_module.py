"""llama.cpp's module for Vulkan, compiled once from the pinned source, beside the libraries that
llama-cpp-python has: everything that a machine with a card has, for Mesa's software device.
"""

import ctypes.util
import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from bundler.builtin.runtimes import native_build
from bundler.builtin.runtimes.pinned import llama_source
from bundler.builtin.runtimes.pypi import PypiSource
from bundler.errors import StepFailed
from bundler.store import Store
from bundler.value import digest
from bundler.world import World
from tests.demo import CACHE

MODULE = "libggml-vulkan.so"
TARGET = "ggml-vulkan"
DRIVERS = Path("/usr/share/vulkan/icd.d")


def missing_for_vulkan():
    """Say what this machine lacks to compile the module and to run it on the software device."""
    try:
        native_build.check_programs()
    except StepFailed as error:
        return str(error)
    if ctypes.util.find_library("vulkan") is None:
        return "Vulkan's loader is not here (apt-get install libvulkan1)"
    if not list(DRIVERS.glob("lvp_icd*.json")):
        return "Mesa's software device is not here (apt-get install mesa-vulkan-drivers)"
    return ""


def libraries_with_vulkan():
    """Return a folder of llama-cpp-python's libraries with the module among them."""
    missing = missing_for_vulkan()
    if missing:
        if os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    locked = llama_source()
    key = digest({"what": TARGET, "build": native_build.build_key(locked.sha256)})
    folder = CACHE / "native" / f"vulkan-{key[:16]}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / "made"
                shutil.copytree(_own_libraries(), made)
                shutil.copyfile(_compiled(Path(scratch), locked), made / MODULE)
                made.rename(folder)
    return folder


def _own_libraries():
    found = find_spec("llama_cpp")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "lib"


def _compiled(folder, locked):
    archive = folder / locked.path
    world = World(store=Store(folder / "store"), environment=os.environ)
    with PypiSource().open(
        locked.addresses[0], start=0, end=None, validator=None, world=world
    ) as stream, archive.open("wb") as sink:  # fmt: skip
        sink.writelines(stream.chunks)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == locked.sha256
    native_build.compile_into(folder, archive, lambda *_: None, (TARGET,))
    return folder / "build" / "bin" / MODULE
