"""`path:` files and folders on this machine, relative to the recipe.

Nothing outside the named folder is read: symbolic links that leave it, pipes, devices and sockets
are refused. Addresses are relative to the recipe's folder, so that a lock holds no path of the
machine it was made on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from bundler.builtin.sources.naming import MOST_FILES, check_names, included
from bundler.errors import DamagedError, Problem, RecipeError, SourceError, UnsafeInput
from bundler.events import Progress
from bundler.hookspecs import ByteStream
from bundler.lock import LockedFile, Resolution
from bundler.recipe import SourceReference
from bundler.value import digest
from bundler.world import World

_BLOCK = 1 << 20


class PathSource:
    """Files that are here already."""

    name = "path"
    is_local = True
    """Its files are whoever's who wrote the recipe: one that changed makes the lock stale."""

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Hash the file, or every file of the folder that is not hidden and is included."""
        root = world.folder / reference.locator
        try:
            real = root.resolve(strict=True)
            kind = real.stat().st_mode
        except (OSError, RuntimeError, ValueError) as error:
            raise RecipeError(
                f"there is no file or folder {reference.locator}",
                where=str(reference),
                hint=f"a path starts at the recipe's folder: {world.folder.resolve()}",
            ) from error
        if stat.S_ISDIR(kind):
            base, files = real, _folder(real, reference)
        elif stat.S_ISREG(kind):
            check_names([root.name], str(reference))
            base, files = real.parent, {root.name: PurePosixPath(real.name)}
        else:
            raise UnsafeInput("only files and folders are read", where=str(reference))
        locked = _hashed(base, files, reference, world)
        if reference.sha256 is not None and [f.sha256 for f in locked] != [reference.sha256]:
            raise DamagedError(
                f"is not the one file with SHA-256 {reference.sha256[:12]}… that the recipe names",
                where=str(reference),
            )
        return Resolution(
            source=self.name,
            reference=str(reference),
            revision=digest([[f.path, f.size_bytes, f.sha256] for f in locked]),
            files=locked,
        )

    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> AbstractContextManager[ByteStream]:
        """Open a file of this machine; an address is relative to the recipe's folder."""
        return _opened(world.folder / address, start, end)

    def local_copy(self, file: LockedFile, world: World) -> Path | None:
        """Return the file itself, so that its bytes can be shared instead of copied."""
        for address in file.addresses:
            path = world.folder / address
            if path.is_file() and not path.is_symlink() and path.stat().st_size == file.size_bytes:
                return path
        return None


def _folder(root: Path, reference: SourceReference) -> dict[str, PurePosixPath]:
    """Return name → where its bytes lie below `root`, for every wanted file."""
    found: dict[str, PurePosixPath] = {}
    problems: list[Problem] = []
    for folder, folders, names in os.walk(root, onerror=_unreadable, followlinks=False):
        below = PurePosixPath(Path(folder).relative_to(root).as_posix())
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in linked)
        for name in sorted(names + linked):
            if name.startswith("."):
                continue
            try:
                found[str(below / name)] = _target(root, below / name)
            except UnsafeInput as error:
                problems += error.problems
        if len(found) > MOST_FILES:
            raise UnsafeInput(f"holds more than {MOST_FILES} files", where=str(reference))
    if problems:
        raise UnsafeInput(problems)
    wanted = included(found, reference.include, str(reference))
    if not wanted:
        raise SourceError("holds no files (hidden ones do not count)", where=str(reference))
    check_names(wanted, str(reference))
    return {name: found[name] for name in wanted}


def _unreadable(error: OSError) -> None:
    raise SourceError(f"cannot be listed: {error.strerror}", where=str(error.filename)) from error


def _target(root: Path, name: PurePosixPath) -> PurePosixPath:
    """Return where the bytes of an entry lie: itself, or what a link inside the folder means."""
    path = root / name
    try:
        real = path.resolve(strict=True) if path.is_symlink() else path
        kind = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise UnsafeInput("is a symbolic link to nothing", where=str(path)) from error
    if not real.is_relative_to(root):
        raise UnsafeInput(
            f"is a symbolic link that leaves the folder, to {real}",
            where=str(path),
            hint="put the file itself there, or name its own folder in the recipe",
        )
    if not stat.S_ISREG(kind):
        raise UnsafeInput("is neither a file nor a plain folder", where=str(path))
    return PurePosixPath(real.relative_to(root).as_posix())


def _hashed(
    base: Path, files: dict[str, PurePosixPath], reference: SourceReference, world: World
) -> tuple[LockedFile, ...]:
    sizes = {name: (base / target).stat().st_size for name, target in files.items()}
    done, total = 0, sum(sizes.values())
    locked = []
    for name, target in sorted(files.items()):
        running, size = hashlib.sha256(), 0
        with _descriptor(base, target) as descriptor:
            while block := os.read(descriptor, _BLOCK):
                running.update(block)
                size += len(block)
                if size % (64 * _BLOCK) == 0:
                    world.report(Progress(f"hash {reference}", min(done + size, total), total))
        done += sizes[name]
        address = Path(os.path.relpath(base / target, world.folder.resolve())).as_posix()
        locked.append(
            LockedFile(path=name, size_bytes=size, sha256=running.hexdigest(), addresses=(address,))
        )
    return tuple(locked)


@contextlib.contextmanager
def _descriptor(base: Path, target: PurePosixPath) -> Iterator[int]:
    """Open a file below `base` with no link on the way: what was checked is what is read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.ExitStack() as stack:
        folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        try:
            for part in target.parts[:-1]:
                folder = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
                stack.callback(os.close, folder)
            descriptor = os.open(target.name, flags, dir_fd=folder)
            stack.callback(os.close, descriptor)
        except PermissionError as error:
            raise SourceError("may not be read", where=str(base / target)) from error
        except OSError as error:
            raise UnsafeInput(
                f"changed while it was being looked at: {error.strerror}", where=str(base / target)
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafeInput("only regular files are read", where=str(base / target))
        yield descriptor


@contextlib.contextmanager
def _opened(path: Path, start: int, end: int | None) -> Iterator[ByteStream]:
    try:
        parent = path.parent.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SourceError("is not there any more", where=str(path)) from error
    if not path.is_symlink() and not path.exists():
        raise SourceError("is not there any more", where=str(path), hint="was it moved or removed?")
    with _descriptor(parent, PurePosixPath(path.name)) as descriptor:
        size = os.fstat(descriptor).st_size
        yield ByteStream(
            start, size, None, _blocks(descriptor, start, size if end is None else end)
        )


def _blocks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (block := os.pread(descriptor, min(_BLOCK, end - start), start)):
        yield block
        start += len(block)
