"""Objective of the training of one style: comparison with the style picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .errors import StylizeError
from .losses import random_filters, sliced_loss, style_loss, style_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from .features import Features

#: Resolutions at which the sliced loss compares pixels, and positions compared at each.
LEVELS = 4
SAMPLES = 2048
DIRECTIONS = 16


class StyleTarget:
    """Statistics of a style picture, and its layers to draw samples from.

    Args:
        features: the loss network.
        picture: (3, H, W) in [0, 1].
    """

    def __init__(self, features: Features, picture: Tensor) -> None:
        if min(picture.shape[-2:]) < 32:
            raise StylizeError(
                f"the style picture is {picture.shape[-1]}x{picture.shape[-2]} pixels as it is "
                "compared; each side must be at least 32"
            )
        self.features = features
        with torch.no_grad():
            self.layers = features.style_layers(picture.unsqueeze(0))
            self.pixels = pyramid(picture.unsqueeze(0))
            self.statistics = [style_statistics(layer) for layer in self.layers]

    def losses(self, pictures: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Style loss and sliced loss of pictures, (N, 3, H, W)."""
        layers = self.features.style_layers(pictures)
        pixels = pyramid(pictures)
        # Colours, then edges, at every scale, then what the loss network sees.
        found = [*pixels, *pixels, *layers]
        wanted = [*self.pixels, *self.pixels, *self.layers]
        kernels = [1] * LEVELS + [3] * LEVELS + [1] * len(layers)
        terms = []
        for layer, target, kernel in zip(found, wanted, kernels, strict=True):
            filters = random_filters(DIRECTIONS, layer.shape[1], kernel, random).to(layer)
            terms.append(sliced_loss(layer, target, filters, SAMPLES, random))
        return style_loss(layers, self.statistics), torch.stack(terms).mean()


def pyramid(image: Tensor) -> list[Tensor]:
    """Images, (N, 3, H, W), at full, half, ... resolution."""
    levels = [image]
    for _ in range(LEVELS - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def scaled(image: Tensor, longest: int) -> Tensor:
    """Image, (3, H, W), scaled down to a longer side of this many pixels."""
    now = max(image.shape[-2:])
    if now <= longest:
        return image
    size = [max(1, round(side * longest / now)) for side in image.shape[-2:]]
    result = F.interpolate(image.unsqueeze(0), size, mode="bilinear", antialias=True)
    return result.squeeze(0)
