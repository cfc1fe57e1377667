"""Grain: its amount, and that a size of photograph gets the same one each time."""

from __future__ import annotations

import torch

from momentnorm.stylize.grain import AMOUNT, add_grain, grain, still_grain


def grained(photographs):
    return add_grain(photographs, still_grain(*photographs.shape[-2:]))


def test_grain_is_grey_and_in_proportion_to_the_contrast():
    photographs = torch.rand(2, 3, 64, 62) * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1)
    noise = grained(photographs) - photographs
    torch.testing.assert_close(noise[:, 0], noise[:, 2], rtol=0, atol=1e-6)
    share = noise.std((1, 2, 3)) / photographs.std((1, 2, 3))
    torch.testing.assert_close(share, torch.full((2,), AMOUNT), rtol=0.2, atol=0)


def test_grain_commutes_with_brightness_and_contrast():
    photographs = torch.rand(1, 3, 20, 20, dtype=torch.float64)
    found = grained(0.5 * photographs + 0.3)
    torch.testing.assert_close(found, 0.5 * grained(photographs) + 0.3)


def test_a_flat_photograph_stays_flat():
    photographs = torch.full((1, 3, 9, 13), 0.25)
    torch.testing.assert_close(grained(photographs), photographs)


def test_grain_is_the_same_each_time():
    photographs = torch.rand(1, 3, 30, 40)
    first, again = (grained(photographs) for _ in range(2))
    assert torch.equal(first, again)


def test_samples_of_a_training_get_different_grain():
    first, second = grain(2, 16, 20, torch.Generator().manual_seed(0))
    assert (first - second).abs().mean() > 0.5
