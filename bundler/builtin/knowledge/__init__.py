"""Bodies of knowledge: a ready ZIM is checked, a folder of documents becomes one.

::

    folder.py          a folder → corpus.zim              zim.py            a ready ZIM → corpus.zim
    library.py         which file becomes which article   zim_layout.py     bounded reader of a ZIM
    documents.py       one document → HTML with anchors   zim_check.py      libzim's checks (child)
      markdown_text, html_page, plain_text, pdf_text      limited_child.py  a process with limits
    anchors.py         ids of headings and passages       writer.py         the reproducible writer
    cleaning.py        what markup may be in an article   coverage.py       the finished ZIM, read back
    drawing.py         what may be in an SVG              pages.py, illustration.py   looks

Everything a stranger wrote is taken apart in a child process with limits of memory and time, and
goes through one sanitiser on its way into the ZIM. No article has scripts, so a ZIM made here
needs none, and a reader may forbid them.

For plugins: `build_zim` makes the ZIM of whatever a corpus kind has turned into documents, and
`zim_tool` is its part of the kind's fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bundler.hookspecs import CorpusKind, hookimpl
from bundler.later import exports, later

if TYPE_CHECKING:
    from bundler.builtin.knowledge.folder import FolderCorpus, build_zim, zim_tool
    from bundler.builtin.knowledge.zim import ZimCorpus

_PLACES = {
    "FolderCorpus": "bundler.builtin.knowledge.folder:FolderCorpus",
    "ZimCorpus": "bundler.builtin.knowledge.zim:ZimCorpus",
    "build_zim": "bundler.builtin.knowledge.folder:build_zim",
    "zim_tool": "bundler.builtin.knowledge.folder:zim_tool",
}
__getattr__ = exports(_PLACES)


@hookimpl
def bundler_corpora() -> Sequence[CorpusKind]:
    """Give the two kinds we ship: `folder` and `zim`."""
    return [
        later(_PLACES["FolderCorpus"], name="folder"),
        later(_PLACES["ZimCorpus"], name="zim"),
    ]


__all__ = ["FolderCorpus", "ZimCorpus", "build_zim", "bundler_corpora", "zim_tool"]
