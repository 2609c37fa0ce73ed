"""Compiles modules to the same bytes every time; run by itself, under the interpreter to compile for.

    python -I -S -X utf8 compile_modules.py < {"root": …, "files": […], "archive": … or null}

Why a process of its own: which strings of a compiled module are marked as shared depends on what
else lives in the process that compiles it, so that process must be the same each time. Compiled
modules are trusted without looking at their source ("unchecked hash", PEP 552): they carry no time
stamp, and the manifest's digests are what tells whether they are whole.

With `archive`, sources and compiled modules are put into one ZIP file (modules beside their
sources, as `zipimport` wants them); without, each compiled module goes to `__pycache__`.
Uses nothing but the standard library.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import sys
import zipfile
from pathlib import Path

_CLOCK = (1980, 1, 1, 0, 0, 0)  # The earliest time a ZIP file can hold.


def compiled(source: bytes, name: str) -> bytes:
    """Return the compiled form of a module as the bytes of an unchecked-hash .pyc file."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little")
    return head + importlib.util.source_hash(source) + marshal.dumps(code)


def write_archive(root: Path, files: list[str], archive: str) -> None:
    """Put all files, and the compiled form of every module, into one ZIP file."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in files:
            data = (root / name).read_bytes()
            _add(target, name, data)
            if name.endswith(".py"):
                _add(target, name + "c", compiled(data, name))


def _add(target: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _CLOCK)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    target.writestr(entry, data, compresslevel=9)


def write_caches(root: Path, files: list[str]) -> None:
    """Put the compiled form of every module into the `__pycache__` folder beside it."""
    tag = sys.implementation.cache_tag
    for name in files:
        source = root / name
        cache = source.parent / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / f"{source.stem}.{tag}.pyc").write_bytes(compiled(source.read_bytes(), name))


if __name__ == "__main__":
    order = json.load(sys.stdin)
    if order["archive"]:
        write_archive(Path(order["root"]), order["files"], order["archive"])
    else:
        write_caches(Path(order["root"]), order["files"])
