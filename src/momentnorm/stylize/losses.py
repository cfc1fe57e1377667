"""Losses: distance to the style's statistics and to the photograph's content, smoothness.

Every term is relative to its own target, so one set of weights serves random features and VGG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


class StyleStatistics(NamedTuple):
    """Mean and centred covariance of the channels of one layer."""

    mean: Tensor  # (N, C)
    covariance: Tensor  # (N, C, C)


def style_statistics(features: Tensor) -> StyleStatistics:
    """Statistics of the channels over the positions of (N, C, H, W)."""
    planes = features.flatten(2)  # (N, C, S)
    mean = planes.mean(2)
    centred = planes - mean.unsqueeze(2)
    return StyleStatistics(mean, centred @ centred.mT / planes.shape[2])


def _relative_error(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).square().mean() / target.square().mean().clamp_min(1e-12)


def style_loss(features: Sequence[Tensor], targets: Sequence[StyleStatistics]) -> Tensor:
    r"""Distance of the channel statistics of every layer to those of the style picture.

    .. math::
        \frac1L \sum_l \frac{\lVert \mu_l - \mu_l^* \rVert^2}{\lVert \mu_l^* \rVert^2}
        + \frac{\lVert \Sigma_l - \Sigma_l^* \rVert^2}{\lVert \Sigma_l^* \rVert^2}

    with the mean and the covariance of the channels of layer l, averaged over the batch.
    Together they hold what the Gram matrix of Gatys, Ecker and Bethge (arXiv 1508.06576) holds,
    since :math:`G = \Sigma + \mu \mu^T`; apart, a large mean does not drown the covariance.
    """
    total = torch.zeros((), dtype=features[0].dtype, device=features[0].device)
    for layer, target in zip(features, targets, strict=True):
        found = style_statistics(layer)
        total = total + _relative_error(found.mean, target.mean)
        total = total + _relative_error(found.covariance, target.covariance)
    return total / len(features)


def random_filters(count: int, channels: int, kernel: int, random: torch.Generator) -> Tensor:
    """Random filters, (K, C, k, k), of norm 1; of mean 0 in each channel if larger than a pixel."""
    filters = torch.randn(count, channels, kernel, kernel, generator=random)
    if kernel > 1:
        filters = filters - filters.mean((2, 3), keepdim=True)
    unit: Tensor = filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return unit


def sliced_loss(
    features: Tensor, target: Tensor, filters: Tensor, samples: int, random: torch.Generator
) -> Tensor:
    r"""Distance of the distribution of features over positions to the target's.

    .. math::
        \frac1K \sum_k \frac{\lVert \mathrm{sort}(w_k * f) - \mathrm{sort}(w_k * f^*) \rVert^2}
        {n\,\mathrm{Var}(w_k * f^*)}

    the sliced Wasserstein distance (Heitz et al., *A Sliced Wasserstein Loss for Neural Texture
    Synthesis*, arXiv 2006.07229) along random filters :math:`w_k`, new ones in each step, at n
    random positions. Mean and covariance leave a distribution open: they allow every shade between
    two inks, where the picture has none.

    Args:
        features: (N, C, H, W).
        target: (1, C, H', W').
        filters: (K, C, k, k).
    """
    # (K, N S): the batch as a whole has to look like the picture. Asked of each photograph alone,
    # a clear sky would have to hold every colour and edge, and the network dithers.
    found = F.conv2d(features, filters).transpose(0, 1).flatten(1)
    wanted = F.conv2d(target, filters).transpose(0, 1).flatten(1)
    count = min(samples, found.shape[1], wanted.shape[1])
    quantiles = []
    for values in (found, wanted):
        chosen = torch.randperm(values.shape[1], generator=random)[:count].to(values.device)
        quantiles.append(values[:, chosen].sort(1).values)
    error = (quantiles[0] - quantiles[1]).square().mean(1)
    relative: Tensor = error / (quantiles[1].var(1, correction=0) + 1e-4)
    return relative.mean()


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    r"""Content loss :math:`\mathrm{mean}\,(f - f^*)^2 / \mathrm{Var}\,f^*` of (N, C, H, W).

    After Johnson, Alahi and Fei-Fei (arXiv 1603.08155), divided by the target's variance.
    """
    variance = target.var(correction=0).clamp_min(1e-12)
    return (features - target).square().mean() / variance


def total_variation(image: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of (N, C, H, W), across plus down."""
    across = (image[..., :, 1:] - image[..., :, :-1]).abs().mean()
    down = (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
    return across + down
