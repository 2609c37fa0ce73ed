"""`hf:owner/name@revision`: models on the Hugging Face Hub, or on a mirror that speaks like it; its
data sets are `hf:datasets/owner/name`, as in their addresses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote, urlsplit

from bundler.builtin.sources import hub_files
from bundler.builtin.sources.connection import Refused
from bundler.builtin.sources.hub_licence import licence_of
from bundler.builtin.sources.hub_listing import Entry, Listing, list_repository, refusal
from bundler.builtin.sources.hub_settings import HubSettings, hub_settings
from bundler.builtin.sources.naming import check_listing, check_names
from bundler.errors import DamagedError, PassingFault, SourceError, UnsafeInput
from bundler.hookspecs import ByteStream
from bundler.lock import LockedFile, Resolution
from bundler.pacing import DEFAULT_PATIENCE, Patience, patiently
from bundler.recipe import SourceReference
from bundler.world import World

SMALL_BYTES = 64 << 20
"""Files without a published SHA-256 are fetched to get one; larger ones are not taken."""

_REPOSITORY = re.compile(
    r"(?:datasets/)?(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII
)
_ADDRESS = re.compile(
    r"(?P<repository>(?:datasets/)?[^/]+(?:/[^/]+)?)/resolve/(?P<commit>[0-9a-f]{40})/(?P<file>.+)"
)


class HubSource:
    """Repositories of models, one commit at a time."""

    name = "hf"

    def __init__(
        self, *, stall_seconds: float | None = None, patience: Patience = DEFAULT_PATIENCE
    ) -> None:
        self._stall_seconds = stall_seconds
        self._patience = patience

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Pin a commit and the SHA-256 of every wanted file; small ones are fetched for it."""
        repository = _repository(reference)
        settings = self._settings(world)
        if world.offline or settings.offline:
            raise SourceError(
                "cannot be locked: no connection may be opened",
                where=str(reference),
                hint="run `bundler lock` once with a network (unset HF_HUB_OFFLINE)",
            )
        listing = patiently(
            lambda: list_repository(repository, reference.revision, settings), self._patience
        )
        where = f"{settings.endpoint}/{repository}"
        names = [entry.name for entry in listing.entries]
        check_listing(names, where)
        chosen = frozenset(hub_files.choose(names, reference.include, where))
        check_names(sorted(chosen), where)
        entries = [entry for entry in listing.entries if entry.name in chosen]
        _check_sizes(entries, where)
        files = self._locked(repository, listing, entries, settings, world)
        if not reference.include:
            files = _named_by_index(files, names, where, world)
        if reference.sha256 is not None and [f.sha256 for f in files] != [reference.sha256]:
            raise DamagedError(
                f"is not the one file with SHA-256 {reference.sha256[:12]}… that the recipe names",
                where=where,
            )
        licence, licence_url = licence_of(listing, where)
        return Resolution(
            source=self.name,
            reference=str(reference),
            revision=listing.commit,
            files=files,
            licence=licence,
            licence_url=licence_url,
        )

    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> AbstractContextManager[ByteStream]:
        """Open a file at a commit, at the endpoint that HF_ENDPOINT names now, if it names one."""
        settings = self._settings(world)
        if world.offline or settings.offline:
            raise SourceError(
                "is not in the store, and no connection may be opened",
                where=address,
                hint="unset HF_HUB_OFFLINE, or leave out --offline",
            )
        return _opened(address, start, end, validator, settings)

    def local_copy(self, file: LockedFile, world: World) -> Path | None:
        """Return the file from the cache of huggingface_hub, where blobs are named by SHA-256."""
        cache = self._settings(world).cache
        if cache is None or not cache.is_dir():
            return None
        for blob in sorted(cache.glob(f"[md]*s--*/blobs/{file.sha256}")):
            real = blob.resolve()  # With shared blobs it is a link to elsewhere in the cache.
            if real.is_file() and real.stat().st_size == file.size_bytes:
                return real
        return None

    def _settings(self, world: World) -> HubSettings:
        return hub_settings(world.environment, self._stall_seconds)

    def _locked(
        self,
        repository: str,
        listing: Listing,
        entries: Sequence[Entry],
        settings: HubSettings,
        world: World,
    ) -> tuple[LockedFile, ...]:
        base = f"{settings.endpoint}/{repository}/resolve/{listing.commit}/"

        def lock(entry: Entry) -> LockedFile:
            address = base + quote(entry.name)
            sha256 = entry.sha256
            if sha256 is None or entry.name == hub_files.INDEX:
                sha256 = patiently(lambda: _stored(entry, address, settings, world), self._patience)
            return LockedFile(
                path=entry.name, size_bytes=entry.size_bytes, sha256=sha256, addresses=(address,)
            )

        with ThreadPoolExecutor(max(1, world.parallel_transfers)) as pool:
            return tuple(sorted(pool.map(lock, entries), key=lambda file: file.path))


def _repository(reference: SourceReference) -> str:
    if not _REPOSITORY.fullmatch(reference.locator) or ".." in reference.locator:
        raise UnsafeInput(
            f"{reference.locator!r} cannot be a repository",
            where=str(reference),
            hint="write 'hf:owner/name', 'hf:owner/name@revision' or 'hf:datasets/owner/name'",
        )
    return reference.locator


def _check_sizes(entries: Sequence[Entry], where: str) -> None:
    large = [
        entry.name
        for entry in entries
        if (entry.sha256 is None or entry.name == hub_files.INDEX)
        and entry.size_bytes > SMALL_BYTES
    ]
    if large:
        raise SourceError(
            f"nothing states what the bytes of these large files should be: {', '.join(large[:5])}",
            where=where,
            hint="leave them out with `include` in the recipe",
        )


def _stored(entry: Entry, address: str, settings: HubSettings, world: World) -> str:
    """Fetch a small file into the store and return its SHA-256."""
    taken = bytearray()
    with _opened(address, 0, None, None, settings) as stream:
        for chunk in stream.chunks:
            taken += chunk
            if len(taken) > entry.size_bytes:
                break
    if len(taken) != entry.size_bytes:
        raise PassingFault(f"has not the {entry.size_bytes} bytes that are listed", where=address)
    if not _is_listed(bytes(taken), entry):
        raise PassingFault("is not the file that is listed", where=address)
    return world.store.put(bytes(taken))[0]


def _is_listed(data: bytes, entry: Entry) -> bool:
    """Tell whether bytes have the digest that the listing gives: SHA-256, or git's where it is."""
    if entry.sha256 is not None:
        return hashlib.sha256(data).hexdigest() == entry.sha256
    if re.fullmatch(r"[0-9a-f]{40}", entry.git_blob):
        found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        return found.hexdigest() == entry.git_blob
    return True


def _named_by_index(
    files: tuple[LockedFile, ...], names: Sequence[str], where: str, world: World
) -> tuple[LockedFile, ...]:
    """Leave out shards which the index of shards does not name; all that it names must be there."""
    index = next((file for file in files if file.path == hub_files.INDEX), None)
    if index is None or any(file.path == "model.safetensors" for file in files):
        return files
    try:
        weight_map = json.loads(world.store.object_path(index.sha256).read_bytes())["weight_map"]
        shards = {str(name) for name in weight_map.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeInput(f"{hub_files.INDEX} is not an index of shards", where=where) from error
    hub_files.check_shards(shards, names, where)
    return tuple(
        file
        for file in files
        if not file.path.endswith(".safetensors") or "/" in file.path or file.path in shards
    )


@contextlib.contextmanager
def _opened(
    address: str, start: int, end: int | None, validator: str | None, settings: HubSettings
) -> Iterator[ByteStream]:
    path = urlsplit(address).path.lstrip("/")
    match = _ADDRESS.search(path)
    if match is None:
        raise SourceError("is not an address of a file on the Hub", where=address)
    if settings.endpoint_is_set:
        address = f"{settings.endpoint}/{match[0]}"
    try:
        with settings.client.stream(address, start=start, end=end, validator=validator) as stream:
            yield stream
    except Refused as error:
        raise refusal(
            error.status, error.code, match["repository"], match["commit"], settings
        ) from error
