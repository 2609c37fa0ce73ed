"""What lies in a bundle and is not of it: links are refused, and strangers where new files belong."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from bundler.errors import Problem, UnsafeInput
from bundler.manifest import BESIDE, Manifest
from bundler.update.staging import STAGING_NAME, Staged


def check_in_the_way(bundle: Path, old: Manifest, new: Manifest) -> None:
    """Refuse links and other things that are no files, and strangers where new files belong.

    Raises:
        UnsafeInput: every one of them.
    """
    known = {file.path for file in old.files} | set(BESIDE)
    wanted = {file.path for file in new.files}
    folders = {parent.as_posix() for path in wanted for parent in PurePosixPath(path).parents}
    places = {_folded(path) for path in wanted | folders}
    problems = []
    for path, mode in _entries(bundle):
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            problems.append((path, "is neither a file nor a folder"))
        elif stat.S_ISREG(mode) and path not in known and _folded(path) in places:
            problems.append((path, "is not of this bundle, and lies where the new version's lies"))
        elif (
            stat.S_ISDIR(mode) and path in wanted and not _of_old_alone(bundle / path, path, known)
        ):
            problems.append((path, "is a folder with files of yours where a new file belongs"))
    if problems:
        hint = "move it elsewhere, then run the same command again"
        raise UnsafeInput([Problem(why, str(bundle / path), hint) for path, why in problems])


def check_no_stranger(bundle: Path, old: Manifest, staged: Iterable[Staged]) -> None:
    """Refuse files that somebody put where new files belong, after the switch had begun.

    Raises:
        UnsafeInput: every one of them.
    """
    known = {file.path for file in old.files}
    problems = [
        Problem("is not of this bundle, and lies where the new version's lies",
                str(bundle / one.file.path), "move it elsewhere, then run the same command again")
        for one in staged
        if one.file.path not in known and os.path.lexists(bundle / one.file.path)
        and os.path.lexists(bundle / STAGING_NAME / one.name)
    ]  # fmt: skip
    if problems:
        raise UnsafeInput(problems)


def _folded(path: str) -> str:
    """Return a name as filesystems that ignore case and composition compare it."""
    return unicodedata.normalize("NFC", path).casefold()


def _of_old_alone(folder: Path, path: str, known: set[str]) -> bool:
    """Tell whether nothing lies in a folder but what the update takes away."""
    return all(stat.S_ISDIR(mode) or f"{path}/{below}" in known for below, mode in _entries(folder))


def _entries(root: Path) -> Iterator[tuple[str, int]]:
    """Yield relative path → mode of all that lies below a folder, following no links."""
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                yield Path(entry.path).relative_to(root).as_posix(), mode
                if stat.S_ISDIR(mode):
                    pending.append(Path(entry.path))
