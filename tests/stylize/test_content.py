"""Content photographs: their files, their crops, and those that cannot be read."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from momentnorm.stylize import StylizeError
from momentnorm.stylize.content import (
    HELD_OUT,
    LONGEST,
    Crops,
    content_files,
    read_first,
    training_photographs,
)
from support.stylize_samples import pixels


def test_crops(folder):
    crops = Crops(content_files(folder), 40, seed=1)
    batch = crops.batch(3, 5)
    assert batch.shape == (5, 3, 40, 40)
    assert 0 <= batch.min() < batch.max() <= 1
    assert torch.equal(batch, Crops(content_files(folder), 40, seed=1).batch(3, 5))
    assert not torch.equal(batch, crops.batch(4, 5))
    assert not torch.equal(batch, Crops(content_files(folder), 40, seed=2).batch(3, 5))


def test_large_photographs_are_scaled_down(tmp_path):
    Image.fromarray(pixels(30, LONGEST * 2)).save(tmp_path / "a.png")
    crops = Crops(content_files(tmp_path), 32, seed=0)
    assert crops._photo(0).shape == (3, 15, LONGEST)


def test_a_damaged_photograph_is_left_out(folder):
    (folder / "1.png").write_bytes(b"damaged")
    notes = []
    crops = Crops(content_files(folder), 32, 0, notes.append)
    crops.batch(1, 20)
    assert len(notes) == 1
    assert "1.png" in notes[0]
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(StylizeError, match="none of the content photographs"):
        Crops(content_files(folder), 32, 0).batch(1, 1)


def test_content_folders(tmp_path):
    with pytest.raises(StylizeError, match="no such folder"):
        content_files(tmp_path / "no")
    with pytest.raises(StylizeError, match="no photographs"):
        content_files(tmp_path)
    assert content_files(None)[0] == "skimage:astronaut"


def test_no_photograph_is_readable(folder):
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(StylizeError, match="none of the content photographs"):
        read_first(content_files(folder), 1, 32)


def test_scenes_come_more_often_and_some_photographs_are_held_out(folder):
    assert training_photographs(folder) == content_files(folder)
    pytest.importorskip("skimage")
    files = training_photographs(None)
    assert files.count("skimage:chelsea") == 3
    assert files.count("skimage:gravel") == 1
    assert not {f"skimage:{name}" for name in HELD_OUT} & set(files)
