"""Grain: grey noise on photographs, which gives strokes a start in flat areas."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Standard deviation of the grain as a share of the photograph's.
AMOUNT = 0.12
#: Sizes of the noise's blobs in pixels.
BLOBS = (2, 8)


def grain(count: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Noise of variance 1 in blobs, (count, 1, height, width)."""
    total = torch.zeros(count, 1, height, width)
    for blob in BLOBS:
        size = -(-height // blob), -(-width // blob)
        noise = torch.randn(count, 1, *size, generator=random)
        noise = F.interpolate(noise, scale_factor=float(blob), mode="nearest")
        total = total + noise[..., :height, :width]
    return total / math.sqrt(len(BLOBS))


def still_grain(height: int, width: int) -> Tensor:
    """Grain for stylization, (1, 1, height, width): a size of photograph always gets the same."""
    return grain(1, height, width, torch.Generator().manual_seed(0))


def add_grain(photographs: Tensor, noise: Tensor) -> Tensor:
    """Photographs, (N, 3, H, W), with noise in proportion to the contrast of each.

    A convolutional network paints a flat area with one colour, since its input is the same
    everywhere. The noise makes the input differ.
    """
    deviation = photographs.std((1, 2, 3), correction=0, keepdim=True)
    return torch.addcmul(photographs, deviation, noise.to(photographs), value=AMOUNT)
