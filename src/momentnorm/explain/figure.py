"""The picture that everyone redraws: which elements of a feature map share their statistics.

A feature map (N, C, *S) is drawn as a block of glass in isometric projection: channels to the
right, samples into the depth, the elements of a plane upwards. Solid are the planes that have a
part in the mean of one chosen plane. They are not typed in here, but asked of the library's own
pools: a plane has a part in a mean where the derivative of the mean by the plane's is not zero.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from .._arguments import Parser, print_path
from ..pool import BATCH, INSTANCE, Policy, Pool
from ..relatives import SwitchableNorm2d, _Mixture
from ._block import DARK, FONT, LIGHT, TIMES, Block, Theme, axes, glass, room, solid, text
from .saving import check_path, write

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KINDS", "draw", "shares"]

#: What can be drawn, and what stands above it.
KINDS = {
    "batch": "Batch Norm",
    "layer": "Layer Norm",
    "instance": "Instance Norm",
    "group": "Group Norm",
    "switchable": "Switchable Norm",
    "rms": "RMS Norm",
}
USUAL = ("batch", "layer", "instance", "group")

#: The most samples, channels and elements of a plane that a reader can still count.
MOST = (16, 32, 64)
_PARTS = ("samples", "channels", "elements a plane")


def policy(kind: str, shape: Sequence[int], groups: int) -> Policy:
    """The library's policy of this kind, for a feature map of this shape.

    Raises:
        ValueError: an unknown kind; groups that do not divide the channels; for "switchable",
            planes of one element.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of norm is called {kind!r}: choose from {', '.join(KINDS)}")
    channels, size = shape[1], math.prod(shape[2:])
    if kind == "group":
        if groups < 1 or channels % groups:
            divisors = [str(i) for i in range(1, channels + 1) if channels % i == 0]
            raise ValueError(
                f"{groups} groups do not divide {channels} channels: choose one of "
                f"{', '.join(divisors)}"
            )
        return Pool(1, channels // groups)
    if kind == "switchable":
        if size == 1:
            raise ValueError(
                "switchable: the variance of a plane is the unbiased one here, which one element "
                "does not have; use a larger plane"
            )
        layer = SwitchableNorm2d(channels)  # new, so in equal proportions
        mean_weight, var_weight = layer.mean_weight.detach(), layer.var_weight.detach()
        return _Mixture(size, mean_weight, var_weight, layer.using_bn, None)
    return {"batch": BATCH, "instance": INSTANCE}.get(kind, Pool(1, None))


def shares(policy: Policy, samples: int, channels: int, sample: int, channel: int) -> Tensor:
    r"""The share of every plane in the mean that one plane is normalized with.

    .. math:: s_{ij} = \frac{\partial \mu_{nc}}{\partial m_{ij}}

    where m are the means of the planes and :math:`\mu` is what the policy makes of them.

    Args:
        policy: as in :func:`momentnorm.functional.pooled_norm`.
        samples, channels: N and C.
        sample, channel: n and c, the plane that is asked about.

    Returns:
        (N, C), which sums to 1.

    >>> shares(Pool(samples=1, channels=2), 1, 4, sample=0, channel=1)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    with torch.enable_grad():
        means = torch.zeros(samples, channels, dtype=torch.float64, requires_grad=True)
        pooled, _ = policy(means, torch.ones_like(means))  # (N, C), or what broadcasts to it
        chosen = pooled.expand(samples, channels)[sample, channel]
        (found,) = torch.autograd.grad(chosen, means)
    return found


_MARGIN = 22.0
_GAP = 30.0
_WRAP = 34  # characters of a caption's line
_LINE = 18.0
_TITLE = 1.2 * FONT
_HEAD = 34.0  # of a panel, above the block
_LABELS = 38.0  # of the axes, below it
_SWATCH = 21.0  # of the legend, and its distance from the words


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _caption(kind: str, part: Tensor, chosen: tuple[int, int], size: int) -> str:
    """What is to be seen, in words."""
    n, c = chosen
    if kind == "switchable":
        own, sample, channel = part[n, c].item(), part[n].sum().item(), part[:, c].sum().item()
        return (
            f"The mean is {own:.0%} this plane's, {sample - own:.0%} of the sample's other planes, "
            f"{channel - own:.0%} of the channel's"
        )
    planes = int((part != 0).sum())
    shared = "one mean square, and no mean" if kind == "rms" else "one mean and variance"
    rows, columns = int((part != 0).any(1).sum()), int((part != 0).any(0).sum())
    return (
        f"{_counted(rows, 'sample')}{TIMES}{_counted(columns, 'channel')}: "
        f"{_counted(planes * size, 'value')} share{'s' * (planes * size == 1)} {shared}"
    )


@dataclass(frozen=True)
class _Panel:
    kind: str
    title: str
    caption: str
    part: Tensor

    def width(self, block: Block) -> float:
        words = max(room(line) for line in self.lines())
        return max(block.label + block.width, words, room(self.title, _TITLE))

    def lines(self) -> list[str]:
        return textwrap.wrap(self.caption, _WRAP)


def _check(kinds: Sequence[str], shape: Sequence[int], sample: int, channel: int) -> None:
    if not kinds:
        raise ValueError(f"nothing to draw: choose from {', '.join(KINDS)}")
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(
            f"shape {tuple(shape)} is not (N, C, *S): give at least three sizes from 1 up, such as "
            "(4, 6, 4, 4)"
        )
    for size, most, name in zip((*shape[:2], math.prod(shape[2:])), MOST, _PARTS, strict=True):
        if size > most:
            raise ValueError(
                f"{size} {name} are too many to tell apart in a figure, which has room for {most}: "
                "draw a smaller shape; the pools look the same"
            )
    for name, index, size in (("sample", sample, shape[0]), ("channel", channel, shape[1])):
        if not 0 <= index < size:
            raise ValueError(f"{name} {index} does not exist: choose from 0 to {size - 1}")


def draw(
    kinds: Sequence[str] = USUAL,
    shape: Sequence[int] = (4, 6, 4, 4),
    *,
    groups: int = 2,
    sample: int = 0,
    channel: int = 0,
    dark: bool = False,
) -> str:
    """Which elements share the statistics of one plane, as a drawing in SVG.

    Args:
        kinds: of norm, a panel each: "batch", "layer", "instance", "group", "switchable", "rms".
            "layer" and "rms" are over (C, *S).
        shape: of the feature map, (N, C, *S): up to 16 samples, 32 channels, 64 elements a plane.
        groups: of "group".
        sample, channel: the plane that is asked about.
        dark: for a dark page or slide.

    Returns:
        An SVG document, with a title and a description for screen readers.

    Raises:
        ValueError: an unknown kind; a shape that is none, or too large to be drawn; groups that do
            not divide the channels; a plane that does not exist.

    >>> draw(["group"], (2, 4, 3, 3), groups=2).startswith("<svg")
    True
    """
    _check(kinds, shape, sample, channel)
    theme, block, chosen = DARK if dark else LIGHT, Block(shape), (sample, channel)
    panels = []
    for kind in kinds:
        part = shares(policy(kind, shape, groups), shape[0], shape[1], sample, channel)
        title = KINDS[kind] + (f", {_counted(groups, 'group')}" if kind == "group" else "")
        panels.append(_Panel(kind, title, _caption(kind, part, chosen, block.size), part))
    paler = "; paler: a smaller one" if "switchable" in kinds else ""
    legend = {
        theme.chosen: f"the chosen plane: sample {sample}, channel {channel}",
        theme.pool: f"planes with a part in its statistics{paler}",
        theme.glass: "planes without",
    }

    description = f"A feature map of shape {tuple(shape)}, as a block; {legend[theme.chosen]}. "
    description += " ".join(f"{panel.title}: {panel.caption}." for panel in panels)
    return _sheet(panels, legend, description, block, chosen, theme)


def _sheet(
    panels: Sequence[_Panel],
    legend: dict[str, str],
    description: str,
    block: Block,
    chosen: tuple[int, int],
    theme: Theme,
) -> str:
    """The panels in rows of up to four, the legend below."""
    columns = math.ceil(len(panels) / math.ceil(len(panels) / 4))
    rows = math.ceil(len(panels) / columns)
    width = max(panel.width(block) for panel in panels)
    foot = _LINE * max(len(panel.lines()) for panel in panels)
    height = _HEAD + block.above + block.below + _LABELS + foot
    panels_width = columns * (width + _GAP) - _GAP
    inner = max(panels_width, *(_SWATCH + room(content) for content in legend.values()))
    whole_width = inner + 2 * _MARGIN
    whole_height = rows * (height + _GAP) + _LINE * len(legend) + 2 * _MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole_width:.0f}" '
        f'height="{whole_height:.0f}" viewBox="0 0 {whole_width:.0f} {whole_height:.0f}" '
        f'font-family="Helvetica, Arial, sans-serif" role="img" aria-labelledby="title desc">',
        '<title id="title">Which elements share their statistics</title>',
        f'<desc id="desc">{escape(description)}</desc>',
        f'<rect width="100%" height="100%" fill="{theme.background}"/>',
    ]
    left = (whole_width - panels_width) / 2  # the legend may be wider than the panels
    for index, panel in enumerate(panels):
        x = left + (index % columns) * (width + _GAP)
        y = _MARGIN + (index // columns) * (height + _GAP)
        drawn.append(f'<g transform="translate({x:.1f} {y:.1f})">')
        drawn += [*_drawn_panel(panel, block, chosen, theme, width), "</g>"]
    for line, (colour, content) in enumerate(legend.items()):
        y = _MARGIN + rows * (height + _GAP) + _LINE * line
        edge = theme.line if colour == theme.glass else colour
        drawn += [
            f'<rect x="{_MARGIN}" y="{y:.1f}" width="12" height="12" rx="2" fill="{colour}" '
            f'stroke="{edge}"/>',
            text(_MARGIN + _SWATCH, y + 11, content, theme, fill=theme.quiet),
        ]
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _drawn_panel(
    panel: _Panel, block: Block, chosen: tuple[int, int], theme: Theme, width: float
) -> list[str]:
    middle, y = width / 2, _HEAD + block.above
    # The block and the label on its left, together in the middle.
    x = (width - block.label - block.width) / 2 + block.label
    caption = y + block.below + _LABELS + 0.8 * _LINE
    centred = {"text_anchor": "middle"}
    return [
        text(middle, 14, panel.title, theme, **centred, font_size=_TITLE, font_weight=600),
        f'<g data-kind="{panel.kind}" transform="translate({x:.1f} {y:.1f})">',
        *solid(block, panel.part, chosen, theme),
        *glass(block, panel.part, theme),
        *axes(block, theme),
        "</g>",
        *(
            text(middle, caption + _LINE * line, content, theme, **centred)
            for line, content in enumerate(panel.lines())
        ),
    ]


def _sizes(given: str) -> tuple[int, ...]:
    return tuple(int(size) for size in given.split(","))


_sizes.__name__ = "list of sizes, such as 4,6,4,4"


def main(argv: Sequence[str]) -> int:
    """``momentnorm figure``. 0 is success, 2 wrong input: one line on stderr says what."""
    parser = Parser(
        prog="momentnorm figure",
        description="Which elements of a feature map share their statistics, as a drawing.",
    )
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="NORM",
        help=f"a panel each, of {', '.join(KINDS)}; default: {' '.join(USUAL)}",
    )
    parser.add_argument(
        "--shape",
        type=_sizes,
        default=(4, 6, 4, 4),
        metavar="N,C,...",
        help="of the feature map; default 4,6,4,4",
    )
    parser.add_argument("--groups", type=int, default=2, metavar="G", help="of group; default 2")
    parser.add_argument("--sample", type=int, default=0, metavar="I", help="the plane's; default 0")
    parser.add_argument("--channel", type=int, default=0, metavar="I", help="the same; default 0")
    parser.add_argument("--dark", action="store_true", help="for a dark page or slide")
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="FILE", help=".svg, .png or .pdf"
    )
    given = parser.parse_args(argv)
    try:
        check_path(given.out, (".svg", ".png", ".pdf"))
        drawing = draw(
            given.kinds or USUAL,
            given.shape,
            groups=given.groups,
            sample=given.sample,
            channel=given.channel,
            dark=given.dark,
        )
        write(given.out, _as_file(drawing, given.out.suffix.lower()))
    except ValueError as error:
        parser.fail(error)
    print_path(given.out)
    return 0


def _as_file(drawing: str, suffix: str) -> bytes:
    if suffix == ".svg":
        return drawing.encode()
    try:
        import cairosvg  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:  # the second where the Cairo library is missing
        raise ValueError(
            f"{suffix} needs CairoSVG and the Cairo library (pip install 'momentnorm[figure]'); or "
            "write .svg, and convert that by rsvg-convert, Inkscape or a browser"
        ) from error
    if suffix == ".pdf":
        return bytes(cairosvg.svg2pdf(drawing.encode()))
    return bytes(cairosvg.svg2png(drawing.encode(), scale=2))
