"""Block: a feature map in isometric projection, as SVG elements.

Channels go to the right, samples into the depth, and the elements of a plane upwards. So each plane
(one channel of one sample) is a column, and the top of every column is visible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing."""

    background: str
    text: str
    quiet: str
    line: str
    glass: str
    pool: str
    chosen: str


# Blue and orange of Okabe and Ito differ for every kind of colour vision, and in grey print.
LIGHT = Theme("#ffffff", "#16191d", "#50565d", "#9aa1a9", "#eef0f2", "#0072b2", "#e69f00")
DARK = Theme("#14171b", "#eef1f4", "#a9b1ba", "#5d6670", "#242a31", "#56b4e9", "#f5b83d")


def _mixed(colour: str, other: str, share: float) -> str:
    """Colour with a ``share`` of another colour in it."""
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


TIMES = " \u00d7 "
_SPATIAL = {1: "L", 2: TIMES.join("HW"), 3: TIMES.join("DHW")}

_CELL = 26.0  # edge of a cell along samples and channels
_RISE = 20.0, 160.0  # largest height of one element, and of a whole plane
FONT = 13.0  # pixels


class Block:
    """Geometry of a feature map in isometric projection, with (0, 0, 0) at the origin."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.samples, self.channels = shape[:2]
        self.size = math.prod(shape[2:])
        self.right, self.down = _CELL * math.cos(math.pi / 6), _CELL * 0.5
        self.rise = min(_RISE[0], _RISE[1] / self.size)
        self.width = self.right * (self.channels + self.samples)
        self.above = self.down * self.samples + self.rise * self.size
        self.below = self.down * self.channels
        #: Lines of the label on the left: the spatial dimensions and their sizes.
        self.spatial = (
            _SPATIAL.get(len(shape) - 2, "S"),
            TIMES.join(str(size) for size in shape[2:]),
        )
        #: Width of this label.
        self.label = 16 + max(room(line) for line in self.spatial)

    def point(self, n: float, c: float, s: float) -> tuple[float, float]:
        """Position (x, y) of a corner on the page."""
        return self.right * (c + n), self.down * (c - n) - self.rise * s

    def quad(self, *corners: tuple[float, float, float]) -> str:
        """Outline of a quadrilateral, as a path of SVG."""
        points = (self.point(*corner) for corner in corners)
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"

    def top(self, n: int, c: int) -> str:
        """Outline of the top of a plane."""
        s = self.size
        return self.quad((n, c, s), (n, c + 1, s), (n + 1, c + 1, s), (n + 1, c, s))

    def front(self, n: int, c: int) -> str:
        """Outlines of the face towards sample n - 1, element by element."""
        return "".join(
            self.quad((n, c, s), (n, c + 1, s), (n, c + 1, s + 1), (n, c, s + 1))
            for s in range(self.size)
        )

    def side(self, n: int, c: int) -> str:
        """Outlines of the face towards channel c + 1, element by element."""
        c += 1
        return "".join(
            self.quad((n, c, s), (n + 1, c, s), (n + 1, c, s + 1), (n, c, s + 1))
            for s in range(self.size)
        )

    def planes(self) -> list[tuple[int, int]]:
        """Planes (n, c) from back to front, the order in which they are drawn."""
        return [(n, c) for n in reversed(range(self.samples)) for c in range(self.channels)]


def solid(block: Block, part: Tensor, chosen: tuple[int, int], theme: Theme) -> list[str]:
    """SVG elements of the planes that have a part, each with its three visible faces.

    Args:
        block: the geometry.
        part: (N, C), share of each plane in the mean of the chosen one.
        chosen: the chosen plane.
        theme: the colours.
    """
    others = part.clone()
    others[chosen] = 0
    strongest = others.max().item() or 1.0
    drawn = []
    for n, c in block.planes():
        share = part[n, c].item()
        if share == 0:
            continue
        colour = theme.chosen
        if (n, c) != chosen:
            # A larger share in a mixture has a stronger colour.
            colour = _mixed(theme.pool, theme.background, 0.75 * (1 - share / strongest))
        faces = (
            (block.front(n, c), _mixed(colour, "#000000", 0.12)),
            (block.side(n, c), _mixed(colour, "#000000", 0.3)),
            (block.top(n, c), colour),
        )
        paths = "".join(f'<path d="{outline}" fill="{fill}"/>' for outline, fill in faces)
        drawn.append(f'<g data-plane="{n},{c}" data-share="{share:.6g}">{paths}</g>')
    edge = f'stroke="{theme.background}" stroke-width="0.7" stroke-linejoin="round"'
    return [f'<g class="solid" {edge}>', *drawn, "</g>"]


def glass(block: Block, part: Tensor, theme: Theme) -> list[str]:
    """SVG elements of the surface of the block, where its planes have no part."""
    last = block.channels - 1
    empty = [(n, c) for n, c in block.planes() if part[n, c].item() == 0]
    faces = (
        ("top", "".join(block.top(n, c) for n, c in empty)),
        ("front", "".join(block.front(n, c) for n, c in empty if n == 0)),
        ("side", "".join(block.side(n, c) for n, c in empty if c == last)),
    )
    return [
        f'<path class="glass {name}" d="{outline}" fill="{theme.glass}" fill-opacity="0.62" '
        f'stroke="{theme.line}" stroke-width="0.7" stroke-linejoin="round"/>'
        for name, outline in faces
        if outline
    ]


def text(x: float, y: float, content: str, theme: Theme, **attributes: object) -> str:
    """SVG element of a text. Underscores in the names of attributes become hyphens."""
    given = {"fill": theme.text, "font_size": FONT} | attributes
    pairs = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in given.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{pairs}>{escape(content)}</text>'


def room(content: str, size: float = FONT) -> float:
    """Width to keep free for a text. It is generous, because fonts differ."""
    return 0.62 * size * len(content)


def axes(block: Block, theme: Theme) -> list[str]:
    """SVG elements of the arrows along three edges, and of their labels."""
    away = 9.0  # distance of an arrow from its edge
    drawn = []
    n, c, s = block.samples, block.channels, block.size
    # Start and end of each edge, and the direction out of the block.
    for start, end, (out_x, out_y) in (
        ((0, 0, 0), (0, c, 0), (-0.5, 0.87)),
        ((0, c, 0), (n, c, 0), (0.5, 0.87)),
        ((0, 0, 0), (0, 0, s), (-1.0, 0.0)),
    ):
        (x0, y0), (x1, y1) = block.point(*start), block.point(*end)
        length = math.hypot(x1 - x0, y1 - y0)
        along_x, along_y = (x1 - x0) / length, (y1 - y0) / length
        x0, y0, x1, y1 = x0 + away * out_x, y0 + away * out_y, x1 + away * out_x, y1 + away * out_y
        barbs = "".join(
            f"M{x1:.1f} {y1:.1f}l{-5 * along_x + side * 3 * along_y:.1f} "
            f"{-5 * along_y - side * 3 * along_x:.1f}"
            for side in (-1, 1)
        )
        drawn.append(
            f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}{barbs}" fill="none" '
            f'stroke="{theme.quiet}" stroke-width="1" stroke-linecap="round"/>'
        )
    quiet = {"fill": theme.quiet}
    x, y = block.point(0, c / 2, 0)
    drawn.append(text(x - 10, y + 27, f"C = {c}", theme, text_anchor="end", **quiet))
    x, y = block.point(n / 2, c, 0)
    drawn.append(text(x + 10, y + 27, f"N = {n}", theme, **quiet))
    x, y = block.point(0, 0, s / 2)
    for line, content in enumerate(block.spatial):
        drawn.append(
            text(x - away - 7, y - 3 + 16 * line, content, theme, text_anchor="end", **quiet)
        )
    return drawn
