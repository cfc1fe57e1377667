"""Barriers: norms, and means and variances over all pixels of a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from momentnorm.functional import plane_affine

from ..errors import TilesError
from ..graph import Node
from ..moments_of import Statistics
from ..regions import Region
from .base import Rule, Take, the_map
from .channels import dimensions


class Norm(Rule):
    """Base of the norms: y = (x - mean) * scale + shift, with statistics of pools of planes."""

    #: Whether the result is the first of a tuple.
    in_tuple = False

    def check(self, node: Node) -> None:
        image = the_map(node)
        if image.is_flat:
            raise TilesError("it reads a flattened map")
        if any(one.is_map for one in node.inputs if one is not image):
            raise TilesError("its weight or bias depends on the image's pixels")
        node.is_map, node.size = True, image.size

    def measured(self, node: Node) -> Node | None:
        return the_map(node)

    def moments(
        self, node: Node, take: Take, statistics: Statistics | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance, each broadcast to (N, C)."""
        raise NotImplementedError

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        values = node.bound
        mean, var = self.moments(node, take, statistics)
        scale = torch.rsqrt(var + values["eps"])
        shift = torch.zeros_like(mean)
        if values["weight"] is not None:
            scale = scale * take(values["weight"], None).to(mean.dtype)
        if values["bias"] is not None:
            shift = shift + take(values["bias"], None).to(mean.dtype)
        y = plane_affine(take(the_map(node), region), mean, scale, shift)
        return (y,) if self.in_tuple else y


def _running(node: Node, take: Take) -> tuple[Tensor, Tensor]:
    values = node.bound
    dtype = torch.float64
    mean, var = take(values["running_mean"], None), take(values["running_var"], None)
    return mean.to(dtype)[None], var.to(dtype)[None]


class InstanceNorm(Norm):
    """instance_norm; with running statistics no moments are needed."""

    def measured(self, node: Node) -> Node | None:
        return the_map(node) if node.bound["use_input_stats"] else None

    def moments(
        self, node: Node, take: Take, statistics: Statistics | None
    ) -> tuple[Tensor, Tensor]:
        return _running(node, take) if statistics is None else (statistics.mean, statistics.var)


class GroupNorm(Norm):
    """group_norm."""

    def moments(
        self, node: Node, take: Take, statistics: Statistics | None
    ) -> tuple[Tensor, Tensor]:
        assert statistics is not None
        return statistics.pooled(samples=False, groups=node.bound["num_groups"])


class BatchNorm(Norm):
    """batch_norm; with running statistics no moments are needed."""

    def measured(self, node: Node) -> Node | None:
        return the_map(node) if node.bound["training"] else None

    def moments(
        self, node: Node, take: Take, statistics: Statistics | None
    ) -> tuple[Tensor, Tensor]:
        if statistics is None:
            return _running(node, take)
        return statistics.pooled(samples=True, groups=node.channels[1])


class NativeBatchNorm(BatchNorm):
    """The forms of batch_norm that return a tuple."""

    in_tuple = True

    def check(self, node: Node) -> None:
        super().check(node)
        if any(user.args[1] != 0 for user in node.users):
            raise TilesError("its statistics are used as tensors")

    def measured(self, node: Node) -> Node | None:
        return the_map(node) if node.bound.get("training", False) else None


class Reduction(Rule):
    """mean, sum, var or std over all pixels, and adaptive average pooling to one pixel.

    The result is small: it is known once the moments of the whole map are.
    """

    def check(self, node: Node) -> None:
        image = the_map(node)
        if "adaptive" in node.operator:
            if any(size != 1 for size in node.bound["output_size"]):
                raise TilesError("its windows are parts of the whole map; only size 1 is supported")
        elif set(range(2, 3 if image.is_flat else 2 + len(image.size))) - set(dimensions(node)):
            raise TilesError("it reduces some of the image's axes, not all of them")
        node.is_map = False

    def measured(self, node: Node) -> Node | None:
        return the_map(node)

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        assert statistics is not None
        values, image = node.bound, the_map(node)
        assert node.shape is not None
        dims = [0, 1] if "adaptive" in node.operator else dimensions(node)
        planes = [dim for dim in dims if dim < 2] if "adaptive" not in node.operator else []
        n, c = image.channels
        samples, groups = 0 in planes, 1 if 1 in planes else c
        mean, var = statistics.pooled(samples, groups)
        count = statistics.count * (n if samples else 1) * (c if 1 in planes else 1)
        if node.operator in ("var", "std"):
            correction = values.get("correction", values.get("unbiased", True))
            freedom = count - (1.0 if correction is None else float(correction))
            y = var * (count / freedom) if freedom > 0 else torch.full_like(var, torch.nan)
            y = y.sqrt() if node.operator == "std" else y
        else:
            y = mean * count if node.operator == "sum" else mean
        y = y[: 1 if samples else n, : 1 if 1 in planes else c]
        return y.reshape(node.shape).to(node.dtype)
