"""Other places for well-known addresses: `BUNDLER_HTTP_MIRROR` rewrites how URLs begin.

::

    BUNDLER_HTTP_MIRROR="https://download.kiwix.org/=http://10.0.0.5/kiwix/ https://a/=https://b/"

Locks keep the publisher's own address; the mirror is only where the bytes are asked for, and they
are held against the lock's digest wherever they come from.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from urllib.parse import urlsplit

from bundler.errors import SourceError

VARIABLE = "BUNDLER_HTTP_MIRROR"


def mirrored(url: str, environment: Mapping[str, str]) -> str:
    """Return where to ask for `url`: the longest beginning that is listed is replaced.

    Raises:
        SourceError: the variable is not a list of `https://from/=https://to/`.
    """
    for begins, instead in _rules(environment.get(VARIABLE, "")):
        if url.startswith(begins):
            return instead + url.removeprefix(begins)
    return url


@functools.lru_cache(maxsize=8)
def _rules(text: str) -> tuple[tuple[str, str], ...]:
    """Read the variable: pairs of prefixes, longest first."""
    rules = []
    for entry in text.split():
        begins, equals, instead = entry.partition("=")
        if not equals or not _is_prefix(begins) or not _is_prefix(instead):
            raise SourceError(
                f"{VARIABLE} has {entry!r}, which is no rule",
                hint="write https://from/=https://to/, several with spaces between; both end in /",
            )
        rules.append((begins, instead))
    return tuple(sorted(rules, key=lambda rule: (-len(rule[0]), rule)))


def _is_prefix(text: str) -> bool:
    """Tell whether it can begin URLs: a whole host, so that no other one is meant by accident."""
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text.endswith("/")
