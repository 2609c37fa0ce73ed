"""The frontiers of a plan as one drawing, which stands alone in a file. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from bundler.advice.frontier import Frontier, FrontierLine, FrontierPoint
from bundler.drawing.frontier_axes import (
    damage_ticks,
    memory_ticks,
    scales_of,
    short_bytes,
    short_tokens,
)
from bundler.drawing.svg import Box, Drawing, Label, path_of, text_width
from bundler.value import format_bytes

WIDTH = 960.0
_HEAD_HEIGHT = 88.0
_PLOT_X, _PLOT_Y, _PLOT_WIDTH = 92.0, 70.0, 560.0
"""Where the curves begin in a panel, and how far they go."""
_BELOW_PLOT = 62.0
_TALL, _LOW = 268.0, 150.0
"""Height of a plot with many offers, and of one with few."""
_LIST_X = 684.0
"""Where the list of contexts begins."""
_ROW = 24.0
_TEXT, _SMALL, _NAME = 13.0, 11.5, 12.0

# Light and dark from one place; a reader's printer gets the light one.
STYLE = """
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;fill:#1d2227}
.ground{fill:#fbfaf7}.card{fill:#fff;stroke:#d9dee3}.soft{fill:#5b6670}.grid{stroke:#e9ecef}
.frame{stroke:#aab2b9;fill:none}.strong{font-weight:650}.over{fill:#a3341f;fill-opacity:.055}
.limit{stroke:#a3341f;stroke-width:1.5}.left{stroke:#a3341f;stroke-width:1.5;stroke-dasharray:5 4}
.limit-text{fill:#a3341f}.curve{fill:none;stroke-width:1.4;stroke-linejoin:round}
.asked{stroke-width:3}.ring{fill:none;stroke:#1d2227;stroke-width:2}
.halo{paint-order:stroke;stroke:#fff;stroke-width:3.5px;stroke-linejoin:round}
.c0{stroke:#5a93c0;color:#3f78a6;stroke-dasharray:2 2.5}.c1{stroke:#1f6f5c;color:#1f6f5c}
.c2{stroke:#b98a2e;color:#8f6717;stroke-dasharray:7 2.5}
.c3{stroke:#c2693f;color:#a9522a;stroke-dasharray:4 2.5}
.c4{stroke:#a34d6f;color:#a34d6f;stroke-dasharray:8 2 2 2}.c5{stroke:#6b4d94;color:#6b4d94}
.dot{stroke-dasharray:none;stroke-width:1.5}.f16{fill:currentColor}.other{fill:#fff}
text.own{fill:currentColor;stroke:none}
@media(prefers-color-scheme:dark){
text{fill:#e6e4df}.ground{fill:#17191b}.card{fill:#1f2225;stroke:#33393e}.soft{fill:#a2a9ae}
.grid{stroke:#2a2f33}.frame{stroke:#59616a}.over{fill:#f0907a;fill-opacity:.08}
.limit,.left{stroke:#f0907a}.limit-text{fill:#f0907a}.ring{stroke:#e6e4df}
.halo{stroke:#1f2225}.other{fill:#1f2225}text.own{fill:currentColor}
.c0{stroke:#7fb2da;color:#9cc4e4}.c1{stroke:#7fcfb6;color:#7fcfb6}.c2{stroke:#e0b968;color:#e0b968}
.c3{stroke:#e8976b;color:#e8976b}.c4{stroke:#d98aa8;color:#d98aa8}.c5{stroke:#b79fe0;color:#b79fe0}
}
@media print{text{fill:#000}.ground{fill:none}}
"""
_COLOURS = 6


def frontier_svg(frontiers: Sequence[Frontier], *, title: str, machine: str) -> str:
    """Return the drawing: for each model, what its memory buys at several contexts.

    Args:
        frontiers: one for each model of each tier.
        title: the bundle's.
        machine: for whom; with several tiers each panel names its own.
    """
    height = _HEAD_HEIGHT + sum(_panel_height(frontier) for frontier in frontiers)
    drawing = Drawing(WIDTH, height)
    drawing.add("rect", width=WIDTH, height=height, style_class="ground")
    drawing.label(Label(f"{title}: what memory buys", 32, 42, 22, style="strong"))
    drawing.label(
        Label(f"For {machine}. Each point is an offer that no other beats in memory and quality.",
              32, 68, _TEXT, style="soft")
    )  # fmt: skip
    top = _HEAD_HEIGHT
    for frontier in frontiers:
        _Panel(drawing, frontier, top).draw()
        top += _panel_height(frontier)
    return drawing.markup(
        identity="frontier", title=f"{title}: quality against memory against context",
        description=" ".join(_in_words(frontier) for frontier in frontiers), style=STYLE,
        attributes={"width": f"{WIDTH:.0f}", "height": f"{height:.0f}"},
    )  # fmt: skip


def _plot_height(frontier: Frontier) -> float:
    """Return a plot's height: room for the names in it and for the list beside it."""
    most = max((len(line.points) for line in frontier.lines), default=0)
    return max(_TALL if most > 4 else _LOW, (len(frontier.lines) + 3) * _ROW)


def _panel_height(frontier: Frontier) -> float:
    return _PLOT_Y + _plot_height(frontier) + _BELOW_PLOT + 16


def _in_words(frontier: Frontier) -> str:
    """Return what a panel shows, for those who do not see it."""
    within = "; ".join(
        f"{line.context_tokens} tokens: {_best_in_words(best_within(line, frontier.left_bytes))}"
        for line in frontier.lines
    )
    return (
        f"{_name(frontier)}: the best within {format_bytes(frontier.left_bytes)} of "
        f"{frontier.limit}, which the other models leave, at {within}."
    )


def best_within(line: FrontierLine, limit_bytes: int) -> FrontierPoint | None:
    """Return the point of least damage that keeps a limit."""
    fitting = [point for point in line.points if point.memory_bytes <= limit_bytes]
    return min(fitting, key=lambda point: point.damage, default=None)


def _best_in_words(point: FrontierPoint | None) -> str:
    return "nothing fits" if point is None else f"{_offer(point)}, {_damage(point.damage)}"


def _offer(point: FrontierPoint) -> str:
    """Return an offer's short name: the KV cache is named where it is not the usual one."""
    return point.quant + ("" if point.kv_cache == "f16" else f" · {point.kv_cache}")


def _damage(damage: float) -> str:
    return "0" if damage <= 0 else f"{damage:.2g}"


def _name(frontier: Frontier) -> str:
    return frontier.model + (f" on {frontier.tier}" if frontier.tier else "")


class _Panel:
    """Draws one model. Holds where things are."""

    def __init__(self, drawing: Drawing, frontier: Frontier, top: float) -> None:
        self._drawing = drawing
        self._frontier = frontier
        self._top = top
        self._plot = Box(_PLOT_X, _PLOT_Y + top, _PLOT_WIDTH, _plot_height(frontier))
        self._scales = scales_of(frontier, self._plot)
        own = [line.context_tokens for line in frontier.lines].index(frontier.context_tokens)
        # The recipe's context always has the same colour; shorter ones are cooler, longer warmer.
        self._colours = [
            f"c{(number - own + 1) % _COLOURS}" for number in range(len(frontier.lines))
        ]

    def draw(self) -> None:
        """Draw everything; what must be readable is placed before what may be left out."""
        self._draw_card()
        self._draw_axes()
        self._draw_limits()
        self._draw_lines()
        self._draw_names()
        self._draw_list()

    def _draw_card(self) -> None:
        frontier, drawing = self._frontier, self._drawing
        drawing.add("rect", x=16.0, y=self._top, width=WIDTH - 32,
                    height=_panel_height(frontier) - 16, rx=12, style_class="card")  # fmt: skip
        users = "" if frontier.parallel == 1 else f" for each of {frontier.parallel} users"
        name = Label(_name(frontier), 32, self._top + 29, 16, style="strong")
        drawing.label(name)
        drawing.label(
            Label(f"{frontier.context_tokens:,} tokens{users} asked for",
                  32 + name.box.width + 12, self._top + 29, _TEXT, style="soft")
        )  # fmt: skip

    def _draw_axes(self) -> None:
        plot, drawing, scales = self._plot, self._drawing, self._scales
        for size in memory_ticks(scales.low_bytes, scales.high_bytes):
            x = scales.x(size)
            drawing.line(x, plot.y, x, plot.y + plot.height, "grid")
            drawing.label(
                Label(short_bytes(size), x, plot.y + plot.height + 18, _SMALL, "middle", "soft")
            )
        for damage in damage_ticks(scales.low_damage, scales.high_damage):
            y = scales.y(damage)
            drawing.line(plot.x, y, plot.x + plot.width, y, "grid")
            drawing.label(Label(f"{damage:g}", plot.x - 8, y + 4, _SMALL, "end", "soft"))
        drawing.label(Label("0", plot.x - 8, scales.y(0) + 4, _SMALL, "end", "soft"))
        drawing.add("rect", x=plot.x, y=plot.y, width=plot.width, height=plot.height,
                    style_class="frame")  # fmt: skip
        under = plot.y + plot.height + 40
        drawing.label(
            Label(f"{self._frontier.limit} at the full context", plot.x + plot.width / 2, under,
                  _SMALL, "middle", "soft")
        )  # fmt: skip
        at, middle = plot.x - 52, plot.y + plot.height / 2
        words = "predicted damage, nats → better"
        if text_width(words, _SMALL) > plot.height:
            words = "damage, nats → better"
        drawing.add(
            "text", words, x=at, y=middle, font_size=_SMALL,
            text_anchor="middle", style_class="soft", transform=f"rotate(-90 {at:g} {middle:g})",
        )  # fmt: skip

    def _draw_limits(self) -> None:
        """Draw what the others leave and what there is, and shade what does not fit."""
        frontier, plot, scales = self._frontier, self._plot, self._scales
        left, whole = frontier.left_bytes, frontier.limit_bytes
        right = plot.x + plot.width
        edge = max(plot.x, scales.x(max(1, left)))
        if edge < right:
            self._drawing.add("rect", x=edge, y=plot.y, width=right - edge, height=plot.height,
                              style_class="over")  # fmt: skip
        words = f"left for it {format_bytes(left)}"
        if edge >= right:
            self._name_limit(right, f"{words}: all of these fit →")
        elif left <= scales.low_bytes:
            self._name_limit(plot.x, f"← {words}: none of these fits")
        elif left < whole:
            self._draw_limit(left, "left", words)
        if scales.low_bytes < whole < scales.high_bytes:
            self._draw_limit(whole, "limit", f"{frontier.limit} {format_bytes(whole)}")

    def _draw_limit(self, size: int, style: str, words: str) -> None:
        x, plot = self._scales.x(size), self._plot
        self._drawing.line(x, plot.y - 6, x, plot.y + plot.height, style)
        self._drawing.keep_line_clear([(x, plot.y), (x, plot.y + plot.height)])
        self._name_limit(x, words)

    def _name_limit(self, x: float, words: str) -> None:
        """Write a limit's name above the plot, beside or above the one that is there."""
        plot, half = self._plot, text_width(words, _SMALL) / 2
        middle = min(max(x, plot.x + half), plot.x + plot.width - half)
        self._drawing.place(
            Label(words, at, plot.y - 10 - up, _SMALL, "middle", "limit-text")
            for up in (0, 14)
            for at in (middle, middle - half * 0.7, middle + half * 0.7)
        )

    def _draw_lines(self) -> None:
        """Draw the recipe's own line last, above the others."""
        lines = list(zip(self._frontier.lines, self._colours, strict=True))
        for line, colour in sorted(lines, key=lambda pair: self._is_asked(pair[0])):
            asked = self._is_asked(line)
            places = [self._place(point) for point in line.points]
            style = f"curve {colour}" + (" asked" if asked else "")
            self._drawing.add("path", d=path_of(places), style_class=style)
            self._drawing.keep_line_clear(places, 4 if asked else 2)
            for point, (x, y) in zip(line.points, places, strict=True):
                words = escape(
                    f"{line.context_tokens:,} tokens: {_offer(point)}, "
                    f"{format_bytes(point.memory_bytes)}, damage {_damage(point.damage)}"
                )
                self._draw_dot(x, y, colour, point.kv_cache, 4.5 if asked else 2.6, words)

    def _draw_dot(self, x: float, y: float, colour: str, kv_cache: str, radius: float,
                  words: str = "") -> None:  # fmt: skip
        """Draw a point: filled for an F16 cache, hollow for another."""
        kind = "f16" if kv_cache == "f16" else "other"
        title = f"<title>{words}</title>" if words else ""
        self._drawing.add("circle", title, cx=x, cy=y, r=radius,
                          style_class=f"dot {colour} {kind}")  # fmt: skip
        self._drawing.keep_clear(x, y, radius + 0.5)

    def _is_asked(self, line: FrontierLine) -> bool:
        return line.context_tokens == self._frontier.context_tokens

    def _place(self, point: FrontierPoint) -> tuple[float, float]:
        return self._scales.x(max(1, point.memory_bytes)), self._scales.y(point.damage)

    def _draw_names(self) -> None:
        """Name the chosen point surely, then lines by their contexts and quants where room is."""
        line = next(line for line in self._frontier.lines if self._is_asked(line))
        for point in line.points:
            if point.chosen:
                x, y = self._place(point)
                self._drawing.add("circle", cx=x, cy=y, r=8.5, style_class="ring")
                self._drawing.keep_clear(x, y, 9)
                self._name_chosen(_offer(point), x, y)
        self._name_contexts()
        named = {point.quant for point in line.points if point.chosen}
        for point in line.points:
            if point.quant not in named:
                x, y = self._place(point)
                named.add(point.quant)
                self._drawing.place(_names_around(point.quant, x, y, "halo"), inside=self._plot)

    def _name_chosen(self, words: str, x: float, y: float) -> None:
        """Write the chosen offer's name, over lines of other contexts if need be."""
        if not self._drawing.place(_names_around(words, x, y, "strong halo"), inside=self._plot):
            self._drawing.label(next(_names_around(words, x, y, "strong halo")))

    def _name_contexts(self) -> None:
        """Write each other context at the lower end of its line."""
        for line, colour in zip(self._frontier.lines, self._colours, strict=True):
            if line.points and not self._is_asked(line):
                x, y = self._place(line.points[0])
                words = short_tokens(line.context_tokens)
                self._drawing.place(_names_around(words, x, y, f"own {colour}"), inside=self._plot)

    def _draw_list(self) -> None:
        """List the contexts beside the plot, with the best that each allows."""
        drawing, frontier = self._drawing, self._frontier
        y = self._plot.y + 4
        drawing.label(Label("context", _LIST_X + 82, y, _SMALL, "end", "soft"))
        drawing.label(Label("best that fits, damage", _LIST_X + 98, y, _SMALL, style="soft"))
        for line, colour in zip(frontier.lines, self._colours, strict=True):
            y += _ROW
            asked = self._is_asked(line)
            style = f"curve {colour}" + (" asked" if asked else "")
            drawing.line(_LIST_X, y - 4, _LIST_X + 20, y - 4, style)
            weight = "strong" if asked else ""
            best = _best_in_words(best_within(line, frontier.left_bytes))
            drawing.label(Label(f"{line.context_tokens:,}", _LIST_X + 82, y, _NAME, "end", weight))
            drawing.label(Label(best, _LIST_X + 98, y, _NAME, style=weight))
        self._draw_key(y + 12)

    def _draw_key(self, y: float) -> None:
        """Say what the marks mean; only those that are there."""
        own = f"c{1 % _COLOURS}"
        points = [point for line in self._frontier.lines for point in line.points]
        marks = []
        if any(point.chosen for point in points):
            marks.append(("ring", "the plan's choice"))
        caches = {point.kv_cache for point in points}
        if len(caches) > 1:
            others = ", ".join(sorted(caches - {"f16"}))
            marks += [("f16", "f16 KV cache"), ("other", f"{others} KV cache")]
        for mark, words in marks:
            y += 22
            x = _LIST_X + 10
            if mark == "ring":
                self._drawing.add("circle", cx=x, cy=y - 4, r=7.5, style_class="ring")
            self._draw_dot(x, y - 4, own, "f16" if mark == "ring" else mark, 3.8)
            self._drawing.label(Label(words, _LIST_X + 30, y, _SMALL, style="soft"))


def _names_around(text: str, x: float, y: float, style: str) -> Iterator[Label]:
    """Give places for a point's name, nearest first."""
    for away in (11, 16, 22):
        yield Label(text, x + away, y + 14, _NAME, style=style)
        yield Label(text, x - away, y - 6, _NAME, "end", style)
        yield Label(text, x + away, y + 4, _NAME, style=style)
        yield Label(text, x - away, y + 4, _NAME, "end", style)
        yield Label(text, x, y + away + 8, _NAME, "middle", style)
        yield Label(text, x, y - away, _NAME, "middle", style)
