"""Rule: the pixels that an operator on maps reads, and the computation of a tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from ..errors import TilesError
from ..graph import Node
from ..moments_of import Statistics
from ..regions import Region, clipped, key, lengths, overlap, pixels

#: Gives a region of a map that has been computed, or the value of a small tensor.
Take = Callable[[Node, "Region | None"], Tensor]


class Rule:
    """How one kind of operator is computed in tiles. Every node has a rule of its own."""

    #: Whether to compute it again in a later pass costs less than to keep it on disk.
    cheap = True

    def check(self, node: Node) -> None:
        """Finds ``is_map``, ``is_flat`` and ``size`` of a node.

        Raises:
            TilesError: the operator needs the whole map; the text is the reason.
        """
        node.is_map, node.size = True, the_map(node).size

    def measured(self, node: Node) -> Node | None:
        """The map whose moments the node needs, if it is a barrier."""
        return None

    def needs(self, node: Node, region: Region) -> list[tuple[Node, Region]]:
        """The region of each map that is read for this region of the node."""
        return [(one, _broadcast(region, one)) for one in node.inputs if one.is_map]

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        """The region of the node: a tensor, or a tuple of tensors."""
        raise NotImplementedError

    def multiplications(self, node: Node, region: Region) -> int:
        """Multiply-adds that a region takes, or elements that it passes over."""
        return math.prod(node.channels) * pixels(region)

    def workspace(self, node: Node, region: Region) -> int:
        """Bytes that are taken beside inputs and output while a region is computed."""
        return 0


def the_map(node: Node) -> Node:
    """The first map among a node's inputs."""
    return next(one for one in node.inputs if one.is_map)


def _broadcast(region: Region, map: Node) -> Region:
    """The region of an operand that may have one pixel where the node has many."""
    return tuple((0, 1) if n == 1 else part for part, n in zip(region, map.size, strict=True))


class Pointwise(Rule):
    """Any operator whose output pixel depends on the same pixel of its operands alone."""

    def check(self, node: Node) -> None:
        assert node.shape is not None
        maps = [one for one in node.inputs if one.is_map]
        flat = {one.is_flat for one in maps}
        if len(flat) > 1:
            raise TilesError("it mixes maps with flattened maps")
        node.is_map, node.is_flat = True, flat.pop()
        axes = len(maps[0].size)
        sizes = [one.size for one in maps]
        node.size = tuple(max(size[d] for size in sizes) for d in range(axes))
        expected = 3 if node.is_flat else 2 + axes
        if len(node.shape) != expected:
            raise TilesError(f"its output has {len(node.shape)} dimensions, not {expected}")
        if not node.is_flat and tuple(node.shape[2:]) != node.size:
            raise TilesError(f"its output {tuple(node.shape)} is larger than the maps it reads")
        if node.is_flat and any(size != node.size for size in sizes):
            raise TilesError("it mixes flattened maps of several sizes")
        for one in node.inputs:
            large = not one.is_map and one.shape is not None and one.shape[2:].numel() > 1
            if large and node.is_flat and len(one.shape or ()) > 2:
                raise TilesError("it combines a flattened map with a tensor of the map's size")

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        def operand(value: Any) -> Any:
            if not isinstance(value, Node):
                return value
            if value.is_map:
                tensor = take(value, _broadcast(region, value))
                return tensor.flatten(2) if node.is_flat else tensor
            return _cut(take(value, None), node, region)

        args = map_aggregate(node.args, operand)
        kwargs = map_aggregate(node.kwargs, operand)
        y = node.target(*args, **kwargs)
        return y.unflatten(2, lengths(region)) if node.is_flat else y


def _cut(small: Tensor, node: Node, region: Region) -> Tensor:
    """A small tensor, cut to the region along each axis that has the map's length."""
    axes = len(region)
    for axis, (start, stop) in enumerate(region):
        dim = small.dim() - axes + axis
        if not node.is_flat and dim >= 0 and small.size(dim) != 1:
            small = small.narrow(dim, start, stop - start)
    return small


def window(take: Take, map: Node, wanted: Region, fill: float) -> Tensor:
    """A region of a map that may reach beyond its borders, where it holds ``fill``."""
    inside = tuple(clipped(part, n) for part, n in zip(wanted, map.size, strict=True))
    x = take(map, inside)
    if inside == wanted:
        return x
    y = x.new_full((*x.shape[:2], *lengths(wanted)), fill)
    both = overlap(inside, wanted)
    if both is not None:
        y[key(both, wanted)] = x[key(both, inside)]
    return y


def numbers(value: Any, axes: int) -> tuple[int, ...]:
    """An argument such as a stride, as one number for each axis."""
    values = (value,) if isinstance(value, int) else tuple(int(one) for one in value)
    return values * axes if len(values) == 1 else values


def weights_dtype(node: Node) -> torch.dtype:
    """The dtype in which torch computes coordinates for a map of the node's dtype."""
    return torch.float64 if node.dtype == torch.float64 else torch.float32
