"""What a copied program needs of the machine it came from: its ELF dynamic section.

Reads 64-bit little-endian ELF files of the building machine (x86-64, aarch64), which are trusted.
The tags and their numbers are those of the System V gABI, chapter 5, "Dynamic Section".
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bundler.errors import StepFailed

_MAGIC = b"\x7fELF\x02\x01"
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29
_LDD_LINE = re.compile(r"\s*(?:(\S+) => )?(.+?) \(0x[0-9a-f]+\)")
_LDD_MISSING = re.compile(r"\s*(\S+) => not found")
_GLIBC = re.compile(
    r"(ld-linux[^/]*|lib(c|m|mvec|dl|rt|pthread|util|resolv|anl|nss_(dns|files)))\.so(\.\d+)?"
)


def is_elf(path: Path) -> bool:
    """Say whether `path` is a 64-bit little-endian ELF file."""
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def is_glibc(library: str) -> bool:
    """Say whether a library's file name is one of the C library's own set."""
    return _GLIBC.fullmatch(library) is not None


def needed_libraries(path: Path) -> list[str]:
    """Return the names of the libraries an ELF file asks for, of whatever machine it is."""
    data = bytearray(path.read_bytes())
    return [_string(data, value) for tag, value, _ in _dynamic(data) if tag == _DT_NEEDED]


def forget_absolute_search_paths(path: Path) -> list[str]:
    """Empty RPATH and RUNPATH entries that name absolute folders; return what they said.

    An interpreter built under a prefix of its own carries that prefix as RPATH, which goes before
    `--library-path`: at the far end it could pick up a stranger's library. Entry 0 of an ELF
    string table is the empty string, and an empty search path is no search path.
    """
    data = bytearray(path.read_bytes())
    said = []
    for tag, value, position in _dynamic(data):
        if tag not in (_DT_RPATH, _DT_RUNPATH):
            continue
        text = _string(data, value)
        if any(part and not part.startswith("$ORIGIN") for part in text.split(":")):
            struct.pack_into("<Q", data, position + 8, 0)
            said.append(text)
    if said:
        path.write_bytes(data)
    return said


def strip_symbols(path: Path) -> None:
    """Take out of an ELF file what only a debugger reads; xllamacpp's library shrinks to a quarter.

    Raises:
        StepFailed: there is no `strip`, or it cannot read the file.
    """
    try:
        done = subprocess.run(
            ["strip", "--strip-unneeded", str(path)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise StepFailed(
            "making a portable Python needs `strip`", where="strip",
            hint="it comes with every C compiler; on Debian: apt-get install binutils",
        ) from error  # fmt: skip
    if done.returncode:
        raise StepFailed(done.stderr.strip()[-300:], where=path.name)


def libraries_of(files: Iterable[Path], search: Path | None = None) -> Mapping[str, Path]:
    """Return every shared library the files load, by the name they ask for it.

    `search` is a folder that is looked at first, for programs whose libraries lie in no usual
    place. The loader itself is among them.

    Raises:
        StepFailed: a library is not on this machine.
    """
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    if search is not None:
        environment["LD_LIBRARY_PATH"] = str(search)
    found: dict[str, Path] = {}
    missing: dict[str, Path] = {}
    for file in files:
        listing = subprocess.run(
            ["ldd", str(file)], env=environment, capture_output=True, text=True, check=False
        ).stdout
        for line in listing.splitlines():
            if lost := _LDD_MISSING.match(line):
                missing[lost[1]] = file
            elif (match := _LDD_LINE.match(line)) and match[2].startswith("/"):
                found.setdefault(match[1] or Path(match[2]).name, Path(match[2]))
    if missing:
        raise StepFailed(
            "not on this machine: " + ", ".join(f"{a} (for {b})" for a, b in missing.items()),
            where="portable Python",
            hint="install the packages these libraries belong to; on Debian: apt-file search NAME",
        )
    return found


def _dynamic(data: bytearray) -> Iterator[tuple[int, int, int]]:
    """Give (tag, value, position in the file) of each entry of the dynamic section."""
    headers = list(_program_headers(data))
    for kind, offset, _, size in headers:
        if kind != _PT_DYNAMIC:
            continue
        for position in range(offset, offset + size, 16):
            tag, value = struct.unpack_from("<QQ", data, position)
            if tag == _DT_NULL:
                break
            yield tag, value, position


def _string(data: bytearray, index: int) -> str:
    """Return a string of the dynamic string table."""
    address = next(value for tag, value, _ in _dynamic(data) if tag == _DT_STRTAB)
    for kind, offset, virtual, size in _program_headers(data):
        if kind == _PT_LOAD and virtual <= address < virtual + size:
            start = offset + address - virtual + index
            return bytes(data[start : data.index(0, start)]).decode()
    raise StepFailed("its string table lies in no segment", where="ELF file")


def _program_headers(data: bytearray) -> Iterator[tuple[int, int, int, int]]:
    """Give (type, file offset, virtual address, size in the file) of each program header."""
    table, entry, count = (
        *struct.unpack_from("<Q", data, 32),
        *struct.unpack_from("<HH", data, 54),
    )
    for position in range(table, table + entry * count, entry):
        kind, _, offset, virtual, _, size = struct.unpack_from("<IIQQQQ", data, position)
        yield kind, offset, virtual, size
