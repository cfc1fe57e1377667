"""The norms that the studies compare, as momentnorm's layers or as torch's."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..stylize.network import NORMS

#: On plots and in tables, in this order and these colours.
LABELS = {
    "none": "none",
    "he": "none, He",
    "batch": "BN",
    "layer": "LN",
    "instance": "IN",
    "group": "GN",
    "switchable": "SN",
}
COLOURS = {
    "none": "tab:gray",
    "he": "black",
    "batch": "tab:red",
    "layer": "tab:green",
    "instance": "tab:blue",
    "group": "tab:orange",
    "switchable": "tab:purple",
}

#: torch has no Switchable Normalization.
_TORCH: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(max(1, channels // 8), channels),
}

KINDS = {"momentnorm": NORMS, "torch": _TORCH}


def norm_layer(norm: str, channels: int, layers: str) -> nn.Module:
    """A layer of this norm: LN over (C, H, W) with a weight per channel, GN in groups of 8."""
    return KINDS[layers][norm](channels)


def norms_of(layers: str) -> list[str]:
    """Those that there are of these layers."""
    return [norm for norm in LABELS if norm in KINDS[layers]]
