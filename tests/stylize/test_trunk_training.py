"""Training of styles: with the trunk or on a frozen one, stopped and resumed, never lost."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from momentnorm.stylize import StylePicture, StylizeError, TrainingSettings, TrunkShape
from momentnorm.stylize.content import Crops
from momentnorm.stylize.features import RandomFeatures
from momentnorm.stylize.losses import StyleStatistics
from momentnorm.stylize.trunk_files import trunk_identity
from momentnorm.stylize.trunk_losses import style_distances
from momentnorm.stylize.trunk_training import UNTOUCHED, StyleTraining, learning_rate
from support.faults import Faults
from support.stylize_samples import pixels, random_vectors, small_trunk

NAMES = ("one", "two", "three")
TINY = TrainingSettings(steps=4, batch=2, size=32, style_size=48)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(pixels(48, 64)).save(path)
    return str(path)


@pytest.fixture
def start(photo):
    """Build a small training: of a trunk with styles, or of one style on a frozen trunk."""
    features = RandomFeatures(Crops([photo], 32, 0).batch(0, 2))

    def build(settings=TINY, *, frozen=False, pictures=None, content=(photo,)):
        random = torch.Generator().manual_seed(5)
        names = NAMES[:1] if frozen else NAMES
        found = {
            name: StylePicture(torch.rand(3, 48, 40, generator=random), title=f"picture {name}")
            for name in names
        }
        options = (
            {"trunk": small_trunk(), "start": random_vectors(1)[0]}
            if frozen
            else {"shape": TrunkShape(width=4, blocks=1)}
        )
        return StyleTraining(pictures or found, list(content), features, settings, **options)

    return build


def same(first, second):
    trunks = trunk_identity(first.trunk), trunk_identity(second.trunk)
    return torch.equal(first.styles, second.styles) and trunks[0] == trunks[1]


@pytest.mark.parametrize("frozen", [False, True])
def test_stopping_changes_nothing(start, tmp_path, frozen):
    straight = start(frozen=frozen)
    assert straight.run()
    path, seen = tmp_path / "checkpoint.safetensors", []
    for stop in (1, 3, 9):
        training = start(frozen=frozen)
        finished = training.run(
            checkpoint=path,
            on_step=lambda step, losses: seen.append(step),
            should_stop=lambda stop=stop: len(seen) >= stop,
        )
    assert finished
    assert seen == [1, 2, 3, 4]
    assert same(training, straight)


def test_a_frozen_trunk_stays_as_it_is(start):
    training = start(frozen=True)
    before, style = trunk_identity(training.trunk), training.styles.detach().clone()
    training.run()
    assert trunk_identity(training.trunk) == before
    assert not torch.equal(training.styles, style)


def test_a_checkpoint_of_another_training(start, tmp_path, photo):
    path = tmp_path / "checkpoint.safetensors"
    start().run(checkpoint=path, should_stop=lambda: True)
    other = {name: StylePicture(torch.zeros(3, 40, 40)) for name in NAMES}
    for changed, says in (
        ({"settings": replace(TINY, lr=0.1, seed=4)}, "lr, seed, trunk differs"),
        ({"pictures": other}, "style_picture differs"),
        ({"content": (photo, photo)}, "content differs"),
        ({"frozen": True}, "style_picture, trunk differs"),
    ):
        with pytest.raises(StylizeError, match=says):
            start(**changed).run(checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(StylizeError, match="not a checkpoint file"):
        start().run(checkpoint=path)


def changed(name, value):
    return lambda tensors, metadata: tensors.update({name: value(tensors[name])})


#: Damage to the tensors and the metadata of a checkpoint, and the message about it.
DAMAGE = [
    (lambda tensors, metadata: metadata.pop("step"), "the step is not a number from 1 to 4"),
    (lambda tensors, metadata: metadata.update(step="7"), "the step is not a number"),
    (lambda tensors, metadata: metadata.update(step="-1"), "the step is not a number"),
    (lambda tensors, metadata: metadata.update(training="[" * 100_000), "its metadata differs"),
    (lambda tensors, metadata: tensors.pop("adam.0.step"), "adam.0.step is missing"),
    (lambda tensors, metadata: tensors.update(adam=torch.zeros(1)), "does not belong here"),
    (changed("adam.0.step", lambda x: -x), "cannot be those of that many steps"),
    (changed("adam.0.exp_avg_sq", lambda x: x - 1), "cannot be those of that many steps"),
    (changed("adam.1.exp_avg", lambda x: x[1:]), "adam.1.exp_avg has shape"),
    (changed("network.styles", lambda x: x / 0), "network.styles is not finite"),
    (changed("network.trunk.up.weight", lambda x: x > 0), "up.weight is of dtype BOOL"),
]


def test_a_damaged_checkpoint_is_one_line(start, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    training = start()
    training.run(checkpoint=path, should_stop=lambda: True)
    before = training.styles.detach().clone()
    for change, says in DAMAGE:
        tensors, damaged = load_file(path), tmp_path / "damaged.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        change(tensors, metadata)
        save_file(tensors, damaged, metadata)
        with pytest.raises(StylizeError) as found:
            training.run(checkpoint=damaged)
        assert says in str(found.value)
        assert "name another one with --checkpoint" in str(found.value)
        assert torch.equal(training.styles, before), "nothing is loaded from a damaged file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_no_checkpoint(start, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StylizeError, match="not a regular file"):
        start().run(checkpoint=tmp_path / "fifo")


def test_a_checkpoint_that_fails_at_any_call_loses_nothing(start, tmp_path, monkeypatch):
    """Wherever the disk fails, the training goes on later, and ends with the same bits."""
    path, settings = tmp_path / "checkpoint.safetensors", replace(TINY, steps=2, batch=1)
    build = lambda: start(settings, frozen=True)  # noqa: E731
    build().run(checkpoint=path, should_stop=lambda: True)
    first = path.read_bytes()
    whole = build()
    whole.run(checkpoint=path)
    for at in range(1, 100):
        path.write_bytes(first)
        failure, training = None, build()
        with monkeypatch.context() as patch:
            faults = Faults(patch, at)
            try:
                training.run(checkpoint=path)
            except StylizeError as error:
                failure = str(error)
        assert failure is None or "Input/output error" in failure
        names = {file.name for file in tmp_path.iterdir()}
        assert names <= {path.name, "photo.png"}, "no temporary file stays"
        again = build()
        again.run(checkpoint=path)
        assert same(again, whole), faults.calls
        if not faults.happened:
            break
    assert faults.calls.count("replace") == 1


def test_training_moves_trunk_and_styles_towards_the_pictures(start):
    losses = []
    start(replace(TINY, steps=40, batch=3)).run(
        on_step=lambda step, found: losses.append(found["style"])
    )
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


def test_a_picture_may_have_a_size_and_a_weight_of_its_own(start):
    picture = torch.rand(3, 48, 40)
    pictures = {
        "usual": StylePicture(picture),
        "own": StylePicture(picture, style_size=42, content_weight=7.0),
    }
    training = start(pictures=pictures)
    assert training.content_weights.tolist() == [TINY.content_weight, 7.0]
    means = training.targets[0].mean
    assert not torch.equal(means[0], means[1])


def test_a_loss_that_runs_away(start):
    with pytest.raises(StylizeError, match="choose a lower rate"):
        start(replace(TINY, content_weight=1e38, palette_weight=1e38)).run()


def test_a_picture_that_is_too_small(start):
    with pytest.raises(StylizeError, match=r"9x40 pixels as it is compared; .* at least 32"):
        start(pictures={"flat": StylePicture(torch.rand(3, 40, 9))})


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"size": 30},
        {"size": 16},
        {"style_size": 8},
        {"lr": float("nan")},
        {"style_lr": -1.0},
        {"seed": -1},
        {"tv_weight": float("inf")},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(StylizeError, match="is needed"):
        TrainingSettings(**wrong)


def test_the_learning_rate_climbs_and_falls():
    rates = [learning_rate(step, 1000) for step in (1, 50, 100, 500, 1000)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(0.02, rel=0.01)
