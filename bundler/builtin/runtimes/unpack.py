"""A strict extractor for wheels and for archives of a ready-made Python.

They are pinned by digest, and still nothing is taken on trust: only regular files come out, under
names that every filesystem can hold, no two of which differ only by case, within bounds of number
and size that are counted and not believed. A symbolic link comes out as a copy of what it names,
if that lies inside; a hard link likewise. Nothing is set-user-ID. Entries that `select` drops are
neither looked at nor written.
"""

from __future__ import annotations

import gzip
import io
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from bundler.errors import UnsafeInput
from bundler.value import check_relative_path, format_size

_BLOCK = 1 << 20
_LINKS_DEEP = 8

Select = Callable[[str], str | None]
"""Name in the archive → path in the target folder; None drops the entry."""


@dataclass(frozen=True)
class Bounds:
    """The most an archive may hold."""

    files: int = 20_000
    total_bytes: int = 2 << 30


@dataclass
class _Target:
    """The folder that is written to, and what is in it already."""

    archive: Path
    name: str
    folder: Path
    bounds: Bounds
    written: dict[str, str] = field(default_factory=dict)
    """Case-folded path of every file and folder → how it was written."""
    files: list[str] = field(default_factory=list)
    left_bytes: int = 0

    def refuse(self, what: str) -> NoReturn:
        raise UnsafeInput(
            what, where=self.name, hint="the archive is not what it should be: do not use it"
        )

    def write(self, path: str, stream: IO[bytes], *, executable: bool) -> None:
        """Write one file, counting its bytes against what is left."""
        self._claim(path)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as output:
            while block := stream.read(_BLOCK):
                self.left_bytes -= len(block)
                if self.left_bytes < 0:
                    self.refuse(f"holds more than {format_size(self.bounds.total_bytes)}")
                output.write(block)
        if executable:
            target.chmod(0o755)

    def _claim(self, path: str) -> None:
        """Make sure that a path is safe and new, in whatever case, for it and its folders."""
        try:
            check_relative_path(path)
        except ValueError as error:
            self.refuse(str(error))
        if len(self.files) >= self.bounds.files:
            self.refuse(f"holds more than {self.bounds.files:,} files")
        if path.casefold() in self.written:
            self.refuse(f"holds {path!r} twice (the other: {self.written[path.casefold()]!r})")
        folder = ""
        for part in path.split("/")[:-1]:
            folder = f"{folder}{part}"
            known = self.written.setdefault(folder.casefold(), folder)
            if known != folder or folder in self.files:
                self.refuse(f"{path!r} and {known!r} cannot both be there")
            folder += "/"
        self.written[path.casefold()] = path
        self.files.append(path)


def unpack(
    archive: Path, folder: Path, *, name: str = "",
    select: Select = lambda name: name, bounds: Bounds | None = None,
) -> list[str]:  # fmt: skip
    """Unpack a .whl, .zip, .tar.gz or .tar.zst into `folder`; return the paths written, sorted.

    `name` says what kind it is, when the file itself has another name (that of an object).

    Raises:
        UnsafeInput: it is damaged, or holds what no honest archive of its kind holds.
    """
    bounds = bounds or Bounds()
    name = name or archive.name
    target = _Target(archive, name, folder, bounds, left_bytes=bounds.total_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if name.endswith((".whl", ".zip")):
            _unpack_zip(target, select)
        else:
            _unpack_tar(target, select)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        target.refuse(f"is damaged: {error}")
    except (NotImplementedError, RuntimeError, OSError, ValueError) as error:
        # zipfile and gzip say so when they meet unknown methods, encryption or damaged streams.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        target.refuse(f"cannot be read: {error}")
    return sorted(target.files)


def _unpack_zip(target: _Target, select: Select) -> None:
    with zipfile.ZipFile(target.archive) as source:
        for entry in source.infolist():
            path = None if entry.is_dir() else select(entry.filename)
            if path is None:
                continue
            mode = entry.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or mode & (stat.S_ISUID | stat.S_ISGID):
                target.refuse(f"{entry.filename!r} is not a plain file")
            if entry.flag_bits & 0x1:
                target.refuse(f"{entry.filename!r} is encrypted")
            if entry.file_size > target.left_bytes:
                target.refuse(f"holds more than {format_size(target.bounds.total_bytes)}")
            with source.open(entry) as stream:
                target.write(path, stream, executable=bool(mode & 0o100))


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more bytes than an archive may unfold to."""

    def __init__(self, stream: IO[bytes], target: _Target) -> None:
        self._stream = stream
        self._target = target
        # Headers and padding come on top of the files: at most two blocks of 512 bytes and names
        # for each; 4 KiB is ample.
        self._left = target.bounds.total_bytes + 4096 * target.bounds.files

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size if size >= 0 else _BLOCK)
        self._left -= len(block)
        if self._left < 0:
            self._target.refuse("unfolds to more than it may hold")
        return block


def _unpack_tar(target: _Target, select: Select) -> None:
    links: dict[str, tuple[str, str]] = {}
    places: dict[str, str] = {}
    for member, stream in _members(target):
        path = select(member.name)
        if member.isdir() or path is None:
            continue
        if member.mode & (stat.S_ISUID | stat.S_ISGID):
            target.refuse(f"{member.name!r} is set-user-ID or set-group-ID")
        if member.issym() or member.islnk():
            links[member.name] = (_named(target, member), path)
        elif member.isreg() and stream is not None:
            target.write(path, stream, executable=bool(member.mode & 0o100))
            places[member.name] = path
        else:
            target.refuse(f"{member.name!r} is not a plain file")
    for name, (_, path) in links.items():
        source = target.folder / places[_followed(target, name, links, places)]
        with source.open("rb") as stream:
            target.write(path, stream, executable=bool(source.stat().st_mode & 0o100))


def _members(target: _Target) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Give every member with its content, in the order of the stream."""
    plain: Any
    with target.archive.open("rb") as raw:
        if target.name.endswith(".zst"):
            plain = _zstandard_stream(raw)
        else:
            plain = gzip.GzipFile(fileobj=raw)
        with tarfile.open(fileobj=_Bounded(plain, target), mode="r|") as source:
            for member in source:
                yield member, source.extractfile(member) if member.isreg() else None


def _zstandard_stream(raw: IO[bytes]) -> Any:
    from zstandard import ZstdDecompressor, ZstdError

    class Stream:
        """Reads, and calls damage by a name that does not need the library to be known."""

        def __init__(self) -> None:
            self._plain = ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw)

        def read(self, size: int) -> bytes:
            try:
                return self._plain.read(size)
            except ZstdError as error:
                raise tarfile.ReadError(str(error)) from error

    return Stream()


def _named(target: _Target, member: tarfile.TarInfo) -> str:
    """Return the member that a link names: relative to the link, or (hard links) to the archive."""
    if member.linkname.startswith("/"):
        target.refuse(f"{member.name!r} is a link to the outside: {member.linkname!r}")
    base = posixpath.dirname(member.name) if member.issym() else ""
    named = posixpath.normpath(posixpath.join(base, member.linkname))
    if named == ".." or named.startswith(("../", "/")):
        target.refuse(f"{member.name!r} is a link to the outside: {member.linkname!r}")
    return named


def _followed(
    target: _Target, name: str, links: dict[str, tuple[str, str]], places: dict[str, str]
) -> str:
    """Follow links to the file they end at."""
    for _ in range(_LINKS_DEEP):
        if name in places:
            return name
        if name not in links:
            break
        name = links[name][0]
    return target.refuse(f"{name!r}, which a link names, is not a file that was unpacked")
