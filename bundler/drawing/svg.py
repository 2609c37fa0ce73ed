"""Hand-written SVG as text: shapes, labels that keep out of each other's way. Pure.

No scripts, no fonts, nothing that is fetched: a drawing stands alone in a file or inside a page
whose policy forbids everything. How wide a text is can only be estimated, since nobody knows the
reader's font: widths are those of Helvetica with a sixth to spare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

Anchor = Literal["start", "middle", "end"]

# Advance widths of Helvetica in thousandths of the size (Adobe's AFM, "Core 14"), by groups.
_WIDTHS = {
    **dict.fromkeys("ijl'|", 222), **dict.fromkeys(" .,:;!/[]ftI", 278), **dict.fromkeys("()r-", 333),
    **dict.fromkeys("ckszvxyJ", 500), **dict.fromkeys("mM", 833), **dict.fromkeys("wCDHNRU", 722),
    **dict.fromkeys("GOQ", 778), "W": 944, "%": 889, **dict.fromkeys("ABEKPSVXY&", 667), "@": 1015,
    **dict.fromkeys("FTZ", 611), "·": 278, "–": 556, "→": 1000, "…": 1000,
}  # fmt: skip
_OTHER_WIDTH = 556
_TO_SPARE = 1.17
_BOLD = 1.09
"""How much wider a bold text is; its class has `strong` in its name."""
_ASCENT, _DESCENT = 0.78, 0.24


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is at a font size, rather too wide than too narrow."""
    return sum(_WIDTHS.get(letter, _OTHER_WIDTH) for letter in text) / 1000 * size * _TO_SPARE


@dataclass(frozen=True)
class Box:
    """A rectangle, its corner at the top left."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        """Tell whether two rectangles share any area."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def inside(self, other: Box) -> bool:
        """Tell whether this rectangle lies within another."""
        return (
            self.x >= other.x
            and self.y >= other.y
            and self.x + self.width <= other.x + other.width
            and self.y + self.height <= other.y + other.height
        )


@dataclass(frozen=True)
class Label:
    """A text with its place."""

    text: str
    x: float
    y: float
    size: float
    anchor: Anchor = "start"
    style: str = ""
    """Names of CSS classes."""

    @property
    def box(self) -> Box:
        """What it covers."""
        bold = _BOLD if "strong" in self.style else 1.0
        width = text_width(self.text, self.size) * bold
        left = {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        height = self.size * (_ASCENT + _DESCENT)
        return Box(self.x - left, self.y - self.size * _ASCENT, width, height)


@dataclass
class Drawing:
    """Collects the elements of one drawing in the order they are painted."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)
    """What labels and other things to keep clear of cover."""

    def add(self, name: str, inner: str = "", **attributes: object) -> None:
        """Add an element; `inner` is markup, attributes are escaped; `_` in a name stands for `-`
        and `style_class` for `class`.
        """
        self.parts.append(element(name, inner, **attributes))

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """Add a straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, style_class=style)

    def label(self, label: Label) -> None:
        """Write a text where it says."""
        self.taken.append(label.box)
        self.add(
            "text", escape(label.text), x=label.x, y=label.y, font_size=label.size,
            text_anchor=None if label.anchor == "start" else label.anchor,
            style_class=label.style or None,
        )  # fmt: skip

    def place(self, places: Iterable[Label], inside: Box | None = None) -> bool:
        """Write a text at the first place where it covers nothing; tell whether there was one."""
        for label in places:
            free = not any(label.box.overlaps(other) for other in self.taken)
            if free and (inside is None or label.box.inside(inside)):
                self.label(label)
                return True
        return False

    def keep_clear(self, x: float, y: float, radius: float) -> None:
        """Let no label that is placed later cover this point."""
        self.taken.append(Box(x - radius, y - radius, 2 * radius, 2 * radius))

    def keep_line_clear(self, points: Sequence[tuple[float, float]], width: float = 3) -> None:
        """Let no label that is placed later cover a line, approximated by small boxes."""
        for (x1, y1), (x2, y2) in pairwise(points):
            steps = max(1, math.ceil(min(abs(x2 - x1), abs(y2 - y1)) / (2 * width)))
            for step in range(steps):
                xs = [x1 + (x2 - x1) * share / steps for share in (step, step + 1)]
                ys = [y1 + (y2 - y1) * share / steps for share in (step, step + 1)]
                corner = (min(xs) - width / 2, min(ys) - width / 2)
                size = (abs(xs[1] - xs[0]) + width, abs(ys[1] - ys[0]) + width)
                self.taken.append(Box(*corner, *size))

    def markup(self, *, identity: str, title: str, description: str, style: str = "",
               definitions: str = "", attributes: Mapping[str, str] | None = None) -> str:  # fmt: skip
        """Return the whole `<svg>`; readers that do not see it are told title and description.

        `identity` begins every `id` in it, so that several drawings can stand on one page.
        """
        head = (
            element("title", escape(title), id=f"{identity}-title")
            + element("desc", escape(description), id=f"{identity}-desc")
            + (element("style", escape(style)) if style else "")
            + (element("defs", definitions) if definitions else "")
        )
        return element(
            "svg", head + "\n".join(["", *self.parts, ""]), xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {_number(self.width)} {_number(self.height)}", role="img",
            aria_labelledby=f"{identity}-title {identity}-desc", **(attributes or {}),
        )  # fmt: skip


def element(name: str, inner: str = "", **attributes: object) -> str:
    """Return an element; attributes that are None are left out."""
    words = "".join(
        f" {_attribute(key)}={quoteattr(_number(value))}"
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{words}>{inner}</{name}>" if inner else f"<{name}{words}/>"


def _attribute(name: str) -> str:
    return "class" if name == "style_class" else name.replace("_", "-")


def _number(value: object) -> str:
    """Return a number with two decimals at most, anything else as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def path_of(points: Iterable[tuple[float, float]]) -> str:
    """Return the `d` of straight lines through points.

    >>> path_of([(0.0, 1.0), (2.5, 3.0)])
    'M0 1L2.5 3'
    """
    return "".join(
        f"{'L' if number else 'M'}{_number(float(x))} {_number(float(y))}"
        for number, (x, y) in enumerate(points)
    )
