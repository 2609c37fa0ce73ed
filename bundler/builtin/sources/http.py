"""`https://…`: one file at an address, with the SHA-256 that somebody states for it.

The digest comes from the recipe, or from what the publisher puts beside the file (`.meta4`,
`.sha256`). An address alone says nothing about what its bytes should be, so without any of them
nothing is locked.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from urllib.parse import unquote, urlsplit, urlunsplit

from bundler.builtin.sources.connection import STALL_SECONDS, Client, Refused, placed, redirected
from bundler.builtin.sources.naming import check_names
from bundler.builtin.sources.published import Statement, metalink_for, sha256_for
from bundler.errors import DamagedError, SourceError
from bundler.hookspecs import ByteStream
from bundler.lock import LockedFile, Resolution
from bundler.pacing import DEFAULT_PATIENCE, Patience, patiently
from bundler.recipe import SourceReference
from bundler.world import World

_CHECKSUMS_BYTES = 1 << 20
_METALINK_BYTES = 4 << 20


class HttpSource:
    """Files on any web server."""

    name = "http"

    def __init__(
        self, *, stall_seconds: float = STALL_SECONDS, patience: Patience = DEFAULT_PATIENCE
    ) -> None:
        self._stall_seconds = stall_seconds
        self._patience = patience

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Find out size and SHA-256 from the recipe and from what is published beside the file."""
        url = _checked(reference.locator)
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        check_names([name], url)
        if world.offline:
            raise SourceError(
                "cannot be locked: no connection may be opened",
                where=url,
                hint="run `bundler lock` once without --offline",
            )
        client = self._client(world)
        stated = self._stated(client, url, name)
        sha256 = _one_digest(reference, stated, url)
        size = stated.size_bytes
        if size is None:
            size = patiently(lambda: _size(client, url), self._patience)
        file = LockedFile(
            path=name, size_bytes=size, sha256=sha256, addresses=_addresses(url, stated)
        )
        return Resolution(
            source=self.name,
            reference=str(reference),
            revision=f"sha256:{sha256}",
            files=(file,),
        )

    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> AbstractContextManager[ByteStream]:
        """Open a URL at a byte."""
        if world.offline:
            raise SourceError("no connection may be opened", where=address)
        return self._client(world).stream(
            _checked(address), start=start, end=end, validator=validator
        )

    def _client(self, world: World) -> Client:
        return Client(world.environment, self._stall_seconds)

    def _stated(self, client: Client, url: str, name: str) -> Statement:
        """Return what is published beside the file; an empty statement when nothing is."""
        metalink = self._beside(client, _with_suffix(url, ".meta4"), _METALINK_BYTES)
        # A page instead of a 404 is common; only what claims to be a Metalink is read as one.
        if metalink is not None and b"urn:ietf:params:xml:ns:metalink" in metalink:
            found = metalink_for(metalink, name, _with_suffix(url, ".meta4"))
            if found is not None and found.sha256 is not None:
                return found
        checksums = self._beside(client, _with_suffix(url, ".sha256"), _CHECKSUMS_BYTES)
        if checksums is not None:
            return Statement(name, sha256=sha256_for(checksums.decode("utf-8", "replace"), name))
        return Statement(name)

    def _beside(self, client: Client, url: str, limit_bytes: int) -> bytes | None:
        try:
            return patiently(lambda: client.read(url, limit_bytes), self._patience)
        except Refused:
            return None  # Not published. A network that fails is another error, and is raised.


def _checked(url: str) -> str:
    """Return a URL that may go into a lock and onto the wire.

    Raises:
        SourceError: it is none, or it carries a password, which a lock would give away.
    """
    try:
        split = urlsplit(url)
        has_host, user = bool(split.hostname), split.username
        _ = split.port
    except ValueError as error:
        raise SourceError(f"is not an address: {error}", where=url) from error
    if split.scheme not in ("http", "https") or not has_host or re.search(r"[\s\x00-\x1f]", url):
        raise SourceError("is not an http(s) address", where=url)
    if user is not None:
        raise SourceError(
            "carries a user name or password, which would be written into the lock",
            where=urlunsplit(split._replace(netloc=split.netloc.rpartition("@")[2])),
            hint="fetch the file yourself and name it with `path:`",
        )
    return urlunsplit(split._replace(fragment=""))


def _with_suffix(url: str, suffix: str) -> str:
    split = urlsplit(url)
    return urlunsplit(split._replace(path=split.path + suffix, query=""))


def _one_digest(reference: SourceReference, stated: Statement, url: str) -> str:
    if reference.sha256 is not None:
        if stated.sha256 not in (None, reference.sha256):
            raise DamagedError(
                f"its publisher states SHA-256 {stated.sha256[:12]}…, "
                f"the recipe {reference.sha256[:12]}…",
                where=url,
                hint="the file was replaced since the recipe was written, or one of them is wrong",
            )
        return reference.sha256
    if stated.sha256 is None:
        raise SourceError(
            "nothing states what its bytes should be: neither .meta4 nor .sha256 lies beside it",
            where=url,
            hint='add the digest to the recipe: source = { source = "http", locator = "…", '
            'sha256 = "<64 digits>" }; `sha256sum FILE` prints it',
        )
    return stated.sha256


def _addresses(url: str, stated: Statement) -> tuple[str, ...]:
    """Return the address itself and the publisher's mirrors, none weaker than the address."""
    addresses = [url]
    for mirror in stated.addresses():
        try:
            addresses.append(redirected(url, _checked(mirror)))
        except SourceError:
            continue  # A mirror over ftp, or over http for an https file, is not needed.
    return tuple(dict.fromkeys(addresses))


def _size(client: Client, url: str) -> int:
    try:
        with client.request("HEAD", url) as answer:
            size = placed(answer)[1]
    except Refused:
        size = None  # Some servers know no HEAD.
    if size is None:
        with client.request("GET", url) as answer:
            size = placed(answer)[1]
    if size is None:
        raise SourceError(
            "the server does not say how long it is",
            where=url,
            hint="fetch the file yourself and name it with `path:`",
        )
    return size
