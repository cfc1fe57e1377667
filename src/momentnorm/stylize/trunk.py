"""Trunk: one network for all styles. A style is a vector of a few thousand numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..core.pool import INSTANCE
from .errors import StylizeError

#: Height and width of images for a trunk are multiples of this.
STRIDE = 4

#: Side of the last convolution's kernel. It is applied to features at twice their resolution.
LEAVE = 5


@dataclass(frozen=True)
class TrunkShape:
    """Size of a trunk and of its styles.

    Args:
        width: channels at half the resolution; a quarter of the resolution has twice as many.
        blocks: residual blocks, at a quarter of the resolution.
    """

    width: int = 40
    blocks: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 256 or not 0 <= self.blocks <= 64:
            raise StylizeError(
                f"a trunk of width {self.width} with {self.blocks} blocks is out of range: "
                "width is 1 to 256, blocks is 0 to 64"
            )

    @property
    def norms(self) -> list[int]:
        """Channels of each instance norm, from the input to the output."""
        wide = 2 * self.width
        return [self.width, wide, *[wide] * (2 * self.blocks), self.width]

    @property
    def leave(self) -> tuple[int, int, int, int]:
        """Shape of the last convolution's kernel."""
        return 3, self.width, LEAVE, LEAVE

    @property
    def numbers(self) -> int:
        """Length S of a style: weights and biases of all norms, the last kernel and its bias."""
        return 2 * sum(self.norms) + 3 * self.width * LEAVE**2 + 3


class _Parts(NamedTuple):
    """Weights and biases that a style vector holds, for all samples or for each sample."""

    norms: list[tuple[Tensor, Tensor]]  # weight and bias, (C,) or (N, C) each
    kernel: Tensor  # (3, width, 5, 5) or (N, 3, width, 5, 5)
    bias: Tensor  # (3,) or (N, 3)


def _take_apart(shape: TrunkShape, style: Tensor) -> _Parts:
    sizes = [size for channels in shape.norms for size in (channels, channels)]
    sizes += [style.shape[-1] - sum(sizes) - 3, 3]
    *norms, kernel, bias = torch.split(style, sizes, dim=-1)
    pairs = list(zip(norms[::2], norms[1::2], strict=True))
    return _Parts(pairs, kernel.reshape(*kernel.shape[:-1], *shape.leave), bias)


def _fold() -> Tensor:
    """Matrix from a kernel behind nearest upsampling to one before it, (phase, tap before, tap).

    Tap ``d`` of output pixel ``2 i + phase`` reads pixel ``(2 i + phase + d) // 2`` before the
    upsampling, so taps that read the same pixel add up.
    """
    reach = LEAVE // 2
    fold = torch.zeros(2, 3, LEAVE)
    for phase in range(2):
        for tap in range(-reach, reach + 1):
            fold[phase, (phase + tap) // 2 + 1, tap + reach] = 1
    return fold


class Trunk(nn.Module):
    r"""One transformation network for many styles.

    The shape is that of Johnson, Alahi and Fei-Fei (arXiv 1603.08155): a 9x9 convolution of stride
    2, a 3x3 convolution of stride 2, residual blocks at a quarter of the resolution, nearest
    upsampling and a sigmoid.

    A style is the weight and the bias of every Instance Normalization (after Dumoulin, Shlens and
    Kudlur, arXiv 1610.07629) and the last convolution. It is one vector. So styles blend by adding
    vectors, and a new style is learned by descent on a vector alone.

    The last convolution, 5x5 behind nearest upsampling, is computed before the upsampling: a 3x3
    convolution to four phases of every output pixel.

    The first convolution pads by reflection, so the result does not depend on brightness and
    contrast: :math:`g(a x + b) = g(x)` for :math:`a > 0`, up to eps. The other convolutions pad by
    zeros, which is faster. :func:`stylize` reflects some pixels around a photograph and cuts them
    off the picture, so the zeros stay outside.

    Args:
        shape: width and number of blocks.

    Shape:
        image (N, 3, H, W) in [0, 1], H and W multiples of 4, at least 8; style (S,) for all
        samples or (N, S). The output is like the image, in (0, 1).

    >>> trunk = Trunk(TrunkShape(width=8, blocks=1))
    >>> trunk(torch.rand(1, 3, 16, 16), trunk.new_style()).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(self, shape: TrunkShape | None = None) -> None:
        super().__init__()
        self.shape = shape or TrunkShape()
        width, wide = self.shape.width, 2 * self.shape.width
        self.enter = nn.Conv2d(3, width, 9, 2, padding=4, padding_mode="reflect", bias=False)
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1, bias=False)
        self.residual = nn.ModuleList(
            nn.Conv2d(wide, wide, 3, padding=1, bias=False) for _ in range(2 * self.shape.blocks)
        )
        self.up = nn.Conv2d(wide, width, 3, padding=1, bias=False)

    def new_style(self) -> Tensor:
        """Untrained style, (S,): weights 1 and biases 0 for the norms, a random last kernel."""
        ones_and_zeros = [
            torch.cat([torch.ones(channels), torch.zeros(channels)])
            for channels in self.shape.norms
        ]
        kernel = torch.empty(self.shape.leave)
        nn.init.normal_(kernel, std=(self.shape.width * LEAVE**2) ** -0.5)
        return torch.cat([*ones_and_zeros, kernel.flatten(), torch.zeros(3)])

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        norms, kernel, bias = _take_apart(self.shape, style)
        parts = iter(norms)
        x = _norm(self.enter(image), next(parts), "relu")
        x = _norm(self.down(x), next(parts), "relu")
        for index in range(0, len(self.residual), 2):
            y = _norm(self.residual[index](x), next(parts), "relu")
            x = _norm(self.residual[index + 1](y), next(parts), None, residual=x)
        x = _norm(self.up(F.interpolate(x, scale_factor=2.0)), next(parts), "relu")
        return torch.sigmoid(self._leave(x, kernel, bias))

    def _leave(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """The last convolution at twice the resolution of x, (N, 3, 2 H, 2 W)."""
        fold = _fold().to(kernel)
        folded = torch.einsum("atd,bse,...ocde->...oabcts", fold, fold, kernel)
        folded = folded.flatten(-6, -4)  # (12, width, 3, 3): colour, then row and column phase
        if folded.dim() == 4:
            phases = F.conv2d(x, folded, padding=1)
        else:
            samples = zip(torch.split(x, 1), folded, strict=True)
            phases = torch.cat([F.conv2d(sample, each, padding=1) for sample, each in samples])
        return F.pixel_shuffle(phases, 2) + bias[..., None, None]


def _norm(
    x: Tensor, parts: tuple[Tensor, Tensor], activation: str | None, residual: Tensor | None = None
) -> Tensor:
    """Instance Normalization; weight and bias are (C,), or (N, C) for one of each sample."""
    return functional.pooled_norm(
        x, *parts, pool=INSTANCE, activation=activation, residual=residual
    )
