"""The picture of memory as a drawing for a page: the same bars as on the terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bundler.drawing.memory_bars import KINDS, Bar, Kind, Share, in_words
from bundler.drawing.svg import Box, Drawing, Label, element, text_width
from bundler.value import format_bytes

WIDTH = 720.0
_BAR_HEIGHT, _TURN_HEIGHT = 34.0, 22.0
_HEAD = 26.0
_NAMES = 42.0
"""Room under a bar for the names of what is in it, in two rows."""
_KEY, _KEY_ROW, _KEY_WIDTH = 26.0, 20.0, 340.0
_TEXT, _SMALL = 13.0, 11.5

# Colours of the report; stripes and dots tell parts apart on paper and for those who see no colour.
STYLE = """
.mem text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;fill:#1d2227}
.mem .mem-soft{fill:#5b6670}.mem .mem-strong{font-weight:650}
.mem .mem-room{fill:#eef0f2;stroke:#d9dee3}.mem .mem-gap{stroke:#fff;stroke-width:1.5}
.mem .mem-weights{fill:#2d7d6b}.mem .mem-kv{fill:#d19a3c}.mem .mem-compute{fill:#7c8fb8}
.mem .mem-backend{fill:#9aa2a8}.mem .mem-host{fill:#8a6d9c}
.mem .mem-mark{stroke:#fff;stroke-opacity:.65;stroke-width:1.5;fill:none}
.mem .mem-dot{fill:#fff;fill-opacity:.75}
@media(prefers-color-scheme:dark){
.mem text{fill:#e6e4df}.mem .mem-soft{fill:#a2a9ae}.mem .mem-room{fill:#2a2f33;stroke:#3d444a}
.mem .mem-gap{stroke:#1f2225}
}
@media print{.mem text{fill:#000}.mem .mem-room{fill:none}.mem *{print-color-adjust:exact}}
"""


def memory_svg(bars: Sequence[Bar], *, identity: str, machine: str) -> str:
    """Return the drawing.

    Args:
        bars: the memories of one machine.
        identity: begins every id in it, so that several can stand on one page.
        machine: for whom.
    """
    height = sum(_height(bar) for bar in bars) + _key_height(bars)
    drawing = Drawing(WIDTH, height)
    top = 0.0
    for bar in bars:
        _draw_bar(drawing, bar, top, identity)
        top += _height(bar)
    _draw_key(drawing, bars, top + 14, identity)
    return drawing.markup(
        identity=identity, title=f"Memory of {machine}", style=STYLE,
        description=" ".join(_in_words(bar) for bar in bars), definitions=_patterns(identity),
        attributes={"class": "mem", "width": "100%"},
    )  # fmt: skip


def _height(bar: Bar) -> float:
    return _HEAD + _BAR_HEIGHT + _NAMES + _TURN_HEIGHT * max(0, len(bar.turns) - 1)


def _in_words(bar: Bar) -> str:
    """Return a bar for those who do not see it."""
    residents = [f"{s.model} {format_bytes(s.total_bytes)}" for s in bar.residents]
    turns = [f"{s.model} {format_bytes(s.total_bytes)}" for s in bar.turns]
    words = ", ".join(residents) or "no model stays"
    if turns:
        words += f"; one after the other: {', '.join(turns)}"
    used, there = format_bytes(bar.used_bytes), format_bytes(bar.limit_bytes)
    return f"{bar.name}: {used} of {there} taken: {words}."


def _patterns(identity: str) -> str:
    stripes = element("path", d="M-1 7L7 -1M-1 1L1 -1M5 7L7 5", style_class="mem-mark")
    dots = element("circle", cx=3, cy=3, r=1.2, style_class="mem-dot")
    return "".join(
        element("pattern", marks, id=f"{identity}-{kind}", width=6, height=6,
                patternUnits="userSpaceOnUse")
        for kind, marks in (("kv", stripes), ("compute", dots))
    )  # fmt: skip


def _draw_bar(drawing: Drawing, bar: Bar, top: float, identity: str) -> None:
    name = Label(bar.name, 0, top + 14, _TEXT, style="mem-strong")
    drawing.label(name)
    drawing.label(Label(in_words(bar), name.box.width + 10, top + 14, _TEXT, style="mem-soft"))
    y = top + _HEAD - 4
    drawing.add("rect", x=0.5, y=y, width=WIDTH - 1, height=_BAR_HEIGHT, rx=4,
                style_class="mem-room")  # fmt: skip
    x, start = 0.5, 0.5
    places = []
    for share in (*bar.residents, *bar.turns[:1]):
        width = _draw_share(drawing, share, x, y, _BAR_HEIGHT, bar, identity)
        places.append((share, x, width))
        x += width
        if share in bar.residents:
            start = x
    under = y + _BAR_HEIGHT
    for share, left, width in sorted(places, key=lambda place: -place[2]):
        _name_share(drawing, share, left, width, under, turns=share in bar.turns)
    under += _NAMES - 4
    for share in bar.turns[1:]:
        width = _draw_share(drawing, share, start, under, _TURN_HEIGHT - 6, bar, identity)
        _name_turn(drawing, share, start, width, under + 12)
        under += _TURN_HEIGHT


def _draw_share(
    drawing: Drawing, share: Share, x: float, y: float, height: float, bar: Bar, identity: str
) -> float:
    """Draw what one model takes; return how wide it is."""
    start = x
    for kind, size in share.parts:
        width = size / bar.scale_bytes * (WIDTH - 1)
        label = dict(KINDS)[kind]
        title = element("title", f"{share.model}: {label} {format_bytes(size)}")
        _fill(drawing, Box(x, y, width, height), kind, identity, title)
        x += width
    drawing.line(x, y, x, y + height, "mem-gap")
    return x - start


def _fill(drawing: Drawing, box: Box, kind: Kind, identity: str, title: str = "") -> None:
    """Draw a part in its colour, with its pattern where it has one."""
    drawing.add("rect", title, x=box.x, y=box.y, width=box.width, height=box.height,
                style_class=f"mem-{kind}")  # fmt: skip
    if kind in ("kv", "compute"):
        drawing.add("rect", x=box.x, y=box.y, width=box.width, height=box.height,
                    fill=f"url(#{identity}-{kind})", pointer_events="none")  # fmt: skip


def _name_share(
    drawing: Drawing, share: Share, x: float, width: float, under: float, *, turns: bool
) -> None:
    """Write a model's name and size under what it takes, in the second row where need be."""
    words = f"{share.model} {format_bytes(share.total_bytes)}" + (", in turns" if turns else "")
    middle, half = x + width / 2, text_width(words, _SMALL) / 2
    at = min(max(middle, half), WIDTH - half)
    shifts = (0.0, half * 0.5, -half * 0.5, half, -half)
    page = Box(0, 0, WIDTH, drawing.height)
    drawing.place(
        (
            Label(words, at + shift, under + 14 + 15 * row, _SMALL, "middle", "mem-soft")
            for row in (0, 1)
            for shift in shifts
        ),
        inside=page,
    )


def _name_turn(drawing: Drawing, share: Share, x: float, width: float, y: float) -> None:
    words = f"or {share.model} {format_bytes(share.total_bytes)}"
    right = x + width + 8
    if right + text_width(words, _SMALL) <= WIDTH:
        drawing.label(Label(words, right, y, _SMALL, style="mem-soft"))
    else:
        drawing.place([Label(words, x - 8, y, _SMALL, "end", "mem-soft")])


def _kinds(bars: Sequence[Bar]) -> Iterator[tuple[Kind, str]]:
    there = {
        kind for bar in bars for share in (*bar.residents, *bar.turns) for kind, _ in share.parts
    }
    return ((kind, words) for kind, words in KINDS if kind in there)


def _key_places(bars: Sequence[Bar]) -> Iterator[tuple[Kind, str, float, int]]:
    """Yield kind, words, x and row; in rows that are seen whole where a telephone shows a part."""
    x, row = 0.0, 0
    for kind, words in _kinds(bars):
        width = 24 + text_width(words, _SMALL)
        if x and x + width > _KEY_WIDTH:
            x, row = 0.0, row + 1
        yield kind, words, x, row
        x += width + 18


def _key_height(bars: Sequence[Bar]) -> float:
    return _KEY + _KEY_ROW * max((row for *_, row in _key_places(bars)), default=0)


def _draw_key(drawing: Drawing, bars: Sequence[Bar], top: float, identity: str) -> None:
    for kind, words, x, row in _key_places(bars):
        y = top + _KEY_ROW * row
        _fill(drawing, Box(x, y - 10, 18, 12), kind, identity)
        drawing.label(Label(words, x + 24, y, _SMALL, style="mem-soft"))
