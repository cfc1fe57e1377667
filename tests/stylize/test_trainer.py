"""Training of a network of one style: it learns, and it repeats itself to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from momentnorm.stylize import StylizeError
from momentnorm.stylize.content import content_files
from momentnorm.stylize.network import NORMS
from momentnorm.stylize.trainer import Settings, train
from support.stylize_samples import pixels

TINY = Settings(width=4, blocks=1, steps=6, batch=2, size=32, style_size=48)


def same(first, second) -> bool:
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def picture():
    return torch.from_numpy(pixels(64, 80, seed=9)).permute(2, 0, 1).float() / 255


def test_it_learns(folder, picture):
    losses = []
    settings = Settings(width=8, blocks=1, steps=40, batch=2, size=32, style_size=48)
    train(
        picture,
        content_files(folder),
        settings,
        on_step=lambda step, found, network: losses.append(found["loss"]),
    )
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("norm", NORMS)
def test_a_seed_is_a_result(folder, picture, norm):
    settings = replace(TINY, norm=norm, steps=3)
    first, again = (train(picture, content_files(folder), settings) for _ in range(2))
    assert same(first, again)
    other = train(picture, content_files(folder), replace(settings, seed=1))
    assert not same(first, other)


def test_a_loss_that_runs_away(folder, picture):
    with pytest.raises(StylizeError, match="lower --lr"):
        train(1e30 * picture, content_files(folder), TINY)


def test_settings_are_checked():
    for wrong in (
        {"steps": 0},
        {"batch": 0},
        {"size": 30},
        {"size": 16},
        {"style_size": 8},
        {"lr": float("nan")},
        {"seed": -1},
        {"feature_seed": 2**64},
        {"tv_weight": -1.0},
        {"width": 0},
        {"norm": "no"},
    ):
        with pytest.raises(StylizeError):
            Settings(**wrong)
