"""Style pictures: sizes, the same bytes each time, colours, structure at two scales."""

from __future__ import annotations

import numpy as np
import pytest

from momentnorm.stylize import StylizeError, draw
from momentnorm.stylize.artworks import ARTWORKS
from momentnorm.stylize.artworks.pieces import Fields, edge, grid, lattice, palette, ramp, sample

#: Pictures of thousands of strokes; the brush is held by "knife".
SLOW = ("meadow", "swirl")


@pytest.mark.parametrize("name", ARTWORKS)
def test_artwork_has_the_size_and_the_same_bytes_each_time(name):
    first = draw(name, 48)
    assert first.shape == (48, 48, 3)
    assert first.dtype == np.uint8
    if name not in SLOW:
        assert np.array_equal(first, draw(name, 48))
    # A picture without contrast teaches nothing.
    assert first.std() > 25
    assert first.reshape(4, 12, 4, 12, 3).mean((1, 3)).std() > 4, "large forms"


@pytest.mark.parametrize("name", ARTWORKS)
def test_artwork_of_a_single_pixel(name):
    assert draw(name, 1).shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["mosaic", "cutouts", "wave", "gilded"])
def test_artwork_is_one_picture_at_every_size(name):
    small, large = draw(name, 64).astype(float), draw(name, 128).astype(float)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 0.35 * np.abs(small - small.mean((0, 1))).mean()


def test_artworks_are_many_and_named():
    assert len(ARTWORKS) >= 14
    assert all(artwork.title for artwork in ARTWORKS.values())
    with pytest.raises(StylizeError, match=r"no style picture is named 'no-such'.*mosaic"):
        draw("no-such")


def test_ramp_passes_through_its_colours():
    colours = palette("000000", "ff0000", "ffffff")
    found = ramp(np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0]), colours)
    expected = [[0, 0, 0], [0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    np.testing.assert_allclose(found, expected)


def test_sample_reads_centres_and_wraps():
    field = np.arange(16.0).reshape(4, 4)
    x, y = grid(4)
    np.testing.assert_allclose(sample(field, x, y), field)
    np.testing.assert_allclose(sample(field, x + 1, y - 1), field)
    between = sample(field, np.array(0.25), np.array(0.125))
    assert between == pytest.approx(0.5)


def test_fields_are_alike_at_every_size():
    values = [Fields(3).at(*grid(size), 0.2) for size in (32, 64)]
    halved = values[1].reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(halved, values[0], atol=0.02)


def test_edge_is_a_pixel_wide():
    np.testing.assert_allclose(
        edge(np.array([-1.0, -0.005, 0.0, 0.005, 1.0]), 100), [0, 0, 0.5, 1, 1]
    )


def test_lattice_covers_the_square_and_its_rim():
    sites = lattice(4, 0.0, np.random.default_rng(0))
    assert sites.shape == (36, 2)
    assert sites.min() == pytest.approx(-0.125)
    assert sites.max() == pytest.approx(1.125)
