"""Data: equal at each call, and test pixels are never training pixels."""

from __future__ import annotations

import pytest
import torch

from momentnorm.studies import data
from momentnorm.stylize.images import SKIMAGE_PHOTOS


@pytest.mark.parametrize("name", data.DATA)
def test_the_same_each_time_and_standardized(name):
    once = data.DATA[name]()
    data.DATA[name].cache_clear()
    again = data.DATA[name]()
    for a, b in zip(once[:4], again[:4], strict=True):
        assert torch.equal(a, b)
    assert once.images.mean().item() == pytest.approx(0, abs=1e-4)
    assert once.images.std().item() == pytest.approx(1, rel=1e-4)
    for labels in (once.labels, once.test_labels):
        assert labels.unique().tolist() == list(range(once.classes))
    # Classes are balanced: a constant answer is as bad as guessing.
    assert once.test_labels.bincount().max() < 1.3 * len(once.test_labels) / once.classes


def test_digits_are_split_in_the_order_of_their_writers():
    from sklearn.datasets import load_digits

    found = data.digits()
    assert len(found.labels) == 1198
    both = torch.cat([found.labels, found.test_labels])
    assert both.tolist() == load_digits().target.tolist()


@pytest.mark.parametrize("name", SKIMAGE_PHOTOS)
def test_no_pixel_is_learned_from_and_judged_by(name):
    photograph = data.grey(name)
    random = torch.Generator().manual_seed(1)
    seen = []
    for held_out in (False, True):
        mask = torch.zeros(photograph.shape[-2:], dtype=torch.bool)
        for y, x in data.places(photograph, held_out, 2000, random).tolist():
            assert y + data.PATCH <= photograph.shape[-2]
            assert x + data.PATCH <= photograph.shape[-1]
            mask[y : y + data.PATCH, x : x + data.PATCH] = True
        seen.append(mask)
    training, test = seen
    assert training.any()
    assert test.any()
    # Scaling mixes neighbouring pixels, so training and test pixels stay two margins apart.
    reach = 2 * data.MARGIN - 1
    near = torch.nn.functional.max_pool2d(
        training[None].float(), 2 * reach + 1, stride=1, padding=reach
    )
    assert not (near[0].bool() & test).any()
    assert 0.15 < test.sum() / (test.sum() + training.sum()) < 0.35


def test_patches_are_where_the_photographs_are():
    found = data.patches()
    assert found.classes == len(SKIMAGE_PHOTOS)
    assert found.images.shape == (len(SKIMAGE_PHOTOS) * data.TRAINING, 1, data.PATCH, data.PATCH)
    assert found.test_images.shape[0] == len(SKIMAGE_PHOTOS) * data.TEST
    # Patches of the moon vary less than patches of gravel, so labels belong to their pixels.
    names = list(SKIMAGE_PHOTOS)
    flat, rough = (found.images[found.labels == names.index(n)].var() for n in ("moon", "gravel"))
    assert flat < rough
