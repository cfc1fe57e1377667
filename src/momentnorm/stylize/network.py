"""Network of one style, with any norm: what `compare` and the studies train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import BatchNorm2d, GroupNorm, InstanceNorm2d, SwitchableNorm2d
from .errors import StylizeError

if TYPE_CHECKING:
    from collections.abc import Callable

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: InstanceNorm2d(channels, affine=True),
    "batch": lambda channels: BatchNorm2d(channels),
    "group": lambda channels: GroupNorm(max(1, channels // 8), channels),
    "layer": lambda channels: GroupNorm(1, channels),
    "switchable": lambda channels: SwitchableNorm2d(channels),
    "none": lambda channels: nn.Identity(),
}


@dataclass(frozen=True)
class Architecture:
    """Norm and size of a :class:`Network`."""

    norm: str = "instance"
    width: int = 16
    blocks: int = 3

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise StylizeError(f"no norm is named {self.norm!r}: choose one of {', '.join(NORMS)}")
        if not 1 <= self.width <= 256 or not 0 <= self.blocks <= 64:
            raise StylizeError(
                f"a network of width {self.width} with {self.blocks} blocks is out of range: "
                "width is 1 to 256, blocks is 0 to 64"
            )


class ConvNorm(nn.Sequential):
    """Convolution with reflection padding, then the norm. (N, I, H, W) -> (N, O, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: str, stride: int = 1) -> None:
        convolution = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=kernel // 2,
            padding_mode="reflect",
            # A norm takes the mean away, and with it any bias before it.
            bias=norm == "none",
        )
        super().__init__(convolution, NORMS[norm](outputs))


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), all (N, C, H, W)."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, norm)
        self.second = ConvNorm(channels, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).relu_())
        return result + x


class Network(nn.Module):
    r"""The image transformation network of Johnson, Alahi and Fei-Fei (arXiv 1603.08155).

    With reflection padding and nearest-neighbour upsampling, as Dumoulin, Shlens and Kudlur have it
    (arXiv 1610.07629).

    A 9x9 convolution, two of stride 2, residual blocks at a quarter of the resolution, twice
    nearest-neighbour upsampling and a 3x3 convolution (transposed convolutions leave a
    checkerboard), a 9x9 convolution and a sigmoid; a norm after every convolution but the last.

    With ``norm="instance"`` (Ulyanov, Vedaldi and Lempitsky, arXiv 1607.08022) the network does
    not see brightness and contrast: :math:`g(a x + b) = g(x)` for :math:`a > 0`. Reflection
    padding commutes with :math:`a x + b`, the first convolution turns it into
    :math:`a\,(w * x) + b \sum w`, and the norm right after it removes a factor and an offset per
    channel. It is exact but for ``eps`` beside the variance.

    Shape:
        (N, 3, H, W) in [0, 1] to (N, 3, H, W) in (0, 1); H and W are multiples of 4, at least 8.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        norm, width = architecture.norm, architecture.width
        self.enter = ConvNorm(3, width, 9, norm)
        self.down1 = ConvNorm(width, 2 * width, 3, norm, stride=2)
        self.down2 = ConvNorm(2 * width, 4 * width, 3, norm, stride=2)
        self.residual = nn.Sequential(
            *(Residual(4 * width, norm) for _ in range(architecture.blocks))
        )
        self.up1 = ConvNorm(4 * width, 2 * width, 3, norm)
        self.up2 = ConvNorm(2 * width, width, 3, norm)
        self.leave = nn.Conv2d(width, 3, 9, padding=4, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu_()
        x = self.down1(x).relu_()
        x = self.down2(x).relu_()
        x = self.residual(x)
        x = self.up1(F.interpolate(x, scale_factor=2.0)).relu_()
        x = self.up2(F.interpolate(x, scale_factor=2.0)).relu_()
        return torch.sigmoid(self.leave(x))
