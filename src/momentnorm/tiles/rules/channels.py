"""Operators that work on samples and channels and treat every pixel alike."""

from __future__ import annotations

from typing import Any

from torch.fx.node import map_aggregate

from ..errors import TilesError
from ..graph import Node
from ..moments_of import Statistics
from ..regions import Region, lengths
from .base import Rule, Take, the_map

#: Operators with a dimension, and the name of that argument.
DIMENSION = {
    "cat": "dim",
    "chunk": "dim",
    "split": "dim",
    "split_with_sizes": "dim",
    "tensor_split": "dim",
    "index_select": "dim",
    "slice": "dim",
    "narrow": "dim",
    "softmax": "dim",
    "log_softmax": "dim",
    "glu": "dim",
    "cumsum": "dim",
    "flip": "dims",
    "mean": "dim",
    "sum": "dim",
    "amax": "dim",
    "amin": "dim",
    "max": "dim",
    "min": "dim",
    "argmax": "dim",
    "argmin": "dim",
    "var": "dim",
    "std": "dim",
    "linalg_vector_norm": "dim",
    "norm": "dim",
}


def dimensions(node: Node) -> list[int]:
    """The dimensions that an operator of :data:`DIMENSION` works along, from 0 on."""
    value = node.bound[DIMENSION[node.operator]]
    first = the_map(node)
    dims = 3 if first.is_flat else 2 + len(first.size)
    if value is None or value == []:
        return list(range(dims))
    return [one % dims for one in ([value] if isinstance(value, int) else value)]


class Channels(Rule):
    """An operator along samples or channels: all pixels alike, so a tile is computed by itself."""

    def check(self, node: Node) -> None:
        maps = [one for one in node.inputs if one.is_map]
        first = maps[0]
        if any(dim >= 2 for dim in dimensions(node)):
            raise TilesError("it works along the image's axes, so each pixel needs the whole map")
        if any(one.size != first.size or one.is_flat != first.is_flat for one in maps):
            raise TilesError("it joins maps of several sizes")
        if "keepdim" in node.bound and not node.bound["keepdim"]:
            raise TilesError("it drops a dimension of the map: pass keepdim=True")
        if node.operator == "cat" and any(not isinstance(one, Node) for one in node.args[0]):
            raise TilesError("it joins something that is not a tensor")
        small = [one for one in node.inputs if not one.is_map]
        if node.operator == "cat" and small:
            raise TilesError("it joins a map with a tensor that does not depend on the image")
        node.is_map, node.size, node.is_flat = True, first.size, first.is_flat

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        def operand(value: Any) -> Any:
            if not isinstance(value, Node):
                return value
            return take(value, region if value.is_map else None)

        args = map_aggregate(node.args, operand)
        return node.target(*args, **map_aggregate(node.kwargs, operand))


class Item(Rule):
    """One tensor of a tuple."""

    def check(self, node: Node) -> None:
        source = the_map(node)
        node.is_map, node.size, node.is_flat = True, source.size, source.is_flat

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        return take(node.args[0], region)[node.args[1]]


class Reshape(Rule):
    """view, reshape and flatten, where the spatial axes stay as they are or become one axis."""

    def check(self, node: Node) -> None:
        source = the_map(node)
        assert node.shape is not None
        node.is_map, node.size = True, source.size
        pixel_count = 1
        for length in source.size:
            pixel_count *= length
        shape = tuple(node.shape)
        if shape == (*source.channels, *source.size):
            node.is_flat = False
        elif shape == (*source.channels, pixel_count):
            node.is_flat = True
        else:
            raise TilesError(f"it reorders the map's pixels or channels, to shape {shape}")

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        return take(the_map(node), region)


class Expand(Rule):
    """expand and repeat along samples and channels."""

    def check(self, node: Node) -> None:
        source = the_map(node)
        assert node.shape is not None
        if source.is_flat or tuple(node.shape[2:]) != source.size:
            raise TilesError("it repeats the map along the image's axes")
        node.is_map, node.size = True, source.size

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        x = take(the_map(node), region)
        if node.operator == "expand":
            return x.expand(*node.channels, *lengths(region))
        samples, channels = (n // m for n, m in zip(node.channels, x.shape, strict=False))
        return x.repeat(samples, channels, *([1] * len(region)))
