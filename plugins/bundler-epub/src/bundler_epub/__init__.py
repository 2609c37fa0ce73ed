"""The corpus kind `epub`: e-books become one searchable ZIM.

::

    archive.py    the ZIP container, read with limits        markup.py    XML and XHTML, read safely
    package.py    container.xml → package → spine, titles    pages.py     book pages and the list
    corpus.py     all books → documents → bundler's own `build_zim`
"""

from __future__ import annotations

from collections.abc import Sequence

from bundler.hookspecs import CorpusKind, hookimpl
from bundler_epub.corpus import EpubCorpus


@hookimpl
def bundler_corpora() -> Sequence[CorpusKind]:
    """Give the corpus kind `epub`."""
    return [EpubCorpus()]


__all__ = ["EpubCorpus", "bundler_corpora"]
