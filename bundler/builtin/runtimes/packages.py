"""Which packages a bundle carries: what the station imports, the model server, and their needs."""

from __future__ import annotations

from bundler.hardware import Platform

STATION_PACKAGES = (
    "jinja2", "libzim", "markdown-it-py", "nh3", "selectolax", "starlette", "uvicorn",
)  # fmt: skip
"""What the station imports; a test holds this list to the station's code."""
PACKAGES = (*STATION_PACKAGES, "xllamacpp")
# The wheels of libzim and xllamacpp load MSVCP140.dll and VCOMP140.DLL, which come neither with
# Windows nor with the ready-made Python.
PLATFORM_PACKAGES: dict[Platform, tuple[str, ...]] = {"windows-x86_64": ("msvc-runtime",)}
"""What a platform needs besides."""
