"""Operators whose output pixel depends on few, computable places: crops, padding, upsampling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TilesError
from ..graph import Node
from ..moments_of import Statistics
from ..regions import Interval, Region, clipped, pixels
from .base import Rule, Take, the_map, weights_dtype, window


class Spatial(Rule):
    """An operator that changes the spatial axes and leaves samples and channels alone."""

    def check(self, node: Node) -> None:
        image = the_map(node)
        if image.is_flat:
            raise TilesError("it reads a flattened map")
        assert node.shape is not None
        if len(node.shape) != 2 + len(image.size):
            raise TilesError("its output has another number of dimensions")
        node.is_map, node.size = True, tuple(node.shape[2:])


class Resampling(Spatial):
    """Each output pixel is a weighted sum of pixels at places that are known for each axis."""

    def places(self, node: Node, axis: int, part: Interval) -> tuple[Tensor, Tensor | None]:
        """For each pixel of an interval: the K input pixels, (length, K), and their weights, or
        None for a weight of 1."""
        raise NotImplementedError

    def needs(self, node: Node, region: Region) -> list[tuple[Node, Region]]:
        parts = []
        for axis, part in enumerate(region):
            places, _ = self.places(node, axis, part)
            parts.append((int(places.min()), int(places.max()) + 1))
        return [(the_map(node), tuple(parts))]

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        image, needed = self.needs(node, region)[0]
        x = take(image, needed)
        for axis, part in enumerate(region):
            places, weights = self.places(node, axis, part)
            x = _gathered(x, 2 + axis, places - needed[axis][0], weights)
        return x


def _taken(x: Tensor, dim: int, places: Tensor) -> Tensor:
    """The pixels at these places along one axis."""
    if dim < x.dim() - 1:
        return x.index_select(dim, places)
    # Along the last axis index_select took ten times as long as gather does.
    return x.gather(dim, places.expand(*x.shape[:-1], len(places)))


def _gathered(x: Tensor, dim: int, places: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted sums of the pixels at these places along one axis."""
    length, taps = places.shape
    if weights is None and torch.equal(places[:, 0], torch.arange(length) + places[0, 0]):
        return x.narrow(dim, int(places[0, 0]), length)  # a crop: no copy
    total: Tensor | None = None
    for tap in range(taps):
        one = _taken(x, dim, places[:, tap].to(x.device))
        if weights is not None:
            shape = [1] * x.dim()
            shape[dim] = -1
            one = one * weights[:, tap].to(device=x.device, dtype=x.dtype).reshape(shape)
        total = one if total is None else total + one
    assert total is not None
    return total


class Ramp(Resampling):
    """An operator that copies pixels: torch applies it to the numbers 0, 1, 2, ... of one axis, and
    what comes out are the places that it copies from."""

    def __init__(self) -> None:
        self._places: dict[int, Tensor] = {}

    def ramp(self, node: Node, axis: int, numbers: Tensor) -> Tensor:
        """The operator along one axis, on a map (1, 1, length)."""
        raise NotImplementedError

    def places(self, node: Node, axis: int, part: Interval) -> tuple[Tensor, Tensor | None]:
        if not self.changes(node, axis):
            return torch.arange(*part)[:, None], None
        if axis not in self._places:
            numbers = torch.arange(the_map(node).size[axis], dtype=weights_dtype(node))
            self._places[axis] = self.ramp(node, axis, numbers[None, None])[0, 0].long()
        return self._places[axis][slice(*part), None], None

    def changes(self, node: Node, axis: int) -> bool:
        """Whether the operator does anything along an axis."""
        return True


class Slice(Ramp):
    """slice and narrow along a spatial axis."""

    def ramp(self, node: Node, axis: int, numbers: Tensor) -> Tensor:
        values = dict(node.bound)
        values.pop("self", None)
        values.pop("input", None)
        values["dim"] = 2
        result: Tensor = node.target(numbers, **values)
        return result

    def changes(self, node: Node, axis: int) -> bool:
        assert node.shape is not None
        return bool(node.bound["dim"] % len(node.shape) == 2 + axis)


class BorderPad(Ramp):
    """Padding by reflection or by the border's own pixels."""

    def ramp(self, node: Node, axis: int, numbers: Tensor) -> Tensor:
        return F.pad(numbers, pads(node)[axis], mode=node.bound["mode"])

    def changes(self, node: Node, axis: int) -> bool:
        return pads(node)[axis] != (0, 0)


def pads(node: Node) -> list[tuple[int, int]]:
    """Padding in front and behind along each spatial axis, in the axes' order."""
    values = [int(value) for value in node.bound["pad"]]
    pairs = list(zip(values[::2], values[1::2], strict=True))[::-1]
    axes = len(the_map(node).size)
    pairs = [(0, 0)] * (axes - len(pairs)) + pairs
    if any(pair != (0, 0) for pair in pairs[:-axes]):
        raise TilesError("it pads samples or channels")
    return pairs[-axes:]


class ConstantPad(Spatial):
    """Padding by a number; a negative padding crops."""

    def _wanted(self, node: Node, region: Region) -> Region:
        pairs = zip(region, pads(node), strict=True)
        return tuple((start - front, stop - front) for (start, stop), (front, _) in pairs)

    def needs(self, node: Node, region: Region) -> list[tuple[Node, Region]]:
        image = the_map(node)
        wanted = self._wanted(node, region)
        return [(image, tuple(clipped(w, n) for w, n in zip(wanted, image.size, strict=True)))]

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        fill = node.bound.get("value") or 0.0
        image, wanted = the_map(node), self._wanted(node, region)
        return window(take, image, wanted, fill)


class Nearest(Ramp):
    """upsample_nearest and _upsample_nearest_exact in 1, 2 and 3 dimensions."""

    def ramp(self, node: Node, axis: int, numbers: Tensor) -> Tensor:
        values = node.bound
        factors = values["scale_factors"]
        factor = None if factors is None else [float(factors[axis])]
        size = [node.size[axis]] if factor is None else None
        exact = "exact" in node.operator
        aten = torch.ops.aten
        resize = aten._upsample_nearest_exact1d if exact else aten.upsample_nearest1d
        result: Tensor = resize.vec(numbers, size, factor)
        return result


class Linear(Resampling):
    """upsample_linear1d, upsample_bilinear2d, upsample_trilinear3d: two places for each pixel."""

    def multiplications(self, node: Node, region: Region) -> int:
        return 2 * len(region) * math.prod(node.channels) * pixels(region)

    def coordinates(self, node: Node, axis: int, part: Interval) -> Tensor:
        """The place of each output pixel in the input, in the precision that torch uses."""
        values, length, out = node.bound, the_map(node).size[axis], node.size[axis]
        factors, dtype = values["scale_factors"], weights_dtype(node)
        target = torch.arange(*part, dtype=dtype)
        if values["align_corners"]:
            step = (length - 1) / (out - 1) if out > 1 else 0.0
            return target * torch.tensor(step, dtype=dtype)
        step = length / out if factors is None else 1.0 / float(factors[axis])
        return torch.tensor(step, dtype=dtype) * (target + 0.5) - 0.5

    def places(self, node: Node, axis: int, part: Interval) -> tuple[Tensor, Tensor | None]:
        length = the_map(node).size[axis]
        source = self.coordinates(node, axis, part).clamp(min=0)
        first = source.long().clamp(max=length - 1)
        second = (first + 1).clamp(max=length - 1)
        share = (source - first).clamp(0, 1)
        return torch.stack([first, second], 1), torch.stack([1 - share, share], 1)


class Cubic(Linear):
    """upsample_bicubic2d: four places for each pixel along each axis."""

    def places(self, node: Node, axis: int, part: Interval) -> tuple[Tensor, Tensor | None]:
        length = the_map(node).size[axis]
        source = self.coordinates(node, axis, part)
        base = source.floor()
        t = source - base
        a = -0.75  # torch's choice

        def near(x: Tensor) -> Tensor:  # for |x| <= 1
            return ((a + 2) * x - (a + 3)) * x * x + 1

        def far(x: Tensor) -> Tensor:  # for 1 < |x| < 2
            return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

        weights = torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], 1)
        places = base.long()[:, None] + torch.tensor([-1, 0, 1, 2])
        return places.clamp(0, length - 1), weights


class Shuffle(Spatial):
    """Base of pixel_shuffle and pixel_unshuffle."""

    def check(self, node: Node) -> None:
        super().check(node)
        if len(node.size) != 2:
            raise TilesError(f"it does not work on the {len(node.size)} axes of the image")


class PixelShuffle(Shuffle):
    """pixel_shuffle: r * r channels of one pixel become r * r pixels of one channel."""

    def needs(self, node: Node, region: Region) -> list[tuple[Node, Region]]:
        r = node.bound["upscale_factor"]
        return [(the_map(node), tuple((a // r, -(-b // r)) for a, b in region))]

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        r = node.bound["upscale_factor"]
        image, needed = self.needs(node, region)[0]
        y: Tensor = node.target(take(image, needed), r)
        for axis, ((start, stop), (first, _)) in enumerate(zip(region, needed, strict=True)):
            y = y.narrow(2 + axis, start - first * r, stop - start)
        return y


class PixelUnshuffle(Shuffle):
    """pixel_unshuffle: r * r pixels of one channel become r * r channels of one pixel."""

    def needs(self, node: Node, region: Region) -> list[tuple[Node, Region]]:
        r = node.bound["downscale_factor"]
        return [(the_map(node), tuple((a * r, b * r) for a, b in region))]

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        image, needed = self.needs(node, region)[0]
        return node.target(take(image, needed), node.bound["downscale_factor"])


def pad_rule(node: Node) -> Rule:
    """The rule of a padding by its mode."""
    mode = node.bound.get("mode", "constant")
    pads(node)
    if mode == "constant":
        return ConstantPad()
    if mode in ("reflect", "replicate"):
        return BorderPad()
    raise TilesError(f"padding mode {mode!r} reads pixels of the opposite border")
