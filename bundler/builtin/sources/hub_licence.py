"""What licence a model on the Hub is under, in the words of SPDX where its card allows it."""

from __future__ import annotations

from urllib.parse import quote

from bundler.builtin.sources.hub_listing import Listing

# The Hub's identifiers (hf.co/docs/hub/repositories-licenses) that are SPDX identifiers in lower
# case, with SPDX's spelling. Others (llama3.1, gemma…) are licences of their publishers.
_SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unlicense", "CC0-1.0",
        "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
        "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-3.0",
        "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0",
        "GPL-2.0", "GPL-3.0", "LGPL-2.1", "LGPL-3.0", "AGPL-3.0", "MPL-2.0", "EPL-2.0", "EUPL-1.1",
        "EUPL-1.2", "Artistic-2.0", "BSL-1.0", "OFL-1.1", "WTFPL", "PostgreSQL", "NCSA", "PDDL-1.0",
        "ODC-By-1.0", "ODbL-1.0", "MS-PL", "OSL-3.0", "AFL-3.0", "ECL-2.0", "LPPL-1.3c",
        "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0",
    )
}  # fmt: skip
_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "COPYING")


def licence_of(listing: Listing, where: str) -> tuple[str, str]:
    """Return the licence (SPDX where known, else the publisher's word) and where its text is.

    `where` is the repository's page.
    """
    word = _text(listing.card.get("license"))
    if word == "other" or not word:
        word = _text(listing.card.get("license_name")) or word or "unknown"
    link = _text(listing.card.get("license_link"))
    if not link.startswith("https://"):
        names = {entry.name for entry in listing.entries}
        own = [name for name in (link, *_LICENCE_FILES) if name in names]
        link = f"{where}/blob/{listing.commit}/{quote(own[0])}" if own else ""
    return _SPDX.get(word.lower(), word), link


def _text(given: object) -> str:
    """Return a short printable text; lists (a card may name several) are joined with AND."""
    if isinstance(given, list | tuple):
        return " AND ".join(filter(None, map(_text, given)))[:200]
    text = given if isinstance(given, str) else ""
    return text.strip()[:200] if text.isprintable() else ""
