"""Drawing: which elements of a feature map share their statistics, as an SVG document.

A feature map (N, C, *S) is drawn as a block of glass in isometric projection. Channels go to the
right, samples into the depth, and the elements of a plane upwards. The solid planes have a part in
the mean of one chosen plane. The library's own layers say which planes these are: a plane has a
part in a mean if the derivative of this mean by the mean of the plane is not zero.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from ..explainer import Planes, explanation_of
from ..layers.by_name import check_groups, get_norm_layer
from .block import DARK, FONT, LIGHT, TIMES, Block, Theme, axes, glass, room, solid, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.pool import Policy

__all__ = ["KINDS", "USUAL", "draw", "policy", "shares"]

#: Title of the panel of each kind of norm.
KINDS = {
    "batch": "Batch Norm",
    "layer": "Layer Norm",
    "instance": "Instance Norm",
    "group": "Group Norm",
    "switchable": "Switchable Norm",
    "rms": "RMS Norm",
}

#: Kinds that are drawn by default.
USUAL = ("batch", "layer", "instance", "group")

#: Largest numbers of samples, channels and elements of a plane that a reader can still count.
MOST = (16, 32, 64)
_PARTS = ("samples", "channels", "elements a plane")


def policy(kind: str, shape: Sequence[int], groups: int) -> Policy:
    """Policy of a new layer of this kind, for a feature map of this shape.

    Args:
        kind: a key of ``KINDS``.
        shape: (N, C, *S).
        groups: number of groups of "group".

    Raises:
        ValueError: an unknown kind, groups that do not divide the channels, or planes of one
            element with "switchable".
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of norm is called {kind!r}: choose from {', '.join(KINDS)}")
    samples, channels, size = shape[0], shape[1], math.prod(shape[2:])
    if kind == "switchable" and size == 1:
        raise ValueError(
            "switchable: the variance of a plane is the unbiased one here, which one element "
            "does not have; use a larger plane"
        )
    options = {}
    if kind == "group":
        check_groups(groups, channels)
        options["num_groups"] = groups
    # RMSNorm pools the mean squares of the planes that LayerNorm pools the moments of.
    make = get_norm_layer("layer" if kind == "rms" else kind, **options)
    found = explanation_of(make(channels), torch.zeros(samples, channels, size, 1), None)
    assert isinstance(found, Planes)
    return found.statistics


def shares(policy: Policy, samples: int, channels: int, sample: int, channel: int) -> Tensor:
    r"""Share of every plane in the mean that one plane is normalized with.

    .. math:: s_{ij} = \frac{\partial \mu_{nc}}{\partial m_{ij}}

    Here m are the means of the planes, and :math:`\mu` are the means that the policy returns.

    Args:
        policy: a policy, as in :func:`momentnorm.functional.pooled_norm`.
        samples, channels: N and C.
        sample, channel: n and c, the chosen plane.

    Returns:
        (N, C), with sum 1 if the policy averages.

    >>> from momentnorm import Pool
    >>> shares(Pool(samples=1, channels=2), 1, 4, sample=0, channel=1)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    with torch.enable_grad():
        means = torch.zeros(samples, channels, dtype=torch.float64, requires_grad=True)
        pooled, _ = policy(means, torch.ones_like(means))  # (N, C), or broadcastable to it
        chosen = pooled.expand(samples, channels)[sample, channel]
        (found,) = torch.autograd.grad(chosen, means)
    return found


# Lengths in pixels.
_MARGIN = 22.0
_GAP = 30.0  # between panels
_WRAP = 34  # characters in a line of a caption
_LINE = 18.0
_TITLE = 1.2 * FONT
_HEAD = 34.0  # height of a panel above its block
_LABELS = 38.0  # height of the axis labels below a block
_SWATCH = 21.0  # width of a colour of the legend, with the space before its words


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _caption(kind: str, part: Tensor, chosen: tuple[int, int], size: int) -> str:
    """Sentence that says what a panel shows.

    Args:
        kind: a key of ``KINDS``.
        part: (N, C), share of each plane in the mean of the chosen one.
        chosen: the chosen plane.
        size: number of elements of a plane.
    """
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
    """One block with its title and caption."""

    kind: str
    title: str
    caption: str
    part: Tensor  # (N, C), share of each plane in the mean of the chosen one

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
    """Draw which elements share the statistics of one plane.

    Args:
        kinds: kinds of norm, with a panel for each: "batch", "layer", "instance", "group",
            "switchable", "rms". "layer" and "rms" are over (C, *S).
        shape: (N, C, *S), with up to 16 samples, 32 channels and 64 elements in a plane.
        groups: number of groups of "group".
        sample, channel: the chosen plane.
        dark: draw for a dark page or slide.

    Returns:
        An SVG document, with a title and a description for screen readers.

    Raises:
        ValueError: an unknown kind, a shape that cannot be drawn or is too large, groups that do
            not divide the channels, or a plane that does not exist.

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
    """SVG document with the panels in rows of up to four, and the legend below."""
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
    """SVG elements of one panel, which is ``width`` pixels wide."""
    middle, y = width / 2, _HEAD + block.above
    # The block is centred together with the label on its left.
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
