"""Losses of the trunk's training: one number for each sample, each with a target of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .features import Features, luminance
from .losses import StyleStatistics, style_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Number of colours that stand for those of a style picture.
PALETTE = 256
#: Number of pixels that are compared with them in a step.
PIXELS = 1024

#: Pictures are moved by up to this many pixels before they are compared. The loss network has
#: strides, so pictures that always lie in one place get a grid.
JITTER = 3


def _per_sample_error(value: Tensor, target: Tensor) -> Tensor:
    """Squared distances as shares of the target's square, (N,)."""
    difference, size = (value - target).flatten(1), target.flatten(1)
    return difference.square().sum(1) / size.square().sum(1).clamp_min(1e-12)


def style_distances(features: Sequence[Tensor], targets: Sequence[StyleStatistics]) -> Tensor:
    """Distances of each sample's statistics to its own target's, summed over the layers, (N,)."""
    total = torch.zeros(features[0].shape[0], device=features[0].device)
    for layer, target in zip(features, targets, strict=True):
        found = style_statistics(layer)
        total = total + _per_sample_error(found.mean, target.mean)
        total = total + _per_sample_error(found.covariance, target.covariance)
    return total


def drawing(image: Tensor) -> Tensor:
    """Luminance with mean 0.5 and standard deviation 0.25, (N, 3, H, W).

    Content is compared on it. So colour, brightness and contrast are left to the style.
    """
    grey = luminance(image)
    deviation, mean = torch.std_mean(grey, (1, 2, 3), correction=0, keepdim=True)
    return ((grey - mean) / deviation.clamp_min(0.05) * 0.25 + 0.5).expand_as(image)


def content_distances(features: Features, pictures: Tensor, photographs: Tensor) -> Tensor:
    """Distances of each picture's features to its photograph's, (N,)."""
    with torch.no_grad():
        target = features.content_layer(drawing(photographs))
        variance = target.var((1, 2, 3), correction=0).clamp_min(1e-12)
    found = features.content_layer(drawing(pictures))
    return (found - target).square().mean((1, 2, 3)) / variance


def palette_of(picture: Tensor) -> Tensor:
    """Colours of evenly spaced pixels of (3, H, W), (PALETTE, 3)."""
    pixels = picture.flatten(1).mT
    places = torch.linspace(0, len(pixels) - 1, PALETTE, device=picture.device).round().long()
    return pixels[places]


def palette_distances(pictures: Tensor, palettes: Tensor, random: torch.Generator) -> Tensor:
    """Squared distances of random pixels to the nearest colour of the style picture, (N,).

    The distance is a share of the variance of those colours. Statistics of the loss network alone
    allow flat areas of a colour that the style picture does not have.

    Args:
        pictures: (N, 3, H, W).
        palettes: (N, K, 3).
        random: generator that chooses the pixels.
    """
    places = torch.randint(pictures.shape[2:].numel(), (PIXELS,), generator=random)
    places = places.to(pictures.device)
    pixels = pictures.flatten(2)[..., places].mT  # (N, PIXELS, 3)
    squares = pixels.square().sum(2, keepdim=True) + palettes.square().sum(2).unsqueeze(1)
    nearest = (squares - 2 * pixels @ palettes.mT).min(2).values.clamp_min(0)
    return nearest.mean(1) / palettes.var(1, correction=0).sum(1)


def moved(images: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Crop the images, (N, 3, H, W) each, at one random place that they share."""
    top, left = torch.randint(JITTER + 1, (2,), generator=random).tolist()
    height, width = (side - JITTER for side in images[0].shape[2:])
    return [image[..., top : top + height, left : left + width] for image in images]


def tinted(photographs: Tensor, random: torch.Generator) -> Tensor:
    """Photographs, (N, 3, H, W), with channels exchanged and brightness and contrast changed."""
    count = len(photographs)
    result = photographs.clone()
    for index in range(count):
        order, gains = torch.randperm(3, generator=random), torch.rand(3, generator=random)
        keep, gamma = torch.rand(2, generator=random).tolist()
        if keep < 0.4:
            result[index] = result[index, order] * (0.7 + 0.6 * gains.view(3, 1, 1))
        result[index] = result[index].clamp(0, 1) ** (2 ** (1.6 * gamma - 0.8))
    return result
