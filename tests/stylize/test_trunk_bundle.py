"""The bundled trunk and its styles."""

from __future__ import annotations

import torch
from stylize_samples import pixels

from momentnorm.stylize.artworks import ARTWORKS, draw
from momentnorm.stylize.images import to_tensor
from momentnorm.stylize.painting import paint
from momentnorm.stylize.trunk_files import (
    FOLDER,
    TRUNK_FILE,
    load_trunk,
    load_trunk_style,
    trunk_styles,
)
from momentnorm.stylize.trunk_training import palette_distances, palette_of


def test_bundled_styles_are_many_small_and_differ():
    trunk = load_trunk()
    assert TRUNK_FILE.stat().st_size < 3_000_000
    assert len(trunk_styles()) >= 12
    photograph = to_tensor(pixels(64, 64, seed=2))
    pictures = []
    for name in trunk_styles():
        assert (FOLDER / f"{name}.safetensors").stat().st_size < 40_000
        style = load_trunk_style(name, trunk)
        assert style.picture == ARTWORKS[name].title
        pictures.append(paint(trunk, photograph, style.vector))
    for index, picture in enumerate(pictures):
        assert (picture - photograph).abs().mean() > 0.05
        for other in pictures[:index]:
            assert (picture - other).abs().mean() > 0.05


def test_bundled_styles_have_the_colours_of_their_pictures():
    trunk = load_trunk()
    photograph = to_tensor(pixels(64, 64, seed=2))
    random = torch.Generator().manual_seed(0)
    for name in ("mosaic", "wave", "gilded"):
        palette = palette_of(to_tensor(draw(name, 96))).unsqueeze(0)
        picture = paint(trunk, photograph, load_trunk_style(name, trunk).vector)
        own, before = (
            palette_distances(image.unsqueeze(0), palette, random).item()
            for image in (picture, photograph)
        )
        assert own < 0.5 * before, name
