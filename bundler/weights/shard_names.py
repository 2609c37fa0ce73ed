"""Names of the files of a model that is cut into several. Pure.

llama.cpp opens the first, `name-00001-of-00003.gguf`, and finds the others beside it by their names
(`llama_split_path` in `src/llama.cpp`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bundler.errors import UnsafeInput

_NAME = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL
)
_SHOWN = 5


class ShardName(NamedTuple):
    """What the name of a shard says."""

    stem: str
    """The name without number and ending; with its folder, when it was given with one."""
    number: int
    """From 1."""
    total: int


def shard_name(stem: str, number: int, count: int) -> str:
    """Return the name of one shard; `number` counts from 1.

    >>> shard_name("models/chat", 1, 3)
    'models/chat-00001-of-00003.gguf'
    """
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def read_shard_name(name: str) -> ShardName | None:
    """Return what the name of a shard says; None for a name that is none."""
    match = _NAME.fullmatch(name)
    return ShardName(match["stem"], int(match["number"]), int(match["count"])) if match else None


def in_order(names: Iterable[str]) -> list[str]:
    """Return the files of one model in order: its only file, or all its shards.

    Raises:
        UnsafeInput: these are several models, or shards are missing, or there are more than there
            can be.
    """
    ordered = sorted(names)
    found = {name: read_shard_name(name) for name in ordered}
    if len(ordered) == 1 and found[ordered[0]] is None:
        return ordered
    models = sorted(
        {(said.stem, said.total) if said else (name, 1) for name, said in found.items()}
    )
    if len(models) != 1:
        shown = ", ".join(dict.fromkeys(stem for stem, _ in models[: _SHOWN + 1]))
        raise UnsafeInput(
            f"{len(models)} different models: {shown}", hint="name one of the files in the recipe"
        )
    ((stem, count),) = models
    _check_numbers([said.number for said in found.values() if said], stem, count)
    return ordered


def _check_numbers(numbers: Sequence[int], stem: str, count: int) -> None:
    """Refuse what does not count from one to the end. `count` may be any lie: it is never counted to."""
    there = set(numbers)
    if not all(1 <= number <= count for number in numbers) or len(there) != len(numbers):
        raise UnsafeInput(
            f"its shards are numbered {', '.join(map(str, sorted(numbers)[:_SHOWN]))} of {count}",
            where=stem, hint="the files do not belong together; fetch them again",
        )  # fmt: skip
    missing = count - len(there)
    if missing:
        first = [n for n in range(1, min(count, len(there) + _SHOWN) + 1) if n not in there]
        more = "…" if missing > len(first) else ""
        raise UnsafeInput(
            f"{missing} of {count} shards are missing: {', '.join(map(str, first))}{more}",
            where=stem,
            hint=f"all of {shard_name(stem.rpartition('/')[2], 1, count)} and what follows are "
            "needed: name their folder or repository, with `include` where it holds more",
        )  # fmt: skip
