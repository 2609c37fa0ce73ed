"""Every locked file with the source that can deliver it."""

from __future__ import annotations

from bundler.hookspecs import Source
from bundler.lock import Lock, LockedFile, Resolution
from bundler.plugins import Plugins


def locked_files(lock: Lock, plugins: Plugins) -> list[tuple[Source, LockedFile]]:
    """Return every locked file with the source that can deliver it.

    Equal content stays twice: each mention may know another place to get it.
    """
    resolutions: list[Resolution] = [
        *(model.resolution for model in lock.models.values()),
        *(one for model in lock.models.values() for one in model.beside.values()),
        *lock.corpora.values(),
        *lock.texts.values(),
        *lock.runtimes.values(),
    ]
    return [
        (plugins.named(plugins.sources, resolution.source, "source"), file)
        for resolution in resolutions
        for file in resolution.files
    ]
