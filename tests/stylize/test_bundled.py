"""The bundled trunk and its styles."""

from __future__ import annotations

import functools

import pytest
import torch

from momentnorm.stylize import bundled_styles, draw, load_style, read_photo, stylize
from momentnorm.stylize.artworks import ARTWORKS
from momentnorm.stylize.images import to_tensor
from momentnorm.stylize.trunk_files import FOLDER, TRUNK_NAME
from momentnorm.stylize.trunk_losses import palette_distances, palette_of
from support.stylize_samples import pixels

PHOTOGRAPH = to_tensor(pixels(64, 64, seed=2))


@functools.cache
def painted(name):
    return stylize(PHOTOGRAPH, load_style(name))


def test_bundled_styles_are_many_small_and_differ():
    assert (FOLDER / TRUNK_NAME).stat().st_size < 3_000_000
    assert len(bundled_styles()) >= 12
    for name in bundled_styles():
        assert (FOLDER / f"{name}.safetensors").stat().st_size < 40_000
        assert load_style(name).picture == ARTWORKS[name].title
        assert load_style(name).license.startswith("Apache-2.0")
    pictures = [painted(name) for name in bundled_styles()]
    for index, picture in enumerate(pictures):
        assert (picture - PHOTOGRAPH).abs().mean() > 0.05
        for other in pictures[:index]:
            assert (picture - other).abs().mean() > 0.05


def test_bundled_styles_have_the_colours_of_their_pictures():
    random = torch.Generator().manual_seed(0)
    for name in ("mosaic", "wave", "gilded"):
        palette = palette_of(to_tensor(draw(name, 96))).unsqueeze(0)
        own, before = (
            palette_distances(image.unsqueeze(0), palette, random).item()
            for image in (painted(name), PHOTOGRAPH)
        )
        assert own < 0.5 * before, name


@pytest.mark.parametrize("style", ["engraving", "mosaic", "swirl"])
def test_bundled_styles_do_not_see_contrast(style):
    pytest.importorskip("skimage")
    photo = read_photo("skimage:astronaut").rgb[:, 100:228, 160:292]
    picture, fainter = (
        stylize(photo, load_style(style)),
        stylize(0.25 + 0.5 * photo, load_style(style)),
    )
    # float32, with eps 1e-5 beside variances of features; 1/255 is one step of a byte.
    assert (picture - fainter).abs().mean() < 0.5 / 255
    assert (picture - fainter).abs().max() < 0.05
