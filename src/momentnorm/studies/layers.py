"""Norms that the studies compare, as momentnorm's layers or as torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..layers.by_name import get_norm_layer

#: Names on plots and in tables, in their order there.
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


def our_layer(norm: str, channels: int, *, num_groups: int) -> nn.Module:
    """Layer of momentnorm, by its name there, with a weight and a bias per channel."""
    options: dict[str, dict[str, Any]] = {
        "instance": {"affine": True},
        "group": {"num_groups": num_groups},
    }
    return get_norm_layer(norm, **options.get(norm, {}))(channels)


def _groups(channels: int) -> int:
    """Number of groups of 8 channels, at least 1."""
    return max(1, channels // 8)


def _ours(norm: str, channels: int) -> nn.Module:
    return our_layer(norm, channels, num_groups=_groups(channels))


#: torch has no Switchable Normalization.
_TORCH: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(_groups(channels), channels),
}

#: Kinds of layers: for each norm, a function of the number of channels.
KINDS: dict[str, Mapping[str, Callable[[int], nn.Module]]] = {
    "momentnorm": {norm: functools.partial(_ours, norm) for norm in [*_TORCH, "switchable"]},
    "torch": _TORCH,
}


def norm_layer(norm: str, channels: int, layers: str) -> nn.Module:
    """Layer of this norm and kind. LN is over (C, H, W), and GN has groups of 8 channels."""
    return KINDS[layers][norm](channels)


def norms_of(layers: str) -> list[str]:
    """Names of the norms that this kind of layers has."""
    return [norm for norm in LABELS if norm in KINDS[layers]]
