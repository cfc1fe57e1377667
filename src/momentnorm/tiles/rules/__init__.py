"""The operators that can be computed in tiles, each with its rule."""

from __future__ import annotations

import operator

import torch

from ..errors import TilesError
from ..graph import Node
from .base import Pointwise, Rule, the_map
from .channels import DIMENSION, Channels, Expand, Item, Reshape, dimensions
from .norms import BatchNorm, GroupNorm, InstanceNorm, NativeBatchNorm, Reduction
from .resampling import Cubic, Linear, Nearest, PixelShuffle, PixelUnshuffle, Slice, pad_rule
from .windows import AveragePool, Convolution, MaxPool, TransposedConvolution

#: Pointwise operators that torch does not tag as such. Random ones do nothing in evaluation mode.
POINTWISE = {
    *("prelu", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("_to_copy", "to", "contiguous", "detach", "detach_", "alias", "lift_fresh_copy"),
    *("zeros_like", "ones_like", "full_like", "relu6", "selu", "celu", "rrelu", "type_as"),
    *("addcmul", "lerp", "masked_fill"),
}

RULES: dict[str, type[Rule]] = {
    **{f"conv{axes}d": Convolution for axes in (1, 2, 3)},
    **{f"conv_transpose{axes}d": TransposedConvolution for axes in (1, 2, 3)},
    **{f"max_pool{axes}d": MaxPool for axes in (1, 2, 3)},
    **{f"avg_pool{axes}d": AveragePool for axes in (1, 2, 3)},
    **{f"upsample_nearest{axes}d": Nearest for axes in (1, 2, 3)},
    **{f"_upsample_nearest_exact{axes}d": Nearest for axes in (1, 2, 3)},
    **{f"adaptive_avg_pool{axes}d": Reduction for axes in (1, 2, 3)},
    "upsample_linear1d": Linear,
    "upsample_bilinear2d": Linear,
    "upsample_trilinear3d": Linear,
    "upsample_bicubic2d": Cubic,
    "pixel_shuffle": PixelShuffle,
    "pixel_unshuffle": PixelUnshuffle,
    "instance_norm": InstanceNorm,
    "group_norm": GroupNorm,
    "batch_norm": BatchNorm,
    "_native_batch_norm_legit": NativeBatchNorm,
    "_native_batch_norm_legit_no_training": NativeBatchNorm,
    "view": Reshape,
    "_unsafe_view": Reshape,
    "reshape": Reshape,
    "flatten": Reshape,
    "unflatten": Reshape,
    "expand": Expand,
    "repeat": Expand,
}

#: Why some well-known operators need the whole map.
REASONS = {
    "scaled_dot_product_attention": "each pixel attends to all others",
    "matmul": "it may combine pixels across the whole map",
    "bmm": "it may combine pixels across the whole map",
    "linear": "it works along the map's last axis or on a flattened map",
    "layer_norm": "it has a weight for each place of the last axes; for a norm over (C, *S) with a "
    "weight for each channel use GroupNorm(1, channels)",
    "permute": "it moves the image's axes",
    "transpose": "it moves the image's axes",
    "adaptive_max_pool2d": "a maximum over the whole map is not a moment",
}


def rule_of(node: Node) -> Rule:
    """A rule for a node that reads maps.

    Raises:
        TilesError: there is none; the text is the reason.
    """
    name = node.operator
    if node.target is operator.getitem:
        return Item()
    if name == "pad":
        return pad_rule(node)
    if name in RULES:
        return RULES[name]()
    if name in DIMENSION:
        return _along_dimensions(node)
    if torch.Tag.nondeterministic_seeded in node.target.tags and node.bound.get("train", True):
        raise TilesError("it is random, so tiles would not agree")
    if name in POINTWISE or torch.Tag.pointwise in node.target.tags:
        return Pointwise()
    raise TilesError(REASONS.get(name, "there is no rule for computing this operator in tiles"))


def _along_dimensions(node: Node) -> Rule:
    spatial = [dim for dim in dimensions(node) if dim >= 2]
    if node.operator in ("slice", "narrow") and spatial and not the_map(node).is_flat:
        return Slice()
    if node.operator in ("mean", "sum", "var", "std") and spatial:
        return Reduction()
    return Channels()


__all__ = ["Rule", "rule_of"]
