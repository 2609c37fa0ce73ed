"""The corpus kind `zim`: a ready ZIM is checked to its last byte and taken as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bundler.builtin.knowledge.limited_child import ChildFailed, LimitedChild
from bundler.builtin.knowledge.zim_layout import check_header
from bundler.errors import DamagedError, UnsafeInput
from bundler.fingerprint import code_digest
from bundler.hookspecs import Task
from bundler.proof import Coverage
from bundler.store import share_or_copy

_MEMORY_BYTES = 8 * 2**30
_SLOWEST_BYTES_PER_SECOND = 2 * 2**20
"""A ZIM on a slow USB stick; the time limit of the check follows from it."""
_PART = re.compile(r"\.zim[a-z]{2}$", re.IGNORECASE)
_READ_BYTES = re.compile(r"^rchar: (\d+)$", re.MULTILINE)


class ZimCorpus:
    """Checks a ready ZIM and links it into the result; nothing is copied where it can be shared."""

    name = "zim"

    def tool(self) -> str:
        """Return the versions of what judges the file."""
        from importlib.metadata import version

        own = code_digest(Path(__file__).parent)
        return f"bundler {own}; libzim {version('libzim')}"

    def run(self, task: Task) -> Mapping[str, Any]:
        """Check the one input and leave it as `corpus.zim`.

        Raises:
            DamagedError: it is no ZIM, cut short, or a byte of it is not what it was.
            UnsafeInput: not exactly one ZIM file.
        """
        name, path = _only_zim(task.inputs)
        size = path.stat().st_size
        check_header(path, name)
        task.progress(0, size, "bytes")
        facts = _checked_by_libzim(name, path, size, _bytes_read(task.progress, size))
        task.progress(size, size, "bytes")
        share_or_copy(path.resolve(), task.output / "corpus.zim", link=True)
        return _coverage(task.parameters, name, facts).model_dump(mode="json")


def _only_zim(inputs: Mapping[str, Path]) -> tuple[str, Path]:
    """Return the one ZIM among the inputs. Raises UnsafeInput for parts, several or none."""
    parts = sorted(name for name in inputs if _PART.search(name))
    if parts:
        whole = _PART.sub(".zim", parts[0])
        raise UnsafeInput(
            f"is one of {len(parts)} parts of a split ZIM",
            where=parts[0],
            hint=f"join them first: cat {_PART.sub('.zim', parts[0])}?? > {whole}",
        )
    if len(inputs) != 1:
        raise UnsafeInput(
            f"a corpus of kind 'zim' is exactly one .zim file, this has {len(inputs)} files",
            where=", ".join(sorted(inputs)[:5]),
            hint="name the file in the recipe, or use kind 'folder' for documents",
        )
    return next(iter(inputs.items()))


def _checked_by_libzim(
    name: str, path: Path, size: int, watch: Callable[[int], None]
) -> dict[str, Any]:
    seconds = 300 + size / _SLOWEST_BYTES_PER_SECOND
    with LimitedChild("bundler.builtin.knowledge.zim_check", memory_bytes=_MEMORY_BYTES) as child:
        try:
            facts: dict[str, Any] = child.ask(
                {"path": str(path)}, seconds=seconds, while_waiting=watch
            )
        except ChildFailed as failure:
            raise DamagedError(
                f"is damaged: {failure}",
                where=name,
                hint="fetch it again and compare its SHA-256 with the publisher's",
            ) from failure
    return facts


def _bytes_read(progress: Callable[..., None], size: int) -> Callable[[int], None]:
    """Return what reports how much a child has read, as Linux counts it; silent elsewhere."""
    reported = 0

    def watch(pid: int) -> None:
        nonlocal reported
        account = Path(f"/proc/{pid}/io")
        if not account.exists():
            return
        read = _READ_BYTES.search(account.read_text())
        done = min(int(read[1]), size) if read else 0
        if done > reported:
            reported = done
            progress(done, size, "bytes")

    return watch


def _coverage(parameters: Mapping[str, Any], name: str, facts: Mapping[str, Any]) -> Coverage:
    metadata = facts["metadata"]
    # A recipe that gives no title is planned with the corpus's name; the file knows a better one.
    asked = parameters.get("title")
    chosen = asked if asked != parameters.get("name") else ""
    return Coverage(
        title=str(chosen or metadata.get("Title") or asked or name),
        language=str(metadata.get("Language") or parameters.get("language") or "und"),
        articles_found=facts["articles"],
        articles_indexed=facts["articles"] if facts["full_text"] else 0,
        redirects=facts["redirects"] or 0,
        media=facts["media"],
        full_text=facts["full_text"],
        notes=tuple(_notes(facts)),
    )


def _notes(facts: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"counts are libzim's own: {facts['articles']:,} articles among {facts['entries']:,} "
        "entries; the index is the publisher's and was not compared with each article"
    )
    if facts["redirects"] is None:
        yield "redirects were not counted: there are too many entries"
    if not facts["full_text"]:
        yield "has no full-text index: only titles can be searched"
    if not facts["titles"]:
        yield "has no title index: titles are searched slowly"
    if not facts["has_main"]:
        yield "has no main page"
