"""Names the code that made something, so that another version of it makes it anew."""

from __future__ import annotations

import functools
from hashlib import sha256
from pathlib import Path


@functools.cache
def code_digest(*folders: Path) -> str:
    """Return 16 hexadecimal digits that change when any Python file below `folders` does.

    Part of a `tool()`: the version number of a package does not change from commit to commit, and
    a step done by older code must not pass for one done by newer code.
    """
    found = sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
