"""libzim's own checks of a ready ZIM and a walk through it. Runs in a child process with limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bundler.builtin.knowledge.limited_child import ChildFailed, answer_requests

MAX_WALKED = 2000
"""Entries that are opened and read, evenly spread; the checksum covers all bytes anyway."""
MAX_READ_BYTES = 64 * 2**20
"""Larger entries (videos, indexes) are opened, and their first bytes are read."""


def check_zim(path: str) -> dict[str, Any]:
    """Check all of a ZIM and return what libzim says of it.

    Raises:
        ChildFailed: it is damaged; the message says what was found.
    """
    from libzim.reader import Archive

    try:
        archive = Archive(path)
        if not archive.has_checksum:
            raise ChildFailed("has no checksum, so damage could not be noticed")
        if not archive.check():
            raise ChildFailed("its checksum or its structure is wrong")
        redirects = _walk(archive)
        _search(archive)
        return _facts(archive) | {"redirects": redirects}
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise ChildFailed(f"libzim says: {error}") from error


def sample(count: int, limit: int) -> Iterator[int]:
    """Give at most `limit` of the numbers below `count`, evenly spread, first and last among them.

    >>> list(sample(10, 4))
    [0, 3, 6, 9]
    """
    if count <= limit:
        yield from range(count)
        return
    for index in range(limit):
        yield index * (count - 1) // (limit - 1)


def _walk(archive: Any) -> int | None:
    """Read a sample of the entries; return how many are redirects, if all were looked at."""
    redirects = 0
    for number in sample(archive.all_entry_count, MAX_WALKED):
        entry = archive._get_entry_by_id(number)
        # Beyond `entry_count` lie metadata, indexes and the redirect to the main page.
        redirects += bool(entry.is_redirect and number < archive.entry_count)
        item = entry.get_item()
        content = memoryview(item.content)
        if len(content) != item.size:
            raise ChildFailed(f"entry {entry.path} has {len(content)} bytes, not {item.size}")
        bytes(content[: MAX_READ_BYTES if item.size <= MAX_READ_BYTES else 4096])
    return redirects if archive.all_entry_count <= MAX_WALKED else None


def _search(archive: Any) -> None:
    """Ask both indexes something, so that a broken one is noticed here and not at the far end."""
    from libzim.search import Query, Searcher
    from libzim.suggestion import SuggestionSearcher

    if archive.has_fulltext_index:
        results = Searcher(archive).search(Query().set_query("water"))
        for path in results.getResults(0, 10):
            archive.get_entry_by_path(path).get_item()
    for path in SuggestionSearcher(archive).suggest("a").getResults(0, 10):
        archive.get_entry_by_path(path).get_item()


def _facts(archive: Any) -> dict[str, Any]:
    return {
        "articles": archive.article_count,
        "entries": archive.entry_count,
        "media": archive.media_count,
        "full_text": bool(archive.has_fulltext_index),
        "titles": bool(archive.has_title_index),
        "has_main": bool(archive.has_main_entry),
        "metadata": {
            name: bytes(archive.get_metadata(name)).decode("utf-8", "replace")[:500]
            for name in ("Title", "Language", "Date", "Name", "License")
            if name in archive.metadata_keys
        },
    }


if __name__ == "__main__":
    answer_requests(lambda request: check_zim(request["path"]))
