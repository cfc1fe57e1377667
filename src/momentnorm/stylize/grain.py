"""Grain on photographs: without it a flat sky stays flat, since the network sees nothing there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Deviation of the grain as a share of the photograph's.
AMOUNT = 0.12
#: Sizes of its blobs in pixels.
BLOBS = (2, 8)


def grained(photographs: Tensor, random: torch.Generator) -> Tensor:
    """Photographs, (N, 3, H, W), with grey noise in proportion to the contrast of each.

    A translation keeps the network's output alike, so it paints a flat area with one colour. The
    grain gives it a start for strokes and tiles there.
    """
    count, _, height, width = photographs.shape
    total = torch.zeros(count, 1, height, width)
    for blob in BLOBS:
        size = -(-height // blob), -(-width // blob)
        noise = torch.randn(count, 1, *size, generator=random)
        noise = F.interpolate(noise, scale_factor=float(blob), mode="nearest")
        total = total + noise[..., :height, :width]
    deviation = photographs.std((1, 2, 3), correction=0, keepdim=True)
    unit = len(BLOBS) ** -0.5 * total.to(photographs)
    return torch.addcmul(photographs, deviation, unit, value=AMOUNT)


def still_grain() -> torch.Generator:
    """The generator for stylization: the grain of a size of photograph is the same each time."""
    return torch.Generator().manual_seed(0)
