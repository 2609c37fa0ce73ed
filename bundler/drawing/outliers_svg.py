"""An inspection as a drawing: how uneven channels are and how large values get, layer by layer. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundler.drawing.svg import Box, Drawing, Label, path_of
from bundler.inspection import MASSIVE_RATIO, SINK_SHARE, UNEVEN_RATIO, Inspection, Outliers

WIDTH = 760.0
_LEFT, _RIGHT = 58.0, 190.0
_PANEL, _GAP, _HEAD = 180.0, 62.0, 66.0
_TEXT, _SMALL = 13.0, 11.5
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_WORDS = {
    "attn_norm": "behind the attention's norm", "ffn_norm": "behind the feed-forward's norm",
    "attn_output": "into the attention's output", "ffn_down": "into the feed-forward's output",
    "ffn_down_exps": "into the experts' output", "ffn_down_shexp": "into the shared expert's output",
}  # fmt: skip

STYLE = """
.out text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;fill:#1d2227}
.out .out-ground{fill:#fff}.out .out-soft{fill:#5b6670}.out .out-strong{font-weight:650}
.out .out-grid{stroke:#e3e7ea}.out .out-frame{stroke:#9aa2a8}
.out .out-limit{stroke:#b4472f;stroke-dasharray:5 4}.out .out-limit-text{fill:#b4472f}
.out .out-line{fill:none;stroke-width:2}.out .out-after{stroke-dasharray:2 4}
.out .c0{stroke:#2f6f9f;color:#2f6f9f}.out .c1{stroke:#2d7d6b;color:#2d7d6b}
.out .c2{stroke:#a8741a;color:#a8741a}.out .c3{stroke:#b4552f;color:#b4552f}
.out circle{stroke:none;fill:currentColor}
@media(prefers-color-scheme:dark){
.out text{fill:#e6e4df}.out .out-ground{fill:#17191b}.out .out-soft{fill:#a2a9ae}
.out .out-grid{stroke:#2a2f33}.out .out-frame{stroke:#59616a}
.out .out-limit{stroke:#f0907a}.out .out-limit-text{fill:#f0907a}
.out .c0{stroke:#7fb2da;color:#9cc4e4}.out .c1{stroke:#7fcfb6;color:#7fcfb6}
.out .c2{stroke:#e0b968;color:#e0b968}.out .c3{stroke:#e8976b;color:#e8976b}
}
@media print{.out text{fill:#000}.out .out-ground{fill:none}.out *{print-color-adjust:exact}}
"""
_COLOURS = 4


@dataclass(frozen=True)
class _Line:
    """One curve: what it is called and a value for each layer."""

    name: str
    points: Mapping[int, float]
    colour: int
    after: bool = False


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: Sequence[_Line]
    limit: float
    limit_words: str
    logarithmic: bool = True


def outliers_svg(found: Inspection, *, identity: str = "outliers") -> str:
    """Return the drawing of an inspection; every text in it is escaped."""
    panels = [panel for panel in _panels(found) if panel.lines]
    height = _HEAD + len(panels) * (_PANEL + _GAP)
    drawing = Drawing(WIDTH, height)
    drawing.add("rect", width=WIDTH, height=height, style_class="out-ground")
    drawing.label(Label(found.before.title[:80], 16, 24, 16, style="out-strong"))
    drawing.label(Label(_subtitle(found), 16, 44, _SMALL, style="out-soft"))
    for number, panel in enumerate(panels):
        top = _HEAD + number * (_PANEL + _GAP) + 22
        _draw(drawing, panel, Box(_LEFT, top, WIDTH - _LEFT - _RIGHT, _PANEL - 10))
    return drawing.markup(
        identity=identity, title=f"Outliers of {found.before.title}", style=STYLE,
        description=" ".join(found.meaning[:3]), attributes={"class": "out", "width": "100%"},
    )  # fmt: skip


def _subtitle(found: Inspection) -> str:
    words = f"{found.before.architecture}, {found.before.tokens:,} tokens of {found.text}"[:90]
    return f"{words}; dotted: after {found.way}" if found.after else words


def _panels(found: Inspection) -> list[_Panel]:
    sides = [(found.before, False)] + ([(found.after, True)] if found.after else [])
    return [
        _Panel(
            "worst channel over the median one", [one for side in sides for one in _channels(*side)],
            UNEVEN_RATIO, "uneven",
        ),
        _Panel(
            "largest value of the residual stream over its token's median",
            [_Line("residual stream", {m.layer: m.ratio for m in side.massive}, 0, after)
             for side, after in sides if side.massive],
            MASSIVE_RATIO, "massive",
        ),
        _Panel(
            "share of attention that one token draws",
            [_Line("the strongest token", {s.layer: s.most_share for s in side.sinks}, 2, after)
             for side, after in sides if side.sinks],
            SINK_SHARE, "a sink", logarithmic=False,
        ),
    ]  # fmt: skip


def _channels(side: Outliers, after: bool) -> list[_Line]:
    """Give one line for each kind of place, in the order of the table of words."""
    by_kind: dict[str, dict[int, float]] = {}
    for spread in side.spreads:
        match = _LAYER.fullmatch(spread.place)
        if match and match[2] in _WORDS:
            by_kind.setdefault(match[2], {})[int(match[1])] = spread.channel_ratio
    kinds = [kind for kind in _WORDS if kind in by_kind]
    return [
        _Line(_WORDS[kind], dict(sorted(by_kind[kind].items())), number % _COLOURS, after)
        for number, kind in enumerate(kinds)
    ]


def _draw(drawing: Drawing, panel: _Panel, plot: Box) -> None:
    drawing.label(Label(panel.title, plot.x - 42, plot.y - 10, _TEXT, style="out-strong"))
    values = [value for line in panel.lines for value in line.points.values()]
    layers = sorted({layer for line in panel.lines for layer in line.points})
    low, high = _range(values, panel)

    def place(layer: int, value: float) -> tuple[float, float]:
        across = (layers.index(layer) + 0.5) / len(layers)
        return plot.x + plot.width * across, plot.y + plot.height * (
            1 - _share(value, low, high, panel)
        )

    for tick in _ticks(low, high, panel):
        y = place(layers[0], tick)[1]
        drawing.line(plot.x, y, plot.x + plot.width, y, "out-grid")
        words = f"{tick:g}" if panel.logarithmic else f"{tick:.0%}"
        drawing.label(Label(words, plot.x - 8, y + 4, _SMALL, "end", "out-soft"))
    if low <= panel.limit <= high:
        y = place(layers[0], panel.limit)[1]
        drawing.line(plot.x, y, plot.x + plot.width, y, "out-limit")
        drawing.place([Label(panel.limit_words, plot.x + plot.width - 4, y + down, _SMALL, "end",
                             "out-limit-text") for down in (-5, 13)])  # fmt: skip
    drawing.line(
        plot.x, plot.y + plot.height, plot.x + plot.width, plot.y + plot.height, "out-frame"
    )
    _draw_layers(drawing, layers, plot)
    for line in panel.lines:
        _draw_line(drawing, line, [place(layer, value) for layer, value in line.points.items()])
    _draw_key(drawing, panel, plot)


def _draw_layers(drawing: Drawing, layers: Sequence[int], plot: Box) -> None:
    step = max(1, math.ceil(len(layers) / 16))
    for number, layer in enumerate(layers):
        if number % step == 0:
            x = plot.x + plot.width * (number + 0.5) / len(layers)
            drawing.label(
                Label(str(layer), x, plot.y + plot.height + 15, _SMALL, "middle", "out-soft")
            )
    drawing.label(Label("layer", plot.x + plot.width + 8, plot.y + plot.height + 15, _SMALL,
                        style="out-soft"))  # fmt: skip


def _draw_line(drawing: Drawing, line: _Line, points: Sequence[tuple[float, float]]) -> None:
    style = f"out-line c{line.colour}" + (" out-after" if line.after else "")
    if len(points) > 1:
        drawing.add("path", d=path_of(points), style_class=style)
    for x, y in points:
        drawing.add("circle", cx=x, cy=y, r=2.6, style_class=f"c{line.colour}")


def _draw_key(drawing: Drawing, panel: _Panel, plot: Box) -> None:
    x, y = plot.x + plot.width + 14, plot.y + 12
    for line in panel.lines:
        if not line.after:
            drawing.line(x, y - 4, x + 16, y - 4, f"out-line c{line.colour}")
            drawing.label(Label(line.name, x + 22, y, 10.0, style="out-soft"))
            y += 18


def _range(values: Sequence[float], panel: _Panel) -> tuple[float, float]:
    if not panel.logarithmic:
        return 0.0, 1.0
    least = min(value for value in [*values, panel.limit] if value > 0)
    return least / 1.3, max([*values, panel.limit]) * 1.3


def _share(value: float, low: float, high: float, panel: _Panel) -> float:
    if panel.logarithmic:
        return (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _ticks(low: float, high: float, panel: _Panel) -> list[float]:
    if not panel.logarithmic:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0, 3.0) if high / low < 1000 else (1.0,)
    return [
        step * 10.0**power for power in powers for step in steps if low < step * 10.0**power < high
    ]
