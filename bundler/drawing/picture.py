"""A small picture of memory for a terminal: letters, so that it is read without colour. Pure.

Each model has a letter: capitals are its weights (and all that it keeps in main memory beside an
accelerator), small letters its KV cache. `+` is what computing takes, `-` what the backend takes,
`.` is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from bundler.drawing.memory_bars import KINDS, Bar, Kind, Share, allot, in_words

Pieces = tuple[tuple[str, str], ...]
"""A line: texts with what they are (`A weights`, `free`, `frame`, `text`), for whoever colours it."""

FREE = "."
_MARKS: dict[Kind, str] = {"compute": "+", "backend": "-"}
NARROWEST = 40
WIDEST = 120


def letter(number: int) -> str:
    """Return the letter of the model with this number; `#` beyond the alphabet."""
    return ascii_uppercase[number] if number < len(ascii_uppercase) else "#"


def _mark(kind: Kind, number: int) -> str:
    own = letter(number)
    return _MARKS.get(kind) or (own.lower() if kind == "kv" else own)


def draw_memory(bars: Sequence[Bar], columns: int) -> list[Pieces]:
    """Return the picture as lines of at most `columns` cells (never less than 40, nor over 120)."""
    columns = max(NARROWEST, min(WIDEST, columns))
    lines: list[Pieces] = []
    for bar in bars:
        lines += [_head(bar), *_rows(bar, columns)]
    return [*lines, *_legend(bars, columns)]


def _head(bar: Bar) -> Pieces:
    return ((f"{bar.name:<6} ", "name"), (in_words(bar), "text"))


def _rows(bar: Bar, columns: int) -> Iterator[Pieces]:
    """Give one row with the largest of those that take turns, and one for each other of them."""
    cells = columns - 4
    first = bar.turns[:1]
    shares = (*bar.residents, *first)
    sizes = [share.total_bytes for share in shares]
    counts = allot([*sizes, max(0, bar.scale_bytes - sum(sizes))], bar.scale_bytes, cells)
    yield _row("", [_share(s, n) for s, n in zip(shares, counts, strict=False)], cells)
    start = sum(counts[: len(bar.residents)])
    for share in bar.turns[1:]:
        room = max(1, cells - start)
        sizes = [share.total_bytes, max(0, bar.scale_bytes - sum(s.total_bytes for s in bar.residents)
                                        - share.total_bytes)]  # fmt: skip
        count = allot(sizes, max(1, sum(sizes)), room)[0]
        yield _row(" " * start, [_share(share, count)], cells)


def _row(indent: str, shares: Sequence[Pieces], cells: int) -> Pieces:
    pieces = [piece for share in shares for piece in share]
    free = cells - len(indent) - sum(len(text) for text, _ in pieces)
    return (("  [", "frame"), (indent, "text"), *pieces, (FREE * free, "free"), ("]", "frame"))


def _share(share: Share, cells: int) -> Pieces:
    counts = allot([size for _, size in share.parts], max(1, share.total_bytes), cells)
    return tuple(
        (_mark(kind, share.number) * count, f"{share.number} {kind}")
        for (kind, _), count in zip(share.parts, counts, strict=True)
        if count
    )


def _legend(bars: Sequence[Bar], columns: int) -> list[Pieces]:
    """Name the models, then the marks that are there; each line within the columns."""
    models: dict[int, str] = {}
    turns: set[int] = set()
    kinds: set[Kind] = set()
    for bar in bars:
        turns |= {share.number for share in bar.turns}
        for share in (*bar.residents, *bar.turns):
            models[share.number] = share.model
            kinds |= {kind for kind, _ in share.parts}
    names = [
        (f"{letter(number)} {name}" + (" (takes turns)" if number in turns else ""), number)
        for number, name in sorted(models.items())
    ]
    marks = [f"{_what(kind)} {words}" for kind, words in KINDS if kind in kinds - {"host"}]
    return [
        *_wrapped([(text, f"{number} weights") for text, number in names], columns),
        *_wrapped([(text, "key") for text in (*marks, f"{FREE} free")], columns),
    ]


def _what(kind: Kind) -> str:
    return {"weights": "ABC", "kv": "abc"}.get(kind) or _MARKS[kind]


def _wrapped(words: Sequence[tuple[str, str]], columns: int) -> Iterator[Pieces]:
    """Give lines of words with two spaces between them."""
    line: list[tuple[str, str]] = [("  ", "text")]
    length = 2
    for text, kind in words:
        if len(line) > 1 and length + 2 + len(text) > columns:
            yield tuple(line)
            line, length = [("  ", "text")], 2
        gap = "  " if len(line) > 1 else ""
        line += [(gap, "text"), (text, kind)]
        length += len(gap) + len(text)
    yield tuple(line)
