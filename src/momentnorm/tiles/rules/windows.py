"""Convolutions and pooling: an output pixel depends on a window of the input."""

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
from .base import Rule, Take, numbers, the_map, window

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class Window(Rule):
    """An operator whose output pixel o reads ``kernel`` pixels from ``o * stride - padding`` on."""

    cheap = False

    def check(self, node: Node) -> None:
        image = the_map(node)
        if image.is_flat:
            raise TilesError("it reads a flattened map")
        assert node.shape is not None
        axes = len(image.size)
        if len(node.shape) != 2 + axes or not node.operator.endswith(f"{axes}d"):
            raise TilesError(f"it does not work on the {axes} axes of the image")
        node.is_map, node.size = True, tuple(node.shape[2:])

    def geometry(self, node: Node) -> list[tuple[int, int, int, int]]:
        """Kernel, stride, padding in front and dilation along each axis."""
        raise NotImplementedError

    def wanted(self, node: Node, region: Region) -> Region:
        """The input region, which may reach beyond the borders."""
        return tuple(
            (a * stride - padding, (b - 1) * stride - padding + dilation * (kernel - 1) + 1)
            for (a, b), (kernel, stride, padding, dilation) in zip(
                region, self.geometry(node), strict=True
            )
        )

    def needs(self, node: Node, region: Region) -> list[tuple[Node, Region]]:
        image = the_map(node)
        wanted = self.wanted(node, region)
        return [(image, tuple(clipped(w, n) for w, n in zip(wanted, image.size, strict=True)))]

    def workspace(self, node: Node, region: Region) -> int:
        """A copy of the window and, for torch's convolutions, both sides in a layout of its own."""
        image = the_map(node)
        assert image.dtype is not None
        assert node.dtype is not None
        read = math.prod(image.channels) * pixels(self.wanted(node, region))
        return 2 * read * image.dtype.itemsize + (
            math.prod(node.channels) * pixels(region) * node.dtype.itemsize
        )


def _small(value: Any, take: Take) -> Tensor | None:
    return take(value, None) if isinstance(value, Node) else None


def _only_the_image_is_a_map(node: Node, first: str) -> None:
    values = node.bound
    maps = [name for name, value in values.items() if isinstance(value, Node) and value.is_map]
    if maps != [first]:
        raise TilesError(f"its {', '.join(maps[1:]) or 'weight'} depends on the image's pixels")


class Convolution(Window):
    """conv1d, conv2d, conv3d."""

    def check(self, node: Node) -> None:
        super().check(node)
        _only_the_image_is_a_map(node, "input")

    def geometry(self, node: Node) -> list[tuple[int, int, int, int]]:
        values, axes = node.bound, len(the_map(node).size)
        kernel = values["weight"].shape[2:]
        stride, dilation = numbers(values["stride"], axes), numbers(values["dilation"], axes)
        padding = values["padding"]
        if padding == "valid":
            padding = 0
        elif padding == "same":
            # torch puts the odd pixel behind.
            padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        return list(zip(kernel, stride, numbers(padding, axes), dilation, strict=True))

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        values, image = node.bound, the_map(node)
        axes = len(image.size)
        x = window(take, image, self.wanted(node, region), 0.0)
        weight, bias = take(values["weight"], None), _small(values["bias"], take)
        stride, dilation = numbers(values["stride"], axes), numbers(values["dilation"], axes)
        convolve: Any = CONVOLUTIONS[axes - 1]
        return convolve(x, weight, bias, stride, 0, dilation, values["groups"])

    def multiplications(self, node: Node, region: Region) -> int:
        weight = node.bound["weight"].shape
        return int(node.channels[0] * pixels(region) * math.prod(weight))


class TransposedConvolution(Window):
    """conv_transpose1d, 2d, 3d: an output pixel o reads the inputs i with o = i * stride - padding
    + dilation * k for a k of the kernel."""

    def check(self, node: Node) -> None:
        super().check(node)
        _only_the_image_is_a_map(node, "input")

    def geometry(self, node: Node) -> list[tuple[int, int, int, int]]:
        values, axes = node.bound, len(the_map(node).size)
        return list(
            zip(
                values["weight"].shape[2:],
                numbers(values["stride"], axes),
                numbers(values["padding"], axes),
                numbers(values["dilation"], axes),
                strict=True,
            )
        )

    def wanted(self, node: Node, region: Region) -> Region:
        return tuple(
            ((a + padding - dilation * (kernel - 1)) // stride, -(-(b - 1 + padding) // stride) + 1)
            for (a, b), (kernel, stride, padding, dilation) in zip(
                region, self.geometry(node), strict=True
            )
        )

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        values, image = node.bound, the_map(node)
        axes, wanted = len(image.size), self.wanted(node, region)
        x = window(take, image, wanted, 0.0)
        weight, bias = take(values["weight"], None), _small(values["bias"], take)
        stride, dilation = numbers(values["stride"], axes), numbers(values["dilation"], axes)
        convolve: Any = TRANSPOSED[axes - 1]
        y: Tensor = convolve(x, weight, bias, stride, 0, 0, values["groups"], dilation)
        for axis, (start, stop) in enumerate(region):
            _, step, padding, _ = self.geometry(node)[axis]
            first = wanted[axis][0] * step - padding  # the place of y's first pixel
            y = y.narrow(2 + axis, start - first, stop - start)
        return y

    def multiplications(self, node: Node, region: Region) -> int:
        weight = node.bound["weight"].shape
        inputs = pixels(self.wanted(node, region))
        return int(node.channels[0] * inputs * math.prod(weight))


class Pool(Window):
    """Base of average and maximum pooling."""

    def geometry(self, node: Node) -> list[tuple[int, int, int, int]]:
        values, axes = node.bound, len(the_map(node).size)
        kernel = numbers(values["kernel_size"], axes)
        stride = numbers(values["stride"], axes) if values["stride"] else kernel
        dilation = numbers(values.get("dilation", 1), axes)
        return list(zip(kernel, stride, numbers(values["padding"], axes), dilation, strict=True))

    def multiplications(self, node: Node, region: Region) -> int:
        taps = math.prod(kernel for kernel, _, _, _ in self.geometry(node))
        return math.prod(node.channels) * pixels(region) * taps


class MaxPool(Pool):
    """max_pool1d, 2d, 3d."""

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        image = the_map(node)
        x = window(take, image, self.wanted(node, region), -math.inf)
        kernel, stride, _, dilation = zip(*self.geometry(node), strict=True)
        pool: Any = MAX_POOLS[len(image.size) - 1]
        return pool(x, kernel, stride, 0, dilation)


class AveragePool(Pool):
    """avg_pool1d, 2d, 3d."""

    def compute(self, node: Node, region: Region, take: Take, statistics: Statistics | None) -> Any:
        values, image = node.bound, the_map(node)
        axes, geometry = len(image.size), self.geometry(node)
        x = window(take, image, self.wanted(node, region), 0.0)
        kernel, stride, _, _ = zip(*geometry, strict=True)
        pool: Any = AVERAGE_POOLS[axes - 1]
        y: Tensor = pool(x, kernel, stride)
        divisor = values.get("divisor_override")
        if divisor:
            return y * (math.prod(kernel) / divisor)
        for axis, (part, one, length) in enumerate(zip(region, geometry, image.size, strict=True)):
            counts = self._counts(part, one, length, values["count_include_pad"])
            if (counts != one[0]).any():
                counts = counts.to(device=y.device, dtype=y.dtype)
                shape = [1] * (2 + axes)
                shape[2 + axis] = -1
                y = y * (one[0] / counts).reshape(shape)
        return y

    @staticmethod
    def _counts(
        part: Interval, geometry: tuple[int, int, int, int], length: int, with_padding: bool
    ) -> Tensor:
        """How many pixels each window along an axis counts."""
        kernel, stride, padding, _ = geometry
        start = torch.arange(*part) * stride - padding
        stop = (start + kernel).clamp(max=length + padding)
        if not with_padding:
            start, stop = start.clamp(min=0), stop.clamp(max=length)
        return stop - start
