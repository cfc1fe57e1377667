"""Training of the trunk: its losses, the order of styles, and going on from a checkpoint."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from stylize_samples import pixels
from test_efficientnet import published_state

from momentnorm.stylize import StylizeError
from momentnorm.stylize.efficientnet import EfficientNetFeatures
from momentnorm.stylize.losses import StyleStatistics, style_statistics
from momentnorm.stylize.painting import paint
from momentnorm.stylize.trunk import TrunkShape
from momentnorm.stylize.trunk_training import (
    JITTER,
    PALETTE,
    UNTOUCHED,
    TrunkSettings,
    TrunkTraining,
    drawing,
    learning_rate,
    moved,
    palette_distances,
    palette_of,
    style_distances,
    tinted,
)

NAMES = ("one", "two", "three")


@pytest.fixture
def start(tmp_path):
    """Build a small training of styles with these names."""
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels(48, 64)).save(photo)

    def build(names: tuple[str, ...] = NAMES) -> TrunkTraining:
        random = torch.Generator().manual_seed(5)
        pictures = {name: torch.rand(3, 32, 32, generator=random) for name in names}
        return TrunkTraining(
            pictures,
            [str(photo)],
            EfficientNetFeatures(published_state()),
            TrunkShape(width=4, blocks=1),
            TrunkSettings(steps=4, batch=2, size=32),
            {"two": 7.0},
        )

    return build


def test_a_resumed_training_equals_a_straight_one(start, tmp_path):
    straight = start()
    for _ in range(3):
        straight.step()
    first, second = start(), start()
    first.step()
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    second.step()
    second.step()
    assert second.done == 3
    assert torch.equal(second.styles, straight.styles)
    for key, value in straight.trunk.state_dict().items():
        assert torch.equal(second.trunk.state_dict()[key], value)


def test_styles_are_found_by_name(start, tmp_path):
    before = start()
    before.step()
    before.save(tmp_path / "checkpoint.pt")
    after = start(("three", "one", "new"))
    after.load(tmp_path / "checkpoint.pt")
    assert torch.equal(after.styles[0], before.styles[2])
    assert torch.equal(after.styles[1], before.styles[0])
    torch.testing.assert_close(after.styles[2], before.styles.mean(0))
    after.step()


def test_other_files_are_no_checkpoint(start, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"something else")
    with pytest.raises(StylizeError, match=r"checkpoint\.pt: no checkpoint of a trunk"):
        start().load(path)
    torch.save({"names": []}, path)
    with pytest.raises(StylizeError, match="no checkpoint of a trunk; name another file"):
        start().load(path)
    training = start()
    training.styles = torch.nn.Parameter(torch.zeros(3, 7))
    training.save(path)
    with pytest.raises(StylizeError, match="of a trunk of another shape"):
        start().load(path)


def test_training_moves_trunk_and_styles_towards_the_pictures(start):
    training = start()
    training.settings = TrunkSettings(steps=40, batch=3, size=32)
    losses = [training.step()["style"].mean().item() for _ in range(40)]
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])


def test_every_style_comes_once_before_any_comes_again(start):
    training = start()
    labels = torch.cat([training._labels(step) for step in (1, 2, 3)]).tolist()
    assert sorted(labels[:3]) == sorted(labels[3:]) == [0, 1, 2]


def test_style_distances_are_shares_of_a_photographs(start):
    training = start()
    layers = training.features.style_layers(training.crops.batch(0, 16))
    for index in range(3):
        targets = [
            StyleStatistics(t.mean[[index] * 16], t.covariance[[index] * 16])
            for t in training.targets
        ]
        distances = style_distances(layers, targets) * training.shares[index]
        assert distances.mean().item() == pytest.approx(UNTOUCHED, rel=1e-4)


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


def test_the_learning_rate_climbs_and_falls():
    rates = [learning_rate(step, 1000) for step in (1, 50, 100, 500, 1000)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(0.02, rel=0.01)


def test_tinted_photographs_stay_in_range():
    photographs = torch.rand(8, 3, 8, 8)
    random = torch.Generator().manual_seed(0)
    found = tinted(photographs, random)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, photographs)


def test_a_picture_has_the_photographs_size(start):
    training = start()
    image = torch.rand(3, 13, 22)
    found = paint(training.trunk, image, training.styles[0].detach())
    assert found.shape == image.shape
