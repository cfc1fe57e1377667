"""Losses of the trunk's training, against their definitions."""

from __future__ import annotations

import pytest
import torch

from momentnorm.stylize.losses import StyleStatistics, style_statistics
from momentnorm.stylize.trunk_losses import (
    JITTER,
    PALETTE,
    drawing,
    moved,
    palette_distances,
    palette_of,
    style_distances,
    tinted,
)


def test_each_sample_has_a_target_of_its_own():
    features = [torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)]
    own = [style_statistics(layer) for layer in features]
    assert style_distances(features, own).tolist() == [0, 0]
    exchanged = [StyleStatistics(s.mean.flip(0), s.covariance.flip(0)) for s in own]
    found = style_distances(features, exchanged)
    expected = 0.0
    for mine, other in zip(own, exchanged, strict=True):
        for value, target in zip(mine, other, strict=True):
            expected += ((value[0] - target[0]).norm() / target[0].norm()).item() ** 2
    assert found[0].item() == pytest.approx(expected, rel=1e-5)


def test_the_drawing_forgets_colour_brightness_and_contrast():
    image = torch.rand(2, 3, 8, 8) * 0.5
    found = drawing(image)
    torch.testing.assert_close(drawing(0.6 * image + 0.2), found)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.full((2,), 0.5))
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.isfinite(drawing(torch.zeros(1, 3, 8, 8))).all()


def test_colours_of_the_picture_cost_nothing():
    random = torch.Generator().manual_seed(0)
    picture = torch.tensor([[0.2, 0.9], [0.4, 0.1], [0.0, 0.6]]).view(3, 1, 2).expand(3, 16, 2)
    palette = palette_of(picture)
    assert palette.shape == (PALETTE, 3)
    assert palette.unique(dim=0).shape == (2, 3)
    same = picture.repeat(1, 1, 4).unsqueeze(0)
    found = palette_distances(same, palette.unsqueeze(0), random)
    torch.testing.assert_close(found, torch.zeros(1), rtol=0, atol=1e-5)
    # Off by 0.1 in one channel, as a share of the variance of the two colours.
    found = palette_distances(same + torch.tensor([0, 0.1, 0]).view(3, 1, 1), palette[None], random)
    variance = (0.7**2 + 0.3**2 + 0.6**2) / 4
    torch.testing.assert_close(found, torch.tensor([0.01 / variance]), rtol=1e-3, atol=1e-5)


def test_pictures_and_photographs_move_alike():
    random = torch.Generator().manual_seed(0)
    image = torch.arange(2 * 3 * 12 * 10.0).view(2, 3, 12, 10)
    places = set()
    for _ in range(60):
        first, second = moved([image, image + 1], random)
        assert first.shape == (2, 3, 12 - JITTER, 10 - JITTER)
        assert torch.equal(first + 1, second)
        places.add(first[0, 0, 0, 0].item())
    assert places == {10.0 * row + column for row in range(4) for column in range(4)}


def test_tinted_photographs_stay_in_range():
    photographs = torch.rand(8, 3, 8, 8)
    random = torch.Generator().manual_seed(0)
    found = tinted(photographs, random)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, photographs)
