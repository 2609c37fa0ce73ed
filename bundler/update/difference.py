"""What differs between two versions of a bundle, item by item and in bytes, by their manifests alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from bundler.grouping import pieces_of
from bundler.manifest import BundledCorpus, BundledModel, BundleFile, Manifest
from bundler.update.delta import Side
from bundler.update.encoding import change_between, old_places
from bundler.value import Value, format_bytes

State = Literal["added", "removed", "changed", "same"]
_MOST_SAID = 8


class Item(Value):
    """A model, a corpus, a runtime or what else a bundle has, and what became of it."""

    kind: Literal["model", "corpus", "runtime", "station", "parity", "papers"]
    name: str
    state: State
    details: tuple[str, ...] = ()
    """In plain words."""
    size_bytes: int
    """In the newer version."""
    new_bytes: int
    """Of that, in files and segments that the older version has nowhere."""


class Difference(Value):
    """What differs."""

    before: Side
    after: Side
    items: tuple[Item, ...]
    size_bytes: int
    """Of the newer version."""
    kept_bytes: int
    """In files that stay as they are."""
    moved_bytes: int
    """In files that are there under another name."""
    shared_bytes: int
    """In segments of changed files that the older version has somewhere."""
    new_bytes: int
    """In what is left: the most that has to travel."""


def difference(old: Manifest, new: Manifest, before: Side, after: Side) -> Difference:
    """Return what differs between two versions."""
    change = change_between(old, new)
    fresh = _fresh_bytes(old, new, change.rebuilt)
    moved = sum(_size_of(new, one.path) for one in change.moved)
    rebuilt = sum(file.size_bytes for file in change.rebuilt)
    size = sum(file.size_bytes for file in new.files)
    new_bytes = sum(fresh.values())
    return Difference(
        before=before, after=after, items=tuple(_items(old, new, fresh)), size_bytes=size,
        kept_bytes=size - moved - rebuilt, moved_bytes=moved, shared_bytes=rebuilt - new_bytes,
        new_bytes=new_bytes,
    )  # fmt: skip


def _size_of(manifest: Manifest, path: str) -> int:
    return next(file.size_bytes for file in manifest.files if file.path == path)


def _fresh_bytes(old: Manifest, new: Manifest, rebuilt: Iterable[BundleFile]) -> dict[str, int]:
    """Return path → bytes that the older version has nowhere, as far as digests tell."""
    places, fresh = old_places(old), {}
    for file in rebuilt:
        pieces = () if file.sha256 in places else pieces_of(file, new.segment_bytes)
        fresh[file.path] = sum(p.size_bytes for p in pieces if p.sha256 not in places)
    return fresh


# -- items -------------------------------------------------------------------------------------------


def _items(old: Manifest, new: Manifest, fresh: Mapping[str, int]) -> Iterator[Item]:
    yield from _model_items(old, new, fresh)
    yield from _corpus_items(old, new, fresh)
    owned = {m.file for m in (*old.models, *new.models)} | {
        c.file for c in (*old.corpora, *new.corpora)
    }
    before, after = _groups(old, owned), _groups(new, owned)
    for key in sorted(set(before) | set(after)):
        kind, name = key
        yield _group_item(kind, name, before.get(key), after.get(key), fresh, old, new)


def _state(before: object, after: object, *, same: bool) -> State:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    return "same" if same else "changed"


def _model_items(old: Manifest, new: Manifest, fresh: Mapping[str, int]) -> Iterator[Item]:
    before = {(m.name, m.tier): m for m in old.models}
    after = {(m.name, m.tier): m for m in new.models}
    digests = _digests(old), _digests(new)
    for name, tier in sorted(set(before) | set(after)):
        was, now = before.get((name, tier)), after.get((name, tier))
        details = tuple(_model_details(was, now, digests)) if was and now else ()
        yield Item(
            kind="model", name=f"{name} ({tier})" if tier else name,
            state=_state(was, now, same=not details), details=details,
            size_bytes=_size_of(new, now.file) if now else 0,
            new_bytes=fresh.get(now.file, 0) if now else 0,
        )  # fmt: skip


def _digests(manifest: Manifest) -> dict[str, str]:
    return {file.path: file.sha256 for file in manifest.files}


def _model_details(
    was: BundledModel, now: BundledModel, digests: tuple[Mapping[str, str], Mapping[str, str]]
) -> Iterator[str]:
    other_bytes = digests[0][was.file] != digests[1][now.file]
    if was.origin != now.origin:
        yield from _origin_details(was, now)
    if was.quant != now.quant:
        yield f"quantized as {now.quant} instead of {was.quant}"
    elif other_bytes:
        yield f"quantized anew as {now.quant}"
    for words, a, b in (
        ("role", was.role, now.role),
        ("context", f"{was.context_tokens} tokens", f"{now.context_tokens} tokens"),
        ("KV cache", was.kv_cache, now.kv_cache),
        ("users at a time", was.parallel, now.parallel),
        ("residency", was.residency, now.residency),
        ("layers on the accelerator", was.gpu_layers, now.gpu_layers),
    ):
        if a != b:
            yield f"{words} {a} → {b}"


def _origin_details(
    was: BundledModel | BundledCorpus, now: BundledModel | BundledCorpus
) -> Iterator[str]:
    if was.origin.reference != now.origin.reference:
        yield f"from {now.origin.reference} instead of {was.origin.reference}"
    if was.origin.revision != now.origin.revision:
        yield f"revision {was.origin.revision[:12]} → {now.origin.revision[:12]}"
    if was.origin.licence != now.origin.licence:
        yield f"licence {was.origin.licence or 'unknown'} → {now.origin.licence or 'unknown'}"


def _corpus_items(old: Manifest, new: Manifest, fresh: Mapping[str, int]) -> Iterator[Item]:
    before, after = {c.name: c for c in old.corpora}, {c.name: c for c in new.corpora}
    digests = _digests(old), _digests(new)
    for name in sorted(set(before) | set(after)):
        was, now = before.get(name), after.get(name)
        details = tuple(_corpus_details(was, now, digests)) if was and now else ()
        yield Item(
            kind="corpus", name=name, state=_state(was, now, same=not details), details=details,
            size_bytes=_size_of(new, now.file) if now else 0,
            new_bytes=fresh.get(now.file, 0) if now else 0,
        )  # fmt: skip


def _corpus_details(
    was: BundledCorpus, now: BundledCorpus, digests: tuple[Mapping[str, str], Mapping[str, str]]
) -> Iterator[str]:
    yield from _origin_details(was, now)
    articles = was.coverage.articles_indexed, now.coverage.articles_indexed
    if articles[0] != articles[1]:
        yield f"articles {articles[0]} → {articles[1]}"
    if digests[0][was.file] != digests[1][now.file]:
        yield "other content"


# -- all other files, by what they are for ---------------------------------------------------------------

_Key = tuple[Literal["runtime", "station", "parity", "papers"], str]


def _groups(manifest: Manifest, owned: set[str]) -> dict[_Key, list[BundleFile]]:
    groups: dict[_Key, list[BundleFile]] = {}
    for file in manifest.files:
        if file.path not in owned:
            groups.setdefault(_group(file.path), []).append(file)
    return groups


def _group(path: str) -> _Key:
    first, _, rest = path.partition("/")
    if first == "runtime":
        return ("runtime", rest.split("/")[0])
    if first == "parity":
        return ("parity", "parity")
    if first == "app" or path.startswith("start") or path == "station.json":
        return ("station", "station")
    return ("papers", "reports, licences and the rest")


def _group_item(
    kind: Literal["runtime", "station", "parity", "papers"], name: str,
    was: list[BundleFile] | None, now: list[BundleFile] | None, fresh: Mapping[str, int],
    old: Manifest, new: Manifest,
) -> Item:  # fmt: skip
    details = list(_file_details(was or [], now or []))
    if kind == "runtime" and details and was and now:
        details = [*_component_details(old, new), *details]
    return Item(
        kind=kind, name=name, state=_state(was, now, same=not details),
        details=tuple(details) if was and now else (),
        size_bytes=sum(file.size_bytes for file in now or ()),
        new_bytes=sum(fresh.get(file.path, 0) for file in now or ()),
    )  # fmt: skip


def _file_details(was: list[BundleFile], now: list[BundleFile]) -> Iterator[str]:
    before = {file.path: file.sha256 for file in was}
    after = {file.path: file.sha256 for file in now}
    for words, paths in (
        ("changed", [p for p in after if p in before and before[p] != after[p]]),
        ("new", [p for p in after if p not in before]),
        ("gone", [p for p in before if p not in after]),
    ):
        if paths:
            named = f": {paths[0]}" if len(paths) == 1 else ""
            yield f"{len(paths)} file{'s' if len(paths) > 1 else ''} {words}{named}"


def _component_details(old: Manifest, new: Manifest) -> Iterator[str]:
    """Yield the programs and packages of the runtimes that are of other versions."""
    before, after = _versions(old), _versions(new)
    said = []
    for name in sorted(set(before) | set(after)):
        was, now = before.get(name, "none"), after.get(name, "none")
        if was != now:
            said.append(f"{name} {was} → {now}")
    yield from said[:_MOST_SAID]
    if len(said) > _MOST_SAID:
        yield f"and {len(said) - _MOST_SAID} more"


def _versions(manifest: Manifest) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for component in manifest.components:
        found.setdefault(str(component.get("name")), []).append(str(component.get("version")))
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


# -- in words --------------------------------------------------------------------------------------------

_SIGNS = {"added": "+", "removed": "-", "changed": "~", "same": "="}


def _called(item: Item) -> str:
    """Name an item; the only one of its kind needs no second word."""
    if item.kind == "papers":
        return item.name
    return item.name if item.kind == item.name else f"{item.kind} {item.name}"


def difference_lines(found: Difference) -> Iterator[str]:
    """Yield the difference as lines for people."""
    yield f"from {found.before}"
    yield f"to   {found.after}"
    for item in found.items:
        if item.state != "same":
            size = f", {format_bytes(item.size_bytes)}" if item.state != "removed" else ""
            some = f", {format_bytes(item.new_bytes)} of it new" if item.new_bytes else ""
            yield f"{_SIGNS[item.state]} {_called(item)}: {item.state}{size}{some}"
            yield from (f"    {detail}" for detail in item.details)
    same = [_called(item) for item in found.items if item.state == "same"]
    if same:
        yield f"= unchanged: {', '.join(same)}"
    yield (
        f"of {format_bytes(found.size_bytes)}: {format_bytes(found.kept_bytes)} stay as they are, "
        f"{format_bytes(found.moved_bytes)} change their name, "
        f"{format_bytes(found.shared_bytes)} are elsewhere in the older version, "
        f"{format_bytes(found.new_bytes)} are new"
    )
